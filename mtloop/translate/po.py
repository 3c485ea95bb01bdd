"""Fill gettext catalogues by replacing lines: all others keep their bytes. Must not know models."""

from __future__ import annotations

import gettext
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtloop.data.catalogues import KDE2_PLURAL, form_of_one, parse_gettext, state_of
from mtloop.data.entries import KEPT, LEFT_OUT, malformed
from mtloop.data.files import InputFile
from mtloop.errors import UserError
from mtloop.languages import base_code
from mtloop.placeholders import lost, spans
from mtloop.translate.filling import COMMENT, FillOptions, check_language, short_code, text_of
from mtloop.translate.po_lines import MSGSTR, NO_WRAP, commented, forms_of, marked, quoted, wrap_width

if TYPE_CHECKING:
    from mtloop.translate.translator import Translation

_KEYWORD = re.compile(rb"\s*msg(?:ctxt|id|str)")
# Formats in which the arguments have an order, and a lone % is an error.
_PRINTF = re.compile(r"(?<![\w-])(?:c|objc|python|php|perl|lua|tcl|awk|pascal)-format")
_MAX_FORMS = 10


@dataclass(frozen=True)
class _Rule:
    """Hold the plural rule of a language: the number of its forms, and which form a number takes.

    Attributes:
        number: The forms; 0 if it is unknown.
        header: As in Plural-Forms; empty if it is unknown.
        stated: The number if the header of the file says it, else 0.
    """

    number: int = 0
    header: str = ""
    stated: int = 0

    @cached_property
    def one(self) -> int:
        """Return the number of the form for one thing."""
        return form_of_one(self.header)

    @cached_property
    def is_one_alone(self) -> bool:
        """Return False if the form for one thing is also that of others, such as 21 in Russian."""
        rule = re.search(r"plural\s*=\s*([^;]+)", self.header)
        try:
            plural = gettext.c2py(rule[1].strip()) if rule else None
            return plural is None or all(plural(number) != self.one for number in range(2, 200))
        except (ValueError, ArithmeticError, RecursionError):
            return True


@dataclass
class _Entry:
    """An entry to fill.

    Attributes:
        first: The number of its first line, from 0.
        end: That of the first line behind it.
        sources: By the plural form, None for an entry without them; in the text of one msgstr for KDE 2.
        is_printf: Whether its flags say that a function of the printf family reads it.
        is_joined: Whether its forms are the lines of one text, as KDE 2 wrote them.
        is_wrapped: Whether its text may be wrapped.
    """

    first: int
    end: int
    sources: dict[int | None, str]
    is_printf: bool = False
    is_joined: bool = False
    is_wrapped: bool = True


@dataclass
class PoFile:
    """A gettext catalogue to fill, see filling.Document."""

    file: InputFile
    lines: list[bytes]
    newline: bytes
    codec: str
    width: int
    options: FillOptions
    rule: _Rule
    num_entries: int = 0
    entries: list[_Entry] = field(default_factory=list)
    header: _Entry | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def num_chosen(self) -> int:
        """Return the number of entries that are filled."""
        return len(self.entries)

    @property
    def sources(self) -> list[str]:
        """Return the texts to translate."""
        return [source for entry in self.entries for source in entry.sources.values()]

    def fill(self, translations: Mapping[str, Translation]) -> tuple[bytes, int]:
        """Return the filled file and the number of entries that need a review, see filling.Document.

        Raises:
            UserError: naming file and line of a translation that the file's charset cannot hold.
        """
        filled: list[bytes] = []
        done = num_failed = 0
        if self.header is not None and self.entries:
            filled += self.lines[: self.header.first] + self._header_lines(self.header)
            done = self.header.end
        for entry in self.entries:
            filled += self.lines[done : entry.first]
            lines, is_failed = self._lines_of(entry, translations)
            filled += lines
            num_failed += is_failed
            done = entry.end
        content = self.newline.join([*filled, *self.lines[done:]])
        try:
            parse_gettext(self.file, content)
        except UserError as error:
            raise self._not_fillable(translations) from error
        return content, num_failed

    def _not_fillable(self, translations: Mapping[str, Translation]) -> UserError:
        """Return the error of the first entry whose lines are not as gettext writes them."""
        line = 1
        for entry in self.entries:
            try:
                parse_gettext(self.file, self.newline.join(self._lines_of(entry, translations)[0]))
            except UserError:
                line = entry.first + 1
                break
        return malformed(self.file, line, "gettext catalogue", "an entry that cannot be filled")

    def _lines_of(self, entry: _Entry, translations: Mapping[str, Translation]) -> tuple[list[bytes], bool]:
        """Return the lines of an entry with its translation, and whether something is missing in it."""
        lines = self.lines[entry.first : entry.end]
        texts, problems = {}, []
        for form, source in entry.sources.items():
            texts[form], found = text_of(source, translations)
            problems += found or (_format_problems(source, texts[form]) if entry.is_printf else [])
        if entry.is_joined:
            texts = {None: "\n".join(texts.values())}
        start = next(number for number, line in enumerate(lines) if MSGSTR.match(line))
        end = 1 + max(number for number, line in enumerate(lines) if line.strip().startswith((b"msgstr", b'"')))
        forms = forms_of(lines[start:end])
        width = self.width if entry.is_wrapped else NO_WRAP
        for form, text in texts.items():
            keyword = "msgstr" if form is None else f"msgstr[{form}]"
            forms[form] = [self._encoded(line, entry) for line in quoted(keyword, text, width)]
        msgstr = [line for form in sorted(forms, key=lambda form: form or 0) for line in forms[form]]
        first = next(number for number, line in enumerate(lines) if _KEYWORD.match(line))
        comments = list(dict.fromkeys(problems))
        head = marked(lines[:first], is_fuzzy=not self.options.no_fuzzy or bool(problems))
        head = commented(head, [self._encoded(f"# {COMMENT}{', '.join(comments)}", entry)] if comments else [])
        return [*head, *lines[first:start], *msgstr, *lines[end:]], bool(problems)

    def _encoded(self, line: str, entry: _Entry) -> bytes:
        try:
            return line.encode(self.codec)
        except UnicodeEncodeError as error:
            bad = error.object[error.start : error.end]
            raise UserError(
                f"{self.file.name}:{entry.first + 1}: {self.codec} cannot hold the translation (got {bad!r}). Convert "
                "the file, for example with msgconv --to-code=UTF-8."
            ) from error

    def _header_lines(self, header: _Entry) -> list[bytes]:
        """Return the header of a template with the fields that its tools left to the translator."""
        lines = self.lines[header.first : header.end]
        first = next(number for number, line in enumerate(lines) if _KEYWORD.match(line))
        head, rest = marked(lines[:first], is_fuzzy=False), lines[first:]
        language = short_code(self.options.target_lang or "")
        fields = {"Language": language, "Plural-Forms": self.rule.header}
        for name, value in fields.items():
            empty = re.compile(rb'"' + name.encode() + rb":\s*(?:nplurals=INTEGER.*)?\\n\"")
            is_there = any(line.strip().startswith(f'"{name}:'.encode()) for line in rest)
            written = f'"{name}: {value}\\n"'.encode()
            rest = [written if empty.fullmatch(line.strip()) else line for line in rest]
            if value and not is_there:
                end = 1 + max(number for number, line in enumerate(rest) if line.strip().startswith((b"msgstr", b'"')))
                rest.insert(end, written)
        return head + [line.replace(b"charset=CHARSET", b"charset=UTF-8") for line in rest]


def read_po(file: InputFile, content: bytes, options: FillOptions) -> PoFile:
    """Read a catalogue to fill.

    Raises:
        UserError: naming file and line of what is malformed, or of a header in another language.
    """
    catalogue, codec = parse_gettext(file, content)
    newline = catalogue.newline.encode()
    lines = content.split(newline)
    units = [(unit, (getattr(unit, "_line_number", None) or 1) - 1) for unit in catalogue.units]
    header = catalogue.parseheader()
    found = next(((unit, line) for unit, line in units if unit.isheader()), None)
    check_language(file, 1 + (found[1] if found else 0), header.get("Language", "").strip(), options.target_lang)
    rule, origin = _rule(header.get("Plural-Forms", ""), header.get("Language", "").strip() or options.target_lang)
    document = PoFile(file, lines, newline, codec, wrap_width(catalogue.units), options, rule)
    has_plurals = False
    ends = [*(line for _, line in units), len(lines)][1:]
    for (unit, first), end in zip(units, ends, strict=True):
        if found is not None and unit is found[0] and _is_template(file, lines[first:end]):
            document.header = _Entry(first, end, {})
        state = state_of(unit, "fuzzy")
        if state in LEFT_OUT or not unit.source:
            continue
        document.num_entries += 1
        if sources := _sources(unit, state, rule, options):
            if not any(map(MSGSTR.match, lines[first:end])):
                raise malformed(file, first + 1, "gettext catalogue", "no line begins with msgstr")
            flags = " ".join(unit.typecomments)
            document.entries.append(
                _Entry(
                    first,
                    end,
                    sources,
                    is_printf=bool(_PRINTF.search(flags)),
                    is_joined=None not in sources and not unit.hasplural(),
                    is_wrapped="no-wrap" not in flags,
                )
            )
            has_plurals |= None not in sources
    if document.header is not None and document.entries:
        if not options.target_lang:
            raise UserError(
                f"--target_lang: missing, and {file.name} is a template, which names no language. Give its code."
            )
        rule_text = f" and Plural-Forms {rule.header}" if rule.header else ""
        document.notes.append(f"header: Language {short_code(options.target_lang)}{rule_text}")
    elif has_plurals and origin:
        document.notes.append(f"no Plural-Forms in the header: {rule.number or 'as many'} forms {origin}")
    return document


def _sources(unit: Any, state: str, rule: _Rule, options: FillOptions) -> dict[int | None, str]:
    """Return the texts of an entry to translate, by plural form: of an untranslated one the forms that are empty."""
    texts, targets = ([str(text) for text in getattr(side, "strings", [side])] for side in (unit.source, unit.target))
    is_partial = state == KEPT and unit.hasplural() and (not all(targets) or (0 < len(targets) < rule.stated))
    if not options.selects("untranslated" if is_partial or not any(targets) else state):
        return {}
    if len(texts) < 2:
        if not texts[0].startswith(KDE2_PLURAL):
            return {None: texts[0]}
        texts = texts[0][len(KDE2_PLURAL) :].split("\n", 1)
    singular, plural = texts[0], texts[-1]
    if not rule.is_one_alone and lost(plural, singular):
        singular = plural
    number_of_forms = rule.number or len(targets)
    kept = {form for form, target in enumerate(targets) if target and is_partial and not options.retranslate}
    return {
        form: singular if form == rule.one and number_of_forms > 1 else plural
        for form in range(number_of_forms)
        if form not in kept
    }


def _rule(header: str, language: str | None) -> tuple[_Rule, str]:
    """Return the plural rule, and how it was found if the header does not say it."""
    number = re.search(r"nplurals\s*=\s*(\d{1,9})\b", header)
    if number and 0 < int(number[1]) <= _MAX_FORMS:
        return _Rule(int(number[1]), header, int(number[1])), ""
    from translate.lang.data import get_language

    for code in (language, base_code(language)) if language else ():
        if found := get_language(code):
            return _Rule(found[1], f"nplurals={found[1]}; plural={found[2]};"), f"by the language, {code}"
    return _Rule(), "as the entries have, of an unknown language; give --target_lang"


def _is_template(file: InputFile, header: list[bytes]) -> bool:
    """Return True for the header of a .pot file, and of a copy of one: their tools leave fields to the translator."""
    return Path(file.name.lower().removesuffix(".gz")).suffix == ".pot" or any(
        b"charset=CHARSET" in one for one in header
    )


def _format_problems(source: str, text: str) -> list[str]:
    """Return what a function of the printf family cannot read: arguments in another order, and a lone %."""
    problems = []
    there, here = ([one for one in spans(side) if one.kind == "printf"] for side in (source, text))
    orders = [[one.key for one in side if not re.search(r"\$|^%[(<]", one.text)] for side in (there, here)]
    if orders[1] and orders[0] != orders[1]:
        problems.append(f"{' '.join(one.text for one in there)} in another order")
    lone = []
    for side in (source, text):
        lone.append(side.count("%") - sum(one.text.count("%") for one in spans(side)))
    if lone[1] > lone[0]:
        problems.append("% added")
    return problems
