"use strict";
// Texts reach the page through textContent alone: nothing in them is ever markup.
const data = JSON.parse(document.getElementById("data").textContent);
const PAGE_SIZE = 200;
const compares = data.baseline !== null;
const byId = (id) => document.getElementById(id);
const number = new Intl.NumberFormat("en");

// A hypothesis is a list of segments: those at odd places are not in the other text.
function rowsOf(set) {
  return set.rows.map((row, index) => ({
    ...row,
    index,
    gain: compares ? row.chrf - row.baselineChrf : null,
    differs: row.model.length > 1,
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

const state = { order: 0, show: 0, filter: "", rows: [], found: [], shown: 0 };

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function textOf(segments, className) {
  const made = element("div", "text");
  made.dir = "auto";
  if (segments.join("") === "") {
    made.append(element("span", "empty", "(empty)"));
    return made;
  }
  segments.forEach((segment, place) => {
    if (segment) made.append(place % 2 ? element("mark", className, segment) : segment);
  });
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
    ["model", row.chrf.toFixed(1), row.model],
  ];
  if (compares) lines.push(["baseline", row.baselineChrf.toFixed(1), row.baseline]);
  for (const [what, chrf, segments] of lines) {
    article.append(element("div", "what", what), element("div", "chrf", chrf), textOf(segments, what));
  }
  return article;
}

function haystack(row) {
  // Made once for each row, at the first filter.
  row.haystack ??= [row.index, row.source, row.reference, row.model.join(""), compares ? row.baseline.join("") : ""]
    .join("\n").toLowerCase();
  return row.haystack;
}

function showMore() {
  const next = state.found.slice(state.shown, state.shown + PAGE_SIZE);
  byId("rows").append(...next.map(articleOf));
  state.shown += next.length;
  const left = state.found.length - state.shown;
  byId("more").hidden = left === 0;
  byId("more").textContent = `show ${number.format(Math.min(left, PAGE_SIZE))} more`;
  byId("count").textContent =
    `${number.format(state.shown)} shown of ${number.format(state.found.length)} found, ` +
    `${number.format(state.rows.length)} in all`;
}

function update() {
  const isShown = SHOWN[state.show][1];
  state.found = state.rows
    .filter((row) => isShown(row) && (!state.filter || haystack(row).includes(state.filter)))
    .sort(ORDERS[state.order][1]);
  state.shown = 0;
  byId("rows").replaceChildren();
  showMore();
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
  buttons("order", ORDERS, "order", (name) => name);
  buttons("show", SHOWN, "show", (name, isShown) => `${name} (${number.format(state.rows.filter(isShown).length)})`);
  update();
}

data.sets.forEach((set, place) => byId("set").append(new Option(set.name, place)));
byId("set").hidden = data.sets.length < 2;
byId("set").addEventListener("change", (event) => choose(Number(event.target.value)));
byId("more").addEventListener("click", showMore);
let timer;
byId("filter").addEventListener("input", (event) => {
  clearTimeout(timer);
  timer = setTimeout(() => {
    state.filter = event.target.value.trim().toLowerCase();
    update();
  }, 150);
});
choose(0);
