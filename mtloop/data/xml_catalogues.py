"""Read the entries of translation memories (.tmx) and XLIFF files by lxml: no DTD, no external entity is read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import IO, Any

from mtloop.data.entries import KEPT, Entries, malformed, needing_toolkit, row_of
from mtloop.data.files import InputFile, reading
from mtloop.errors import UserError, first_line

# Entries of .tmx, XLIFF 1.2 and 2.0.
_ENTRIES = ("tu", "trans-unit", "unit")
# Far beyond real files: lxml takes time by the square of their number.
_MAX_ATTRIBUTES = 1000
# The sub-state of XLIFF 2.0, which has no state for it.
NEEDS_REVIEW = "mtloop:needs-review"


def xml_entries(file: InputFile, root: str, languages: tuple[str, str], fuzzy: str) -> Entries:
    """Yield (file and line, row, state) of each entry.

    Args:
        file: The file to read.
        root: The name of its outermost element: tmx or xliff.
        languages: Those of an XLIFF file that does not name them.
        fuzzy: The state of entries that need a review.

    Raises:
        UserError: naming file and line of what is malformed, or the package that is not installed.
    """
    with needing_toolkit(file):
        from lxml import etree
    with reading(file) as stream:
        try:
            events = _events(file, root, stream)
            yield from _of_tmx(file, events) if root == "tmx" else _of_xliff(file, events, languages, fuzzy)
        except etree.XMLSyntaxError as error:
            line, _ = error.position
            problem = re.sub(r", line \d+, column \d+.*", "", first_line(error))
            raise malformed(file, max(1, line), "XML", problem) from error


def _events(file: InputFile, root: str, stream: IO[bytes]) -> Iterator[tuple[str, Any]]:
    """Yield (event, element) of each start and end of an entry and of what names its languages."""
    from lxml import etree

    tags = [f"{{*}}{name}" for name in ("tmx", "xliff", "file", *_ENTRIES)]  # one with an event is slow to free
    is_checked = False
    parser = etree.iterparse(
        stream,
        events=("start", "end"),
        tag=tags,
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        huge_tree=False,
    )
    for event, element in parser:
        if not is_checked:
            _check_document(file, root, element)
            is_checked = True
        if event == "end" and _name(element) in _ENTRIES:
            most = max(len(one.attrib) for one in element.iter())
            if most > _MAX_ATTRIBUTES:
                raise malformed(file, element.sourceline, "XML", f"an element with {most:,} attributes")
        yield event, element
    if not is_checked:
        _check_document(file, root, parser.root)


def _check_document(file: InputFile, root: str, element: Any) -> None:
    tree = element.getroottree()
    if (dtd := tree.docinfo.internalDTD) is not None and any(True for _ in dtd.iterentities()):
        raise UserError(f"{file.name}:1: entity declarations are refused. Remove them from its DOCTYPE.")
    if (found := _name(tree.getroot())) != root:
        raise malformed(file, tree.getroot().sourceline, "XML", f"expected <{root}>, got <{found}>")


def _forget(element: Any) -> None:
    """Free the memory of an element and of those before it; slow while a variable holds an element inside."""
    element.clear(keep_tail=False)
    parent = element.getparent()
    while parent is not None and element.getprevious() is not None:
        del parent[0]


def _name(element: Any) -> str:
    """Return an element's name without its namespace; empty for a comment, a processing instruction and an entity."""
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def _children(element: Any, name: str) -> list[Any]:
    return [child for child in element if _name(child) == name]


def _of_tmx(file: InputFile, events: Iterator[tuple[str, Any]]) -> Entries:
    for event, element in events:
        if event == "end" and _name(element) == "tu":
            yield _of_tu(file, element)
            _forget(element)


def _of_tu(file: InputFile, element: Any) -> tuple[str, dict[str, Any], str]:
    translation: dict[str, str] = {}
    for variant in _children(element, "tuv"):
        language = variant.get("{http://www.w3.org/XML/1998/namespace}lang") or variant.get("lang") or ""
        for segment in _children(variant, "seg"):
            translation.setdefault(language, _inner(segment, with_tags=False))
    context = " ".join(prop.text or "" for prop in _children(element, "prop") if prop.get("type") == "x-context")
    comment = "\n".join(note.text or "" for note in _children(element, "note"))
    where = f"{file.name}:{element.sourceline}"
    return where, row_of(file, translation, context, comment, element.get("tuid") or ""), KEPT


def _of_xliff(file: InputFile, events: Iterator[tuple[str, Any]], unnamed: tuple[str, str], fuzzy: str) -> Entries:
    languages = unnamed
    for event, element in events:
        if event == "start":
            for source, target in (("source-language", "target-language"), ("srcLang", "trgLang")):  # 1.2, 2.0
                if found := element.get(source):
                    languages = (found, element.get(target) or unnamed[1])
        elif _name(element) in _ENTRIES:
            yield from _of_unit(file, element, languages, fuzzy)
            _forget(element)


def _of_unit(file: InputFile, element: Any, languages: tuple[str, str], fuzzy: str) -> Entries:
    notes = "\n".join(note.text or "" for note in element.iterdescendants() if _name(note) == "note")
    for segment in [element] if _name(element) == "trans-unit" else _children(element, "segment"):
        source, target = ((_children(segment, side) or [None])[0] for side in ("source", "target"))
        translation = {languages[0]: _inner(source), languages[1]: _inner(target)}
        where = f"{file.name}:{segment.sourceline}"
        row = row_of(file, translation, element.get("resname") or "", notes, element.get("id") or "")
        yield where, row, _xliff_state(segment, target, fuzzy)


def _xliff_state(segment: Any, target: Any, fuzzy: str) -> str:
    translate = [one.get("translate") for one in (segment, *segment.iterancestors()) if one.get("translate")]
    if translate[:1] == ["no"]:
        return "not_translatable"
    if not _inner(target):
        return "untranslated"
    state = target.get("state") or segment.get("state") or ""
    if state in ("new", "needs-translation", "initial"):
        return "untranslated"
    return fuzzy if state.startswith("needs-") or segment.get("subState") == NEEDS_REVIEW else KEPT


def _inner(element: Any, *, with_tags: bool = True) -> str:
    """Return the text of a segment.

    Args:
        element: The segment; None for an empty text.
        with_tags: Whether inline elements are written as tags, as those of XLIFF, which stand for markup. Those of TMX
            contain it. The tags have no namespaces; markers are left out.
    """
    if element is None:
        return ""
    parts = [element.text or ""]
    for child in element:
        name, inner = _name(child), _inner(child, with_tags=with_tags) if _name(child) else ""
        if with_tags and name and name != "mrk":
            attributes = "".join(f' {key.rpartition("}")[2]}="{value}"' for key, value in child.attrib.items())
            inner = f"<{name}{attributes}>{inner}</{name}>" if inner else f"<{name}{attributes}/>"
        parts += [inner, child.tail or ""]
    return "".join(parts)
