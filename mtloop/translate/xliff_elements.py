"""Find the segments of XLIFF files by their bytes, and restore inline elements. Must not know what is translated."""

from __future__ import annotations

import re
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from xml.parsers import expat
from xml.sax.saxutils import escape, quoteattr

_TAG = re.compile(rb"<[^\"'>]*(?:\"[^\"]*\"[^\"'>]*|'[^']*'[^\"'>]*)*>")
_INLINE = re.compile(r"<(/?)([A-Za-z_][\w.-]*)(?:\s[^<>]*?)?(/?)>")
# Inline elements of 1.2 that hold code, not text. They are restored as a whole.
_CODE = ("bpt", "ept", "ph", "it")


@dataclass(eq=False, slots=True)
class Element:
    """An element, by the positions of its tags in the file.

    Attributes:
        name: Without its prefix.
        tag: (start, end) of its start tag.
        attributes: Of the start tag, by their local names.
        parts: Its texts and children, as far as they are needed.
        end_tag: (start, end) of its end tag; equals (end, end) of `tag` in an empty element.
    """

    name: str
    tag: tuple[int, int]
    attributes: dict[str, str]
    parts: list[str | Element] = field(default_factory=list)
    end_tag: tuple[int, int] = (0, 0)

    def child(self, name: str) -> Element | None:
        """Return the first child of this name."""
        return next((part for part in self.parts if isinstance(part, Element) and part.name == name), None)

    def children(self, name: str) -> list[Element]:
        """Return the children of this name."""
        return [part for part in self.parts if isinstance(part, Element) and part.name == name]


@dataclass(frozen=True)
class Piece:
    """An inline tag, or an element that is restored as a whole.

    Attributes:
        element: Its element.
        role: "open" or "close"; "whole" for an element without text.
        shown: As the model sees it.
        raw: As the file has it.
    """

    element: Element
    role: str
    shown: str
    raw: bytes


def parse_xliff(data: bytes) -> tuple[Element, list[tuple[Element, Element, Element]]]:
    """Return the root, and of each segment (the element that names the languages, its unit, the segment)."""
    parser = expat.ParserCreate("utf-8")
    parser.ordered_attributes = True
    root = Element("", (0, 0), {})
    stack, segments = [root], []

    def start(name: str, attributes: list[str]) -> None:
        tag = _TAG.match(data, parser.CurrentByteIndex)
        assert tag is not None
        pairs = zip(attributes[::2], attributes[1::2], strict=True)
        named = {key.rpartition(":")[2]: value for key, value in pairs if key.partition(":")[0] != "xmlns"}
        element = Element(name.rpartition(":")[2], tag.span(), named)
        stack[-1].parts.append(element)
        stack.append(element)
        if element.name == "trans-unit" or (element.name == "segment" and stack[-2].name == "unit"):
            holder = "file" if element.name == "trans-unit" else "xliff"
            unit = element if element.name == "trans-unit" else stack[-2]
            segments.append((next((one for one in stack if one.name == holder), root), unit, element))

    def end(_: str) -> None:
        element = stack.pop()
        is_empty = data[element.tag[1] - 2 : element.tag[1]] == b"/>"
        tag = None if is_empty else _TAG.match(data, parser.CurrentByteIndex)
        element.end_tag = tag.span() if tag else (element.tag[1], element.tag[1])

    def text(written: str) -> None:
        if any(element.name == "source" for element in stack):  # of no other element is the text needed
            stack[-1].parts.append(written)

    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, text
    parser.Parse(data, True)
    return root, segments


def pieces_of(element: Element, data: bytes) -> Iterator[str | Piece]:
    """Yield the texts and the inline tags of a segment, as catalogues shows them to a model."""
    for part in element.parts:
        if isinstance(part, str):
            yield part
            continue
        inner = list(pieces_of(part, data))
        if part.name == "mrk":
            yield from inner
            continue
        attributes = "".join(f' {key}="{value}"' for key, value in part.attributes.items())
        shown = "".join(one if isinstance(one, str) else one.shown for one in inner)
        opening, closing = f"<{part.name}{attributes}>", f"</{part.name}>"
        if not shown or part.name in _CODE:
            whole = f"{opening}{shown}{closing}" if shown else f"{opening[:-1]}/>"
            yield Piece(part, "whole", whole, data[part.tag[0] : part.end_tag[1]])
        else:
            yield Piece(part, "open", opening, data[slice(*part.tag)])
            yield from inner
            yield Piece(part, "close", closing, data[slice(*part.end_tag)])


def restored(text: str, parts: list[str | Piece]) -> tuple[bytes, list[str]]:
    """Return the content of a target with the inline elements of its source, and what is wrong with these.

    A tag that the model changed is the first of its kind that it did not write as it is. Tags that are lost are left
    out, and so are all pairs of tags if they are not nested.
    """
    pieces = [part for part in parts if isinstance(part, Piece)]
    names = {piece.element.name for piece in pieces}
    wholes = sorted({re.escape(one.shown) for one in pieces if not _INLINE.fullmatch(one.shown)}, key=len, reverse=True)
    found: list[str | Piece] = []
    done = 0
    matches = list(re.finditer("|".join([*wholes, _INLINE.pattern]), text))
    written = {match[0] for match in matches}
    # The pieces that the model wrote as they are, and the others by their kind.
    unused: dict[str | tuple[str, str], deque[Piece]] = defaultdict(deque)
    for piece in pieces:
        unused[piece.shown if piece.shown in written else (piece.role, piece.element.name)].append(piece)
    for match in matches:
        closes, name, is_whole = match.groups()
        kind = ("close" if closes else "whole" if is_whole else "open", name)
        waiting = unused[match[0]] or unused[kind]
        if not waiting and name not in names:
            continue  # a tag that is text
        found.append(text[done : match.start()])
        done = match.end()
        if waiting:
            found.append(waiting.popleft())
    found.append(text[done:])
    used = {id(one) for one in found}
    problems = [f"{one.shown} missing" for one in pieces if id(one) not in used]
    if not _is_nested(found):
        problems = problems or ["the inline elements are not nested"]
        found = [one for one in found if isinstance(one, str) or one.role == "whole"]
    return b"".join(escape(one).encode() if isinstance(one, str) else one.raw for one in found), problems


def _is_nested(found: list[str | Piece]) -> bool:
    opened: list[Element] = []
    for one in found:
        if isinstance(one, str) or one.role == "whole":
            continue
        if one.role == "open":
            opened.append(one.element)
        elif not opened or opened.pop() is not one.element:
            return False
    return not opened


def with_attributes(tag: bytes, attributes: dict[str, str | None]) -> bytes:
    """Return a start tag with these attributes; None removes one."""
    for name, value in attributes.items():
        pattern = re.compile(rb"\s+" + name.encode() + rb"\s*=\s*(\"[^\"]*\"|'[^']*')")
        match = pattern.search(tag)
        written = b"" if value is None else b" " + name.encode() + b"=" + quoteattr(value).encode()
        if match is not None:
            start = match.group(0)
            space = re.match(rb"\s+", start)
            assert space is not None
            tag = tag[: match.start()] + (space[0] + written[1:] if written else b"") + tag[match.end() :]
        elif written:
            place = -2 if tag.endswith(b"/>") else -1
            tag = tag[:place].rstrip() + written + tag[place:]
    return tag
