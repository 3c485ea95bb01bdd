"""Read the entries of gettext catalogues, translation memories and XLIFF files.

gettext is read by translate-toolkit, XML by lxml. An entry is a row with a "translation" and its context, comment and
references. Its state is one of rows.REASONS: "kept" for a translated one. Nothing but the file is read: no DTD, no
external entity.
"""

from __future__ import annotations

import codecs
import gettext
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import IO, Any

from mtloop.data.files import CATALOGUES, InputFile, not_decodable, reading, unpacked_ending
from mtloop.data.row_shapes import TRANSLATION
from mtloop.errors import UserError, first_line, missing_package
from mtloop.languages import find_key, is_iso_639

KEPT = "kept"
# The states of entries that have nothing to translate.
LEFT_OUT = ("header", "obsolete", "not_translatable")
COLUMNS = (TRANSLATION, "context", "comment", "references", "file")
_CHARSET = re.compile(rb'charset=[ \t]*([^"\\\n;]+)')
# KDE 2 wrote both forms into one text, before gettext had plurals.
KDE2_PLURAL = "_n: "
# The sub-state of XLIFF 2.0, which has no state for it.
NEEDS_REVIEW = "mtloop:needs-review"
_LINE_OF_ERROR = re.compile(r"^(?P<problem>.*?) on line (?P<line>\d+): ", re.DOTALL)

Entries = Iterator[tuple[str, dict[str, Any], str]]


def entries(file: InputFile, source_lang: str | None, target_lang: str | None, *, keep_fuzzy: bool) -> Entries:
    """Yield (file and line, row, state) of each entry; a translated entry with plural forms yields one for each form.

    Args:
        file: The file to read.
        source_lang: Names the language of msgid, which a catalogue does not say; None for "source".
        target_lang: The language of msgstr, if the catalogue's header does not name another; None for "target".
        keep_fuzzy: Whether entries that need a review count as translated.

    Raises:
        UserError: naming file and line of what is malformed, or the package that is not installed.
    """
    kind, fuzzy = CATALOGUES[unpacked_ending(file.name)], KEPT if keep_fuzzy else "fuzzy"
    if kind in ("tmx", "xliff"):
        return _of_xml(file, _of_tmx if kind == "tmx" else partial(_of_xliff, fuzzy=fuzzy))
    return _of_gettext(file, kind, source_lang or "source", target_lang or "target", fuzzy)


def _row(file: InputFile, translation: dict[str, str], context: str, comment: str, references: str) -> dict[str, Any]:
    return dict(zip(COLUMNS, (translation, context, comment, references, file.name), strict=True))


@contextmanager
def _needing_toolkit(file: InputFile) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise missing_package(file.name, "translate-toolkit", "l10n", error=error) from error


# gettext


def parse_gettext(file: InputFile, content: bytes, kind: str = "gettext") -> tuple[Any, str]:
    """Return translate-toolkit's catalogue of a file, and the codec of its bytes.

    Args:
        file: The file, for messages.
        content: Its bytes.
        kind: "gettext", or "compiled" for a .mo file.

    Raises:
        UserError: naming file and line of what is malformed, or the package that is not installed.
    """
    with _needing_toolkit(file):
        from translate.storage.mo import mofile
        from translate.storage.pypo import pofile
    try:
        text, codec = (content, "utf-8") if kind == "compiled" else _in_utf8(file, content)
        return (mofile if kind == "compiled" else pofile).parsestring(text), codec
    except UserError:
        raise
    except Exception as error:  # of the toolkit: PoParseError, IndexError, struct.error, UnicodeError were seen
        place = _LINE_OF_ERROR.match(str(error))
        problem = place["problem"] if place else first_line(error) or type(error).__name__
        raise malformed(file, place["line"] if place else 1, "gettext catalogue", problem) from error


def _of_gettext(file: InputFile, kind: str, source_lang: str, target_lang: str, fuzzy: str) -> Entries:
    with reading(file) as stream:
        catalogue, _ = parse_gettext(file, stream.read(), kind)
    header = catalogue.parseheader()
    language = header.get("Language", "").strip()
    if is_iso_639(language) and not find_key(target_lang, [language]):
        target_lang = language  # of another language than was asked for
    number_of_one = form_of_one(header.get("Plural-Forms", ""))
    for unit in catalogue.units:
        where = f"{file.name}:{getattr(unit, '_line_number', None) or 1}"
        notes = unit.getnotes(), " ".join(unit.getlocations())
        state, pairs = state_of(unit, fuzzy), list(_pairs(unit, number_of_one))
        if state == KEPT and not any(target for _, target in pairs):
            state = "untranslated"
        for source, target in pairs if state == KEPT else pairs[:1]:
            found = state if target or state != KEPT else "untranslated"
            yield where, _row(file, {source_lang: source, target_lang: target}, unit.getcontext(), *notes), found


def state_of(unit: Any, fuzzy: str) -> str:
    """Return the state of a gettext entry, whether it is translated or not."""
    if unit.isheader():
        return "header"
    if unit.isobsolete():
        return "obsolete"
    return fuzzy if unit.isfuzzy() else KEPT


def _pairs(unit: Any, number_of_one: int) -> Iterator[tuple[str, str]]:
    """Yield the pairs of an entry: the form for one thing with msgid, every other with msgid_plural."""
    sources, targets = ([str(text) for text in getattr(side, "strings", [side])] for side in (unit.source, unit.target))
    if len(sources) < 2:
        if not sources[0].startswith(KDE2_PLURAL):
            yield sources[0], targets[0]
            return
        sources = sources[0][len(KDE2_PLURAL) :].split("\n", 1)
        targets = targets[0].split("\n")
    singular, plural = [*sources, ""][:2]
    for number, form in enumerate(targets):
        is_singular = number == number_of_one and len(targets) > 1
        yield singular if is_singular or not plural else plural, form


def form_of_one(plural_forms: str) -> int:
    """Return the number of the plural form for one thing, by the rule of the header; 0 without a valid rule."""
    rule = re.search(r"plural\s*=\s*([^;]+)", plural_forms)
    try:
        # The compiler of the standard library, which its own reader of catalogues uses. It bounds length and depth.
        return int(gettext.c2py(rule[1].strip())(1)) if rule else 0
    except (ValueError, ArithmeticError, RecursionError):
        return 0


def _in_utf8(file: InputFile, content: bytes) -> tuple[bytes, str]:
    """Return a catalogue in UTF-8, in which its header says so, and the codec that it declares, in any spelling.

    Raises:
        UserError: naming the first line that is not in this charset.
    """
    end = content.find(b"\nmsgid", content.find(b"msgid") + 1)
    declared = list(_CHARSET.finditer(content, 0, end if end >= 0 else len(content)))
    found = declared[-1] if declared else None
    charset = _charset(found[1].decode("ascii", "replace")) if found else None
    before, after = (content[: found.start(1)], content[found.end(1) :]) if found else (content, b"")
    codec = charset or "utf-8"
    try:
        text = [part.decode(codec) for part in (before, after)]
    except UnicodeDecodeError as error:
        if charset is not None:
            line = content.count(b"\n", 0, error.start + (found.end(1) if found and error.object == after else 0)) + 1
            raise not_decodable(file, line, error, charset) from error
        codec = "iso-8859-1"  # from before UTF-8, which the toolkit reads too
        text = [part.decode(codec) for part in (before, after)]
    return ("UTF-8" if found else "").join(text).encode(), codec


def _charset(declared: str) -> str | None:
    """Return the codec of a declared charset; None for the CHARSET of a template, and for an unknown one."""
    for name in (declared.strip(), "-".join(declared.split())):
        try:
            if codecs.lookup(name)._is_text_encoding:
                return name
        except (LookupError, ValueError):
            continue
    return None


def malformed(file: InputFile, line: int | str, what: str, problem: str) -> UserError:
    """Return the error of a file that cannot be read."""
    return UserError(f"{file.name}:{line}: malformed {what} ({problem}). Correct it, or leave the file out.")


# XML


def _of_xml(file: InputFile, read: Callable[[InputFile, Iterator[tuple[str, Any]]], Entries]) -> Entries:
    with _needing_toolkit(file):
        from lxml import etree
    with reading(file) as stream:
        try:
            yield from read(file, _events(file, stream))
        except etree.XMLSyntaxError as error:
            line, _ = error.position
            problem = re.sub(r", line \d+, column \d+.*", "", first_line(error))
            raise malformed(file, line, "XML", problem) from error


def _events(file: InputFile, stream: IO[bytes]) -> Iterator[tuple[str, Any]]:
    """Yield (event, element) of each start and end; what has ended is forgotten at the next entry's end."""
    from lxml import etree

    is_checked = False
    for event, element in etree.iterparse(
        stream, events=("start", "end"), resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False
    ):
        if not is_checked:
            is_checked = True
            if (dtd := element.getroottree().docinfo.internalDTD) is not None and any(True for _ in dtd.iterentities()):
                raise UserError(f"{file.name}:1: entity declarations are refused. Remove them from its DOCTYPE.")
        yield event, element


def _forget(element: Any) -> None:
    """Free the memory of an element and of those before it."""
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
            translation: dict[str, str] = {}
            for variant in _children(element, "tuv"):
                language = variant.get("{http://www.w3.org/XML/1998/namespace}lang") or variant.get("lang") or ""
                for segment in _children(variant, "seg"):
                    translation.setdefault(language, _inner(segment, with_tags=False))
            context = [prop.text or "" for prop in _children(element, "prop") if prop.get("type") == "x-context"]
            comment = "\n".join(note.text or "" for note in _children(element, "note"))
            where = f"{file.name}:{element.sourceline}"
            yield where, _row(file, translation, " ".join(context), comment, element.get("tuid") or ""), KEPT
            _forget(element)


def _of_xliff(file: InputFile, events: Iterator[tuple[str, Any]], *, fuzzy: str) -> Entries:
    languages = ("source", "target")
    for event, element in events:
        name = _name(element)
        if event == "start":
            for source, target in (("source-language", "target-language"), ("srcLang", "trgLang")):  # 1.2, 2.0
                if found := element.get(source):
                    languages = (found, element.get(target) or "target")
        elif name in ("trans-unit", "unit"):
            segments = [element] if name == "trans-unit" else _children(element, "segment")
            notes = [note.text or "" for note in element.iterdescendants() if _name(note) == "note"]
            for segment in segments:
                source, target = ((_children(segment, side) or [None])[0] for side in ("source", "target"))
                translation = {languages[0]: _inner(source), languages[1]: _inner(target)}
                where = f"{file.name}:{segment.sourceline}"
                row = _row(file, translation, element.get("resname") or "", "\n".join(notes), element.get("id") or "")
                yield where, row, _xliff_state(segment, target, fuzzy)
            _forget(element)


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
