"use strict";
// Texts reach the page through textContent alone: nothing in them is ever markup.
const data = JSON.parse(document.getElementById("data").textContent);
const CHUNK_SIZE = 50;
const compares = data.baseline !== null;
const byId = (id) => document.getElementById(id);
const number = new Intl.NumberFormat("en");

// The segments of a row: at places 0, 3, 6 ... they are in both texts, one place on in the model's translation alone,
// two places on in the other text alone. The other text is the baseline's translation, or the reference.
const MODEL = 1;
const OTHER = 2;
const joined = (segments, which) => segments.filter((_, place) => place % 3 === 0 || place % 3 === which).join("");

function rowsOf(set) {
  return set.segments.map((segments, index) => ({
    index,
    segments,
    source: set.source[index],
    reference: compares ? set.reference[index] : joined(segments, OTHER),
    chrf: set.chrf[index],
    baselineChrf: compares ? set.baselineChrf[index] : null,
    gain: compares ? set.chrf[index] - set.baselineChrf[index] : null,
    differs: segments.length > 1,
    lost: set.lost?.[index] ?? {}, // by the kind of placeholder, a list of what is missing or added
  }));
}

const ORDERS = compares
  ? [
      ["largest loss first", (a, b) => a.gain - b.gain || a.index - b.index],
      ["largest gain first", (a, b) => b.gain - a.gain || a.index - b.index],
      ["file order", (a, b) => a.index - b.index],
    ]
  : [
      ["lowest chrF first", (a, b) => a.chrf - b.chrf || a.index - b.index],
      ["highest chrF first", (a, b) => b.chrf - a.chrf || a.index - b.index],
      ["file order", (a, b) => a.index - b.index],
    ];
const SHOWN = compares
  ? [
      ["all", () => true],
      ["worse", (row) => row.gain < 0],
      ["better", (row) => row.gain > 0],
      ["different", (row) => row.differs],
    ]
  : [
      ["all", () => true],
      ["not as the reference", (row) => row.differs],
    ];

const state = { order: 0, show: 0, lost: "", filter: "", rows: [], found: [] };

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function textOf(segments, which, className) {
  const made = element("div", "text");
  made.dir = "auto";
  segments.forEach((segment, place) => {
    if (!segment) return;
    if (place % 3 === 0) made.append(segment);
    else if (place % 3 === which) made.append(element("mark", className, segment));
  });
  if (!made.hasChildNodes()) made.append(element("span", "empty", "(empty)"));
  return made;
}

function signed(value) {
  return (value > 0 ? "+" : value < 0 ? "−" : "") + Math.abs(value).toFixed(1);
}

function articleOf(row) {
  const article = element("article");
  const side = element("div", "side");
  if (compares) {
    side.append(element("div", "gain " + (row.gain > 0 ? "better" : row.gain < 0 ? "worse" : ""), signed(row.gain)));
  }
  side.append(element("div", "index", "no. " + row.index));
  article.append(side);
  const lines = [
    ["source", "", [row.source]],
    ["reference", "chrF", [row.reference]],
    ["model", row.chrf.toFixed(1), row.segments, MODEL],
  ];
  if (compares) lines.push(["baseline", row.baselineChrf.toFixed(1), row.segments, OTHER]);
  for (const [what, chrf, segments, which] of lines) {
    article.append(element("div", "what", what), element("div", "chrf", chrf), textOf(segments, which, what));
  }
  const lost = lostText(row);
  if (lost) article.append(element("div", "what", "lost"), element("div", "chrf", ""), element("div", "text lost", lost));
  return article;
}

function lostText(row) {
  return Object.values(row.lost).flat().join(", ");
}

function plainText(row) {
  const texts = [row.index, row.source, row.reference, joined(row.segments, MODEL)];
  if (compares) texts.push(joined(row.segments, OTHER));
  const lost = lostText(row);
  return (lost ? [...texts, lost] : texts).join("\n");
}

function haystack(row) {
  // Made once for each row, at the first filter.
  row.haystack ??= plainText(row).toLowerCase();
  return row.haystack;
}

// Chunks of rows become articles when they come near the window, and plain text again when they leave it: hidden text,
// which costs no layout, and in which the browser's "find in page" finds and reveals its chunk.
let rowHeight = 150; // of the chunks not seen yet, in CSS pixels

function fill(chunk) {
  if (chunk.isFilled) return;
  chunk.isFilled = true;
  chunk.style.height = "";
  chunk.replaceChildren(...chunk.rows.map(articleOf));
}

function empty(chunk, height) {
  chunk.isFilled = false;
  chunk.style.height = `${height}px`;
  const text = element("div", "", chunk.rows.map(plainText).join("\n"));
  text.setAttribute("hidden", "until-found");
  chunk.replaceChildren(text);
}

const observer = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting, boundingClientRect } of entries) {
      if (isIntersecting) fill(target);
      else if (target.isFilled) empty(target, boundingClientRect.height);
    }
  },
  { rootMargin: "200% 0px" }
);
byId("rows").addEventListener("beforematch", (event) => fill(event.target.closest("section")));

const ANY = "any";
const hasLost = (row, kind) => !kind || (kind === ANY ? Object.keys(row.lost).length > 0 : kind in row.lost);

function update() {
  const isShown = SHOWN[state.show][1];
  state.found = state.rows
    .filter((row) => isShown(row) && hasLost(row, state.lost) && (!state.filter || haystack(row).includes(state.filter)))
    .sort(ORDERS[state.order][1]);
  const all = `${number.format(state.rows.length)} ${state.rows.length === 1 ? "sentence" : "sentences"}`;
  const isPart = state.found.length < state.rows.length;
  byId("count").textContent = isPart ? `${number.format(state.found.length)} of ${all}` : all;
  const chunks = [];
  for (let start = 0; start < state.found.length; start += CHUNK_SIZE) {
    const chunk = element("section");
    chunk.rows = state.found.slice(start, start + CHUNK_SIZE);
    chunks.push(chunk);
  }
  const [first, ...others] = chunks;
  observer.disconnect();
  byId("rows").replaceChildren();
  if (first) {
    fill(first);
    byId("rows").append(first);
    rowHeight = first.offsetHeight / first.rows.length;
  }
  for (const chunk of others) empty(chunk, chunk.rows.length * rowHeight);
  byId("rows").append(...others);
  chunks.forEach((chunk) => observer.observe(chunk));
  if (byId("rows").getBoundingClientRect().top < 0) byId("count").scrollIntoView(); // another list begins at its top
}

function buttons(id, entries, key, labelOf) {
  byId(id).replaceChildren(
    ...entries.map(([name, choose], place) => {
      const button = element("button", "", labelOf(name, choose));
      button.type = "button";
      button.setAttribute("aria-pressed", String(state[key] === place));
      button.addEventListener("click", () => {
        state[key] = place;
        [...byId(id).children].forEach((other, at) => other.setAttribute("aria-pressed", String(at === place)));
        update();
      });
      return button;
    })
  );
}

function choose(place) {
  state.rows = rowsOf(data.sets[place]);
  const kinds = [...new Set(state.rows.flatMap((row) => Object.keys(row.lost)))];
  const options = ["", ...(kinds.length ? [ANY] : []), ...kinds].map((kind) => {
    const count = number.format(state.rows.filter((row) => hasLost(row, kind)).length);
    return new Option(kind ? `lost: ${kind} (${count})` : "placeholders: all rows", kind);
  });
  state.lost = "";
  byId("lost").replaceChildren(...options);
  byId("lost").hidden = !kinds.length;
  buttons("order", ORDERS, "order", (name) => name);
  buttons("show", SHOWN, "show", (name, isShown) => `${name} (${number.format(state.rows.filter(isShown).length)})`);
  update();
}

data.sets.forEach((set, place) => byId("set").append(new Option(set.name, place)));
byId("set").hidden = data.sets.length < 2;
byId("set").addEventListener("change", (event) => choose(Number(event.target.value)));
byId("lost").addEventListener("change", (event) => {
  state.lost = event.target.value;
  update();
});
let timer;
byId("filter").addEventListener("input", (event) => {
  clearTimeout(timer);
  timer = setTimeout(() => {
    state.filter = event.target.value.trim().toLowerCase();
    update();
  }, 150);
});
choose(0);
