"""Find what a translation of software must carry over unchanged: variables, markup, addresses, white space, numbers.

The one list of kinds: the metric of survival counts them, --protect masks them, a catalogue's writer checks them.
Must not know models or files.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from html.entities import name2codepoint


@dataclass(frozen=True)
class Placeholder:
    """A place in a text.

    Attributes:
        kind: The name of its kind.
        text: As it is written.
        key: What must be equal in the translation: `%1$s` and `%s` have one key, and so have all accelerators.
        start: The position of its first character.
    """

    kind: str
    text: str
    key: str
    start: int

    @property
    def end(self) -> int:
        """Return the position behind its last character."""
        return self.start + len(self.text)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of placeholder.

    Attributes:
        name: As in `survival_<name>` of metrics.jsonl.
        title: Heads its column: what it looks like.
        pattern: Matches one; None for the edges of a text, which are found without.
        key: Returns the key of a match.
        is_code: Whether a program reads it: a translation without it is broken. These are protected; they include each
            other (a variable in a tag), while the others are looked for outside of them.
    """

    name: str
    title: str
    pattern: re.Pattern[str] | None
    key: Callable[[str], str] = str
    is_code: bool = True


# %C3 is a byte of an address. A directive of printf has a width only with a flag or a precision: in "%1x%2", as KDE
# writes, x is a letter.
_DIRECTIVE = re.compile(
    r"(?P<percent>%%)"
    r"|(?P<printf>%\([^()\s]+\)[-+#0]*\d*(?:\.\d+)?[A-Za-z]|%<\w+>"
    r"|%(?:\d+\$)[-+#0']*(?:\d+|\*)?(?:\.(?:\d+|\*))?(?:hh|ll|[hlqjzt])?[A-Za-z@])"
    r"|(?P<numbered>%L?\d{1,2})"
    r"|(?P<count>%L?n(?![A-Za-z]))"
    r"|(?P<conversion>%(?![A-F][\dA-F])(?:[-+#0']+(?:\d+|\*)?|\*)?(?:\.(?:\d+|\*))?(?:hh|ll|[hlqjzt])?[A-Za-z@])"
)
_QUOTED = re.compile(r"\"[^\"]*\"|'[^']*'")
# &nbsp; and &eacute; are characters, as a translator writes them; a program reads &kde;, and markup needs &lt;.
_CHARACTER = "|".join(sorted(name2codepoint.keys() - {"amp", "lt", "gt"}))
_ENTITY = r"&(?:[A-Za-z][\w.-]*|#\d+|#[xX][\dA-Fa-f]+);"
_NAMED = re.compile(r"%\(|%<")


def _printf_key(text: str) -> str:
    """Return the conversion without position, flags and width, which a translation may change."""
    if _NAMED.match(text):
        return text
    return "%" + re.sub(r"^%(?:\d+\$)?[-+#0']*(?:\d+|\*)?(?:\.(?:\d+|\*))?", "", text)


def _tag_key(text: str) -> str:
    """Return `<name>`, `</name>` or `<name/>` with the names of the attributes: their values may be translated."""
    name = re.match(r"</?\s*[\w:.-]+", text)
    assert name is not None
    attributes = sorted(re.findall(r"\s([\w:.-]+)\s*=", _QUOTED.sub("", text)))
    return " ".join([name[0], *attributes]) + ("/>" if text.endswith("/>") else ">")


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(name="url", title="URL", pattern=re.compile(r"(?:https?|ftps?|file|smb|sftp)://[^\s<>\"'()]*[\w/&=%-]")),
        Kind(name="email", title="e-mail", pattern=re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]+(?:\.[\w-]+)+")),
        Kind(
            name="tag",
            title="<tag>",
            # Neither <not available> nor a whole text as <empty>: these are translated. <br> and <p> are shorter.
            pattern=re.compile(r"(?!\A<[^\W\d_]{4,}>\Z)</?[A-Za-z_][\w:.-]*(?:\s[^<>=]*=[^<>]*|\s*)/?>"),
            key=_tag_key,
        ),
        Kind(name="entity", title="&entity;", pattern=re.compile(rf"&(?!(?:{_CHARACTER}|#\w+);){_ENTITY[1:]}")),
        Kind(
            name="braces",
            title="{0}",
            pattern=re.compile(r"[%$#]?\{\{?[\w.\-\[\]]*(?:![rsa])?(?::[^{}\s]*)?\}\}?" r"|(?<![\w$])\$[A-Za-z_]\w*"),
        ),
        Kind(name="numbered", title="%1", pattern=_DIRECTIVE),
        Kind(name="count", title="%n", pattern=_DIRECTIVE),
        Kind(name="printf", title="%s", pattern=_DIRECTIVE, key=_printf_key),
        Kind(name="percent", title="%%", pattern=_DIRECTIVE),
        Kind(
            name="accelerator",
            title="&accelerator",
            pattern=re.compile(rf"(?<!&)(?!{_ENTITY})&(?=\w)"),
            key=lambda _: "&",
            is_code=False,
        ),
        Kind(name="newline", title="newline", pattern=re.compile("\n"), is_code=False),
        Kind(name="edge_space", title="edge space", pattern=None, is_code=False),
        Kind(
            name="ellipsis",
            title="ellipsis",
            pattern=re.compile(r"\.{3,}|…"),
            key=lambda _: "…",
            is_code=False,
        ),
        Kind(
            name="number",
            title="number",
            pattern=re.compile(r"(?<!&#)(?<!\d)\d+(?:[.,']\d+|[\u00a0\u202f ]\d{3}(?!\d))*"),
            key=lambda text: re.sub(r"\D", "", text),
            is_code=False,
        ),
    )
}
CODE = tuple(name for name, kind in KINDS.items() if kind.is_code)
# Each placeholder has one of these. Most texts have none: 3 microseconds instead of 80.
_SIGNS = re.compile(r"[@<&{$%\n\d…]|://|\.\.\.|^\s|\s\Z")


def _matches(kind: Kind, text: str) -> Iterator[Placeholder]:
    assert kind.pattern is not None
    for match in kind.pattern.finditer(text):
        if kind.pattern is _DIRECTIVE:
            group = match.lastgroup
            if ("printf" if group == "conversion" else group) != kind.name:
                continue
        yield Placeholder(kind.name, match[0], kind.key(match[0]), match.start())


def _edges(text: str) -> Iterator[Placeholder]:
    inner = text.strip()
    if not inner:
        return
    start = text.index(inner)
    for edge, where in ((text[:start], 0), (text[start + len(inner) :], start + len(inner))):
        if edge:
            yield Placeholder("edge_space", edge, f"{'start' if not where else 'end'} {edge!r}", where)


def spans(text: str) -> list[Placeholder]:
    """Return the places that a program reads, from left to right, none inside another: the longer one is kept."""
    found = [one for name in CODE for one in _matches(KINDS[name], text)]
    kept: list[Placeholder] = []
    for one in sorted(found, key=lambda one: (one.start, -one.end)):
        if not kept or one.start >= kept[-1].end:
            kept.append(one)
    return kept


def placeholders(text: str, kinds: Collection[str] = tuple(KINDS)) -> dict[str, list[Placeholder]]:
    """Return the placeholders of a text by kind, in its order; kinds that it lacks are left out."""
    if not _SIGNS.search(text):
        return {}
    outside = text
    if any(not KINDS[name].is_code for name in kinds):
        parts, position = [], 0
        for one in spans(text):  # replaced by as many characters, so that positions are kept
            parts += [text[position : one.start], "\x00" * len(one.text)]
            position = one.end
        outside = "".join([*parts, text[position:]])
    found = {}
    for name in kinds:
        kind = KINDS[name]
        places = _edges(text) if kind.pattern is None else _matches(kind, text if kind.is_code else outside)
        if of_kind := list(places):
            found[name] = of_kind
    return found


def keys(text: str, kinds: Collection[str] = tuple(KINDS)) -> dict[str, Counter[str]]:
    """Return how often a text has each key, by kind."""
    return {name: Counter(one.key for one in found) for name, found in placeholders(text, kinds).items()}


def lost(source: str, hypothesis: str, kinds: Collection[str] = CODE) -> list[str]:
    """Describe what a translation lacks, or has too often: [] if every placeholder survived.

    Returns:
        `%1 missing` and `%2 added`, as the source or the translation writes it, in the order of the kinds.
    """
    there, here = placeholders(source, kinds), placeholders(hypothesis, kinds)
    lines = []
    for name in kinds:
        for places, others, what in (
            (there.get(name, []), here.get(name, []), "missing"),
            (here.get(name, []), there.get(name, []), "added"),
        ):
            surplus = Counter(one.key for one in places) - Counter(one.key for one in others)
            for key, number in surplus.items():
                written = next(one.text for one in places if one.key == key)
                shown = KINDS[name].title if name in ("edge_space", "newline", "accelerator") else written
                lines.append(f"{shown} {what}" + (f" {number} times" if number > 1 else ""))
    return lines
