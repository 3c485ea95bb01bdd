"""Read the entries of catalogues: gettext here, by translate-toolkit; XML in xml_catalogues.py.

An entry is a row with a "translation" and its context, comment and references. Its state is one of rows.REASONS: "kept"
for a translated one. Nothing but the file is read.
"""

from __future__ import annotations

import codecs
import gettext
import re
import struct
from collections.abc import Iterator
from typing import Any

from mtloop.data.entries import KEPT, Entries, content_of, malformed, needing_toolkit, row_of
from mtloop.data.files import CATALOGUES, InputFile, check_magic, not_decodable, unpacked_ending
from mtloop.data.xml_catalogues import xml_entries
from mtloop.errors import UserError, first_line
from mtloop.languages import find_key, is_iso_639

_CHARSET = re.compile(rb'charset=[ \t]*([^"\\\n;]+)')
# KDE 2 wrote both forms into one text, before gettext had plurals.
KDE2_PLURAL = "_n: "
_MO_ORDERS = {b"\xde\x12\x04\x95": "<", b"\x95\x04\x12\xde": ">"}
# A real catalogue shares few texts, if any.
_MAX_SHARED = 16
_LINE_OF_ERROR = re.compile(r"^(?P<problem>.*?) on line (?P<line>\d+): ", re.DOTALL)


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
    languages = source_lang or "source", target_lang or "target"
    if kind in ("tmx", "xliff"):
        return xml_entries(file, kind, languages, fuzzy)
    return _of_gettext(file, kind, *languages, fuzzy)


def parse_gettext(file: InputFile, content: bytes, kind: str = "gettext") -> tuple[Any, str]:
    """Return translate-toolkit's catalogue of a file, and the codec of its bytes.

    Args:
        file: The file, for messages.
        content: Its bytes.
        kind: "gettext", or "compiled" for a .mo file.

    Raises:
        UserError: naming file and line of what is malformed, or the package that is not installed.
    """
    with needing_toolkit(file):
        from translate.storage.mo import mofile
        from translate.storage.pypo import pofile
    if kind == "compiled":
        _check_compiled(file, content)
    else:
        check_magic(file, content[:4])
    catalogue: Any = mofile() if kind == "compiled" else pofile()
    try:
        text, codec = (content, "utf-8") if kind == "compiled" else _in_utf8(file, content)
        catalogue.parse(text)
    except UserError:
        raise
    except Exception as error:  # of the toolkit: PoParseError, IndexError, struct.error, UnicodeError were seen
        last = catalogue.units[-1] if catalogue.units else None
        line, problem = getattr(last, "_line_number", None) or 1, first_line(error) or type(error).__name__
        if place := _LINE_OF_ERROR.match(str(error)):
            line, problem = int(place["line"]), place["problem"]
        elif kind == "compiled":
            problem = f"entry {len(catalogue.units) + 1}: {problem}"
        elif last is not None and line > 1:
            problem = f"in the entry after this one: {problem}"
        raise malformed(file, line, "gettext catalogue", problem) from error
    for unit in catalogue.units:
        if isinstance(forms := getattr(unit, "msgstr", None), dict) and list(forms) != list(range(len(forms))):
            numbers = ", ".join(map(str, forms))
            raise malformed(file, unit._line_number or 1, "gettext catalogue", f"plural forms are numbered {numbers}")
    return catalogue, codec


def _of_gettext(file: InputFile, kind: str, source_lang: str, target_lang: str, fuzzy: str) -> Entries:
    catalogue, _ = parse_gettext(file, content_of(file), kind)
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
            yield where, row_of(file, {source_lang: source, target_lang: target}, unit.getcontext(), *notes), found


def _check_compiled(file: InputFile, content: bytes) -> None:
    """Refuse a compiled catalogue that has a text outside of the file, or one text in too many entries.

    Raises:
        UserError: naming the entry.
    """
    what, size = "compiled gettext catalogue", 0
    if (order := _MO_ORDERS.get(content[:4])) is None:
        raise malformed(file, 1, what, f"it begins with {content[:4]!r}")
    try:
        _, number, *starts = struct.unpack_from(f"{order}4I", content, 4)
        for start in starts:
            table = struct.unpack_from(f"{order}{2 * number}I", content, start)
            for entry, (length, offset) in enumerate(zip(table[::2], table[1::2], strict=True), start=1):
                size += length
                if offset + length > len(content):
                    raise malformed(file, 1, what, f"entry {entry} ends after the end of the file")
    except struct.error as error:
        raise malformed(file, 1, what, "its tables end after the end of the file") from error
    if size > _MAX_SHARED * len(content):
        raise malformed(file, 1, what, "its entries overlap")


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
