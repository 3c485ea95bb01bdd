"""Fill XLIFF 1.2 and 2.0 files by replacing their targets: all else keeps its bytes. Must not know models."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from xml.parsers import expat
from xml.sax.saxutils import escape, quoteattr

from mtloop.data.catalogues import entries
from mtloop.data.entries import LEFT_OUT, malformed
from mtloop.data.files import InputFile
from mtloop.data.xml_catalogues import NEEDS_REVIEW
from mtloop.errors import UserError
from mtloop.translate.filling import FillOptions, check_language, short_code, text_of
from mtloop.translate.xliff_elements import Element, Piece, parse_xliff, pieces_of, restored, with_attributes

if TYPE_CHECKING:
    from mtloop.translate.translator import Translation

_ENCODING = re.compile(rb"<\?xml[^>]*?encoding\s*=\s*[\"']([\w.:-]+)")
_WHO = "mtloop"


@dataclass
class _Segment:
    """A segment to fill: of 1.2 the trans-unit itself, of 2.0 one of a unit."""

    element: Element
    unit: Element
    parts: list[str | Piece]

    @property
    def source(self) -> str:
        return "".join(part if isinstance(part, str) else part.shown for part in self.parts)


@dataclass
class XliffFile:
    """An XLIFF file to fill, see filling.Document."""

    file: InputFile
    data: bytes
    codec: str
    options: FillOptions
    num_entries: int = 0
    segments: list[_Segment] = field(default_factory=list)
    # Start tags that lack the target language, and the attribute.
    unnamed: list[tuple[Element, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def num_chosen(self) -> int:
        """Return the number of segments that are filled."""
        return len(self.segments)

    @property
    def sources(self) -> list[str]:
        """Return the texts to translate."""
        return [segment.source for segment in self.segments]

    def fill(self, translations: Mapping[str, Translation]) -> tuple[bytes, int]:
        """Return the filled file and the number of segments that need a review, see filling.Document."""
        edits: list[tuple[int, int, bytes]] = []
        missing: dict[Element, list[str]] = {}
        num_failed = 0
        for segment in self.segments:
            text, problems = text_of(segment.source, translations)
            inner, broken = restored(text, segment.parts)
            problems = problems or broken
            num_failed += bool(problems)
            missing.setdefault(segment.unit, []).extend(problems)
            edits += self._target(segment, inner, needs_review=bool(problems) or not self.options.no_fuzzy)
        for unit, problems in missing.items():
            edits += self._notes(unit, ", ".join(dict.fromkeys(problems)))
        if self.segments:
            language = short_code(self.options.target_lang or "").partition("@")[0].replace("_", "-")
            edits += [
                (*one.tag, with_attributes(self.data[slice(*one.tag)], {name: language})) for one, name in self.unnamed
            ]
        parts, done = [], 0
        for start, end, written in sorted(edits, key=lambda edit: edit[:2]):
            parts += [self.data[done:start], written]
            done = end
        filled = b"".join([*parts, self.data[done:]])
        if self.codec != "utf-8":
            filled = filled.decode("utf-8").encode(self.codec, "xmlcharrefreplace")
        return filled, num_failed

    def _target(self, segment: _Segment, inner: bytes, *, needs_review: bool) -> Iterator[tuple[int, int, bytes]]:
        """Yield the edits that set the target of a segment and its state."""
        element, unit = segment.element, segment.unit
        source, target = element.child("source"), element.child("target")
        assert source is not None
        tag = b"<" + self._prefix(source) + b"target>" if target is None else self.data[slice(*target.tag)]
        tag = tag if not tag.endswith(b"/>") else tag[:-2].rstrip() + b">"
        if element is unit:  # 1.2
            state = "needs-review-translation" if needs_review else "translated"
            tag = with_attributes(tag, {"state": state, "state-qualifier": "mt-suggestion"})
            if element.attributes.get("approved") == "yes":
                yield *element.tag, with_attributes(self.data[slice(*element.tag)], {"approved": "no"})
        else:
            states = {"state": "translated", "subState": NEEDS_REVIEW if needs_review else None}
            yield *element.tag, with_attributes(self.data[slice(*element.tag)], states)
        name = re.match(rb"<[^\s/>]+", tag)
        assert name is not None
        written = tag + inner + b"</" + name[0][1:] + b">"
        if target is not None:
            yield target.tag[0], target.end_tag[1], written
        else:
            before = element.child("seg-source") or source
            yield before.end_tag[1], before.end_tag[1], self._indent(source) + written

    def _notes(self, unit: Element, missing: str) -> Iterator[tuple[int, int, bytes]]:
        """Yield the edits that replace our note in a unit."""
        is_unit = unit.name == "unit"
        holder = unit.child("notes") if is_unit else unit
        notes = holder.children("note") if holder is not None else []
        ours = [note for note in notes if _WHO in (note.attributes.get("from"), note.attributes.get("category"))]
        is_whole = is_unit and holder is not None and ours == notes and not missing
        for one in ours[1:] if missing else [holder] if is_whole and holder is not None else ours:
            yield one.tag[0] - len(self._indent(one)), one.end_tag[1], b""
        if not missing:
            return
        first = next(part for part in unit.parts if isinstance(part, Element))
        prefix, indent = self._prefix(first), self._indent(first)
        by = "category" if is_unit else "from"
        note = f"note {by}={quoteattr(_WHO)}>{escape(missing)}</".encode()
        written = b"<" + prefix + note + prefix + b"note>"
        if ours:
            yield ours[0].tag[0], ours[0].end_tag[1], written
        elif not is_unit:
            target = unit.child("target") or unit.child("seg-source") or unit.child("source")
            assert target is not None
            yield target.end_tag[1], target.end_tag[1], indent + written
        elif notes:
            place = notes[-1].end_tag[1]
            yield place, place, self._indent(notes[-1]) + written
        else:
            behind = ("originalData", "segment", "ignorable")
            place = next(part.tag[0] for part in unit.parts if isinstance(part, Element) and part.name in behind)
            yield place, place, b"<" + prefix + b"notes>" + written + b"</" + prefix + b"notes>" + indent

    def _prefix(self, element: Element) -> bytes:
        """Return the prefix of an element's name, with its colon."""
        match = re.match(rb"<([^\s/>:]+:)", self.data[slice(*element.tag)])
        return match[1] if match else b""

    def _indent(self, element: Element) -> bytes:
        """Return the white space before an element, if it begins with the end of a line."""
        start = position = element.tag[0]
        while start > 0 and self.data[start - 1 : start].isspace():
            start -= 1
        space = self.data[start:position]
        return space[space.rfind(b"\n") - (b"\r\n" in space) :] if b"\n" in space else b""


def read_xliff(file: InputFile, content: bytes, options: FillOptions) -> XliffFile:
    """Read an XLIFF file to fill.

    Raises:
        UserError: naming file and line of what is malformed, of another language, or not in its encoding.
    """
    states = [state for _, _, state in entries(file, None, None, keep_fuzzy=False)]
    codec = _codec(content)
    try:
        data = content if codec == "utf-8" else content.decode(codec).encode("utf-8")
        is_same = codec == "utf-8" or data.decode("utf-8").encode(codec) == content
    except (LookupError, UnicodeError):
        is_same = False
    if not is_same:
        raise UserError(f"{file.name}:1: cannot be written in its encoding (got {codec}). Convert it to UTF-8.")
    try:
        root, segments = parse_xliff(data)
    except expat.ExpatError as error:  # what lxml accepts
        raise malformed(file, error.lineno, "XML", expat.ErrorString(error.code)) from error
    document = XliffFile(file, data, codec, options)
    if len(segments) != len(states):
        raise malformed(file, 1, "XLIFF", f"{len(states)} segments, and {len(segments)} of them at their place")
    holders: dict[Element, str] = {}
    for (holder, unit, element), state in zip(segments, states, strict=True):
        source = element.child("source")
        parts = [] if source is None else list(pieces_of(source, data))
        segment = _Segment(element, unit, parts)
        if state in LEFT_OUT or not segment.source:
            continue
        document.num_entries += 1
        if options.selects(state):
            document.segments.append(segment)
            holders[holder] = "target-language" if element is unit else "trgLang"
    for holder, attribute in holders.items():
        line = data.count(b"\n", 0, holder.tag[0]) + 1
        language = holder.attributes.get(attribute, "")
        check_language(file, line, language, options.target_lang)
        if holder is not root and not language and (options.target_lang or attribute == "trgLang"):
            if not options.target_lang:
                raise UserError(f"--target_lang: missing, and {file.name}:{line} has no {attribute}. Give its code.")
            document.unnamed.append((holder, attribute))
            document.notes.append(f"line {line}: {attribute} is set to {short_code(options.target_lang)}")
    return document


def _codec(content: bytes) -> str:
    """Return the codec of an XML file, under which a mark at its start is a character."""
    for codec in ("utf-16-le", "utf-16-be"):
        if content.startswith(("\ufeff".encode(codec), "<".encode(codec))):
            return codec
    declared = _ENCODING.match(content.removeprefix(b"\xef\xbb\xbf"))
    name = declared[1].decode("ascii").lower() if declared else "utf-8"
    return "utf-8" if name in ("utf-8", "utf8") else name
