"""Match language codes in any style: fr, fr_FR, fra_Latn, >>fra<<, <2fr> and French are one language.

Must not know tokenizers or data: callers pass the codes. Names and the distances of languages come from Unicode's CLDR
through the package langcodes.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache

import langcodes
from langcodes.data_dicts import LIKELY_SUBTAGS, MACROLANGUAGES
from language_data.names import name_to_code

# Unicode's distance of nb from no, and of arb from ar, which are one language. Others are 4 or more.
MAX_DISTANCE = 1
NUM_SHOWN = 8
# gettext's modifiers that name a script (uz@cyrillic), also at the end of a variant (sr@ijekavianlatin). Another one is
# the name or the code of a script (ks@aran), or a variant (ca@valencia) if it is long enough, or it says nothing about
# the language (de@euro).
MODIFIERS = {"latin": "latn", "iqtelif": "latn", "cyrillic": "cyrl", "arabic": "arab", "devanagari": "deva"}
MIN_VARIANT, MAX_VARIANT = 5, 8  # characters of a subtag
# NLLB's members of macrolanguages for which Unicode has other ones (pbu, quz and fuc).
NLLB_MEMBERS = {"pbt": "ps", "quy": "qu", "fuv": "ff"}
# Scripts that have others as parts.
COMPOSITE_SCRIPTS = {
    "Hani": ("Hans", "Hant"),
    "Jpan": ("Hani", "Hira", "Kana", "Hrkt"),
    "Kore": ("Hang", "Hani"),
    "Arab": ("Aran",),
}
# Languages that models or corpora write in another script than Unicode's usual one.
OF_UNSURE_SCRIPT = frozenset(("crh", "sat", "tzm"))
# mBART's code for any region.
ANY_REGION = "XX"
# T5's tokens of target languages (MADLAD-400): <2fr>, <2zh_Hant>, <2nan_Latn_TW>; not its <2translate>, <2Latn> (a
# script), <2CA> (a region) or <2en_xx_simple>.
LANGUAGE_TOKEN = re.compile(r"^<2([a-z]{2,3}(?:[_-](?!xx)[A-Za-z0-9]{2,4}){0,2})>$")
# Scripts that put no spaces between words. Source: Unicode CLDR, scriptMetadata.txt, lines break between letters; and
# Tibetan, Javanese, Balinese and Batak, whose lines break between syllables.
UNSPACED_SCRIPTS = frozenset(
    ("Ahom", "Bopo", "Hanb", "Hani", "Hans", "Hant", "Hira", "Hrkt", "Jpan", "Kana", "Khmr", "Kits", "Lana", "Laoo")
    + ("Mymr", "Nshu", "Tale", "Talu", "Tang", "Tavt", "Thai", "Yiii", "Tibt", "Java", "Bali", "Batk")
)

# First words of the names of letters in Unicode.
_SCRIPTS_BY_NAME = {
    **{"THAI": "Thai", "LAO": "Laoo", "KHMER": "Khmr", "MYANMAR": "Mymr", "TIBETAN": "Tibt", "JAVANESE": "Java"},
    **{"CJK": "Hani", "BOPOMOFO": "Bopo", "HIRAGANA": "Jpan", "KATAKANA": "Jpan", "HANGUL": "Kore", "YI": "Yiii"},
}


def match_language(wanted: str, known: Iterable[str]) -> list[str]:
    """Find the codes of `known` that denote a language.

    Args:
        wanted: A code of any style (fr, fr_FR, fra_Latn, zh-Hans, sr@latin), or a name (French).
        known: Codes of any style; the marks of a language token (>>fra<<, <2fr>) are allowed.

    Returns:
        One code; several if `wanted` is ambiguous (zh of zho_Hans and zho_Hant); none if it is unknown.
    """
    known = tuple(known)
    if wanted in known:
        return [wanted]
    alike = [code for code in known if _plain(code) == _plain(wanted)]
    if len(alike) == 1:
        return alike
    meant = _parse(wanted) or _find(wanted)
    return list(_match(meant, known)) if meant is not None else []


def is_same_language(one: str, other: str) -> bool:
    """Return True if two codes or names denote one language in one script and region: en, eng, en_XX and English.

    zh and zh_Hans do not, nor pt and pt_BR: a model may have both.
    """
    if _plain(one) == _plain(other):
        return True
    first, second = (_parse(code) or _find(code) for code in (one, other))
    if first is None or second is None:
        return False
    scripts = [language.script or _usual_script(language) for language in (first, second)]
    return (
        _is_same(str(first.language), str(second.language))
        and scripts[0] == scripts[1]
        and first.territory == second.territory
        and first.variants == second.variants
    )


def advise(wanted: str, known: Sequence[str]) -> str:
    """Return the remedy for an unknown or ambiguous language: a sentence with the nearest codes.

    The nearest are those of the same language in another script, and the members of a macrolanguage.
    """
    if found := match_language(wanted, known):
        return f"Give one of {_listed(found)}."
    meant = _parse(wanted) or _find(wanted)
    if meant is not None and (relatives := _relatives(meant, known)):
        return f"Give one of {_listed(relatives)}."
    by_name = {language_name(code).lower(): code for code in known}
    codes = [by_name[name] for name in difflib.get_close_matches(wanted.lower(), by_name, n=3, cutoff=0.7)]
    if len(wanted) > len("fra"):  # two letters are similar to every code
        near = difflib.get_close_matches(_plain(wanted), [_plain(code) for code in known], n=3, cutoff=0.6)
        codes += [code for code in known if _plain(code) in near]
    return f"Give one of {_listed(list(dict.fromkeys(codes)) or known)}."


def language_name(code: str) -> str:
    """Return a language's English name (French), or the code itself if it has none."""
    language = _parse(code)
    is_known = language is not None and langcodes.Language.make(language=language.language).is_valid()
    return language.language_name("en") if language is not None and is_known else code


def is_iso_639(code: str) -> bool:
    """Return True if a code is a language of ISO 639, not one for private use or for an unknown language."""
    language = _parse(code)
    return language is not None and language.is_valid() and not "qaa" <= str(language.language) <= "qtz"


def base_code(code: str) -> str:
    """Return the shortest code of a language: fr for fra_Latn, zh for cmn_Hans and for Chinese."""
    language = _parse(code) or _find(code)
    if language is None or language.language is None:
        return _plain(code)
    return str(langcodes.Language.get(langcodes.standardize_tag(language.language, macro=True)).language)


def script_of(code: str) -> str | None:
    """Return the script of a code or language, as Thai, Hans or Latn (ISO 15924); None if it is unknown.

    A code that names no script has the usual one of its language, or of the macrolanguage (cdo: that of zh).
    """
    language = _parse(code) or _find(code)
    if language is None or language.language is None:
        return None
    if language.script is not None:
        return language.script
    known = [tag for tag in (language.language, MACROLANGUAGES.get(language.language)) if tag in LIKELY_SUBTAGS]
    return langcodes.Language.get(known[0]).maximize().script if known else None


def script_of_text(texts: Iterable[str]) -> str | None:
    """Return the script of most letters of some texts, if it puts no spaces between words; None for any other."""
    chars: Counter[str] = Counter()
    for text in texts:
        chars.update(text)
    scripts: Counter[str] = Counter()
    for char, count in chars.items():
        if char.isalpha():
            scripts[_SCRIPTS_BY_NAME.get(unicodedata.name(char, "").partition(" ")[0], "")] += count
    if scripts["Jpan"]:  # with Chinese characters among its letters
        scripts["Jpan"] += scripts.pop("Hani", 0)
    script, count = max(scripts.items(), key=lambda item: item[1], default=("", 0))
    return script if 2 * count > scripts.total() and script else None


def translation_task(source_lang: str, target_lang: str) -> str:
    """Return the name of a pair as T5's config has it: translation_en_to_fr."""
    return f"translation_{base_code(source_lang)}_to_{base_code(target_lang)}"


def find_key(wanted: str, keys: Iterable[str]) -> str | None:
    """Return the only key that denotes the language, None if there is none or more than one."""
    keys = tuple(keys)
    return wanted if wanted in keys else _find_key(wanted, keys)


@lru_cache(maxsize=1024)
def _find_key(wanted: str, keys: tuple[str, ...]) -> str | None:
    found = match_language(wanted, keys)
    return found[0] if len(found) == 1 else None


def _listed(codes: Sequence[str]) -> str:
    return ", ".join(codes[:NUM_SHOWN]) + (f" and {len(codes) - NUM_SHOWN} more" if len(codes) > NUM_SHOWN else "")


def _plain(code: str) -> str:
    bare = code.removeprefix(">>").removesuffix("<<") if code.startswith(">>") else code
    code, _, modifier = LANGUAGE_TOKEN.sub(r"\1", bare).replace("_", "-").lower().partition("@")
    if not modifier:
        return code
    script, variant = _read_modifier(re.sub("[^a-z0-9]", "", modifier))
    language, *rest = code.split("-")
    return "-".join(part for part in (language, script, *rest, variant) if part)


@lru_cache(maxsize=256)
def _read_modifier(modifier: str) -> tuple[str, str]:
    """Return the script and the variant that a modifier of gettext names, "" for none."""
    script = name_to_code("script", modifier, "en")
    if script or (len(modifier) == len("Latn") and langcodes.Language.make(script=modifier.title()).is_valid()):
        return (script or modifier).lower(), ""
    ending = next((ending for ending in MODIFIERS if modifier.endswith(ending)), "")
    variant = modifier.removesuffix(ending)[:MAX_VARIANT]
    return MODIFIERS.get(ending, ""), variant if len(variant) >= MIN_VARIANT else ""


@lru_cache(maxsize=4096)
def _parse(code: str) -> langcodes.Language | None:
    """Parse a code; a region without a script implies the script used there (zh_TW: Hant)."""
    plain = _plain(code)
    if not re.fullmatch(r"[a-z]{2,3}(-[a-z0-9]{2,8})*", plain):
        return None
    try:
        language = langcodes.Language.get(plain)
    except langcodes.LanguageTagError:
        return None
    if language.language is None:
        return None
    territory = None if language.territory == ANY_REGION else language.territory
    script = language.script
    if territory and not script:
        script = language.maximize().script
    return langcodes.Language.make(
        language=language.language, script=script, territory=territory, variants=language.variants
    )


@lru_cache(maxsize=256)
def _find(name: str) -> langcodes.Language | None:
    try:
        return langcodes.find(name)
    except LookupError:
        return None


def _match(meant: langcodes.Language, known: tuple[str, ...]) -> Sequence[str]:
    """Find the codes of a language with a compatible script and region."""
    found = [
        (code, language)
        for code in known
        if (language := _parse(code)) is not None
        and _is_same(str(meant.language), str(language.language))
        and (meant.script is None or _agree(meant.script, language.script or _usual_script(language)))
        and (meant.territory is None or language.territory in (None, meant.territory))
    ]
    # zho_Hant of zh and zh_Hant; fr of fr and fr_CA, not fa of prs, which is fa_AF, and pes; zh_TW of zh and zh_Hant.
    for parts in (
        ("language", "script", "territory", "variants"),
        ("language", "territory", "variants"),
        ("language", "territory"),
        ("language", "script"),
        ("territory",),
    ):
        exact = [code for code, one in found if all(getattr(one, part) == getattr(meant, part) for part in parts)]
        if len(exact) == 1:
            return exact
    return [code for code, _ in found]


def _relatives(meant: langcodes.Language, known: Sequence[str]) -> list[str]:
    """Find the codes of a language in any script, and of the members of a macrolanguage."""
    return [
        code
        for code in known
        if (language := _parse(code)) is not None
        and (_is_same(str(meant.language), str(language.language)) or _macro(language.language) == meant.language)
    ]


def _is_same(one: str, other: str) -> bool:
    return (
        langcodes.tag_distance(one, other) <= MAX_DISTANCE
        or NLLB_MEMBERS.get(one) == other
        or NLLB_MEMBERS.get(other) == one
    )


def _macro(language: str | None) -> str | None:
    return MACROLANGUAGES.get(str(language))


def _usual_script(language: langcodes.Language) -> str | None:
    """Return the script of a code that names none, None if it is not known; zh is written in both scripts."""
    code = str(language.language)
    if code in OF_UNSURE_SCRIPT or code not in LIKELY_SUBTAGS:
        return None
    script = language.maximize().script
    return "Hani" if script in COMPOSITE_SCRIPTS["Hani"] else script


def _agree(wanted: str, other: str | None) -> bool:
    return (
        other is None
        or wanted == other
        or other in COMPOSITE_SCRIPTS.get(wanted, ())
        or wanted in COMPOSITE_SCRIPTS.get(other, ())
    )
