"""Language codes as people write them: fr, fr_FR, fra_Latn, >>fra<< and French are one language.

Must not know tokenizers or data: whoever has codes hands them over. The names, and which codes are one language, come
from Unicode's CLDR through the package langcodes.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

import langcodes

# Unicode's distance of nb from no, and of arb from ar: another spelling of one language. The next are 4 and more.
MAX_DISTANCE = 1
NUM_SHOWN = 8
# What mBART writes for "no region in particular".
ANY_REGION = "XX"


def match_language(wanted: str, known: Iterable[str]) -> list[str]:
    """Find the codes of `known` that mean the language that is wanted.

    Args:
        wanted: A code of any style (fr, fr_FR, fra_Latn, zh-Hans), or a name (French).
        known: Codes of any style; Marian's arrows around them are allowed.

    Returns:
        One code: it is that. Several: `wanted` does not say which (zh of zho_Hans and zho_Hant). None: it is not there.
    """
    known = tuple(known)
    if wanted in known:
        return [wanted]
    alike = [code for code in known if _plain(code) == _plain(wanted)]
    if len(alike) == 1:
        return alike
    meant = _parse(wanted) or _find(wanted)
    return list(_match(meant, known)) if meant is not None else []


def advise(wanted: str, known: Sequence[str]) -> str:
    """Say what to give in place of a language that is not known, or not known enough: the nearest codes."""
    found = match_language(wanted, known)
    if found:
        return f"it may be {_listed(found)}: give one of them"
    by_name = {language_name(code).lower(): code for code in known}
    codes = [by_name[name] for name in difflib.get_close_matches(wanted.lower(), by_name, n=3, cutoff=0.7)]
    if len(wanted) > len("fra"):  # two letters are near everything
        near = difflib.get_close_matches(_plain(wanted), [_plain(code) for code in known], n=3, cutoff=0.6)
        codes += [code for code in known if _plain(code) in near]
    return f"known are {_listed(list(dict.fromkeys(codes)) or known)}"


def language_name(code: str) -> str:
    """Return a language's English name, as `French`; the code itself where it has none."""
    language = _parse(code)
    return language.language_name("en") if language is not None and language.is_valid() else code


def base_code(code: str) -> str:
    """Return the shortest code of the language itself: fr of fra_Latn, zh of cmn_Hans and of Chinese."""
    language = _parse(code) or _find(code)
    if language is None or language.language is None:
        return _plain(code)
    return str(langcodes.Language.get(langcodes.standardize_tag(language.language, macro=True)).language)


def translation_task(source_lang: str, target_lang: str) -> str:
    """Name a pair as T5's config names the task: translation_en_to_fr."""
    return f"translation_{base_code(source_lang)}_to_{base_code(target_lang)}"


def find_key(wanted: str, keys: Iterable[str]) -> str | None:
    """Return the one key that means the wanted language, None where none does or it is not clear which."""
    keys = tuple(keys)
    return wanted if wanted in keys else _find_key(wanted, keys)


@lru_cache(maxsize=1024)
def _find_key(wanted: str, keys: tuple[str, ...]) -> str | None:
    found = match_language(wanted, keys)
    return found[0] if len(found) == 1 else None


def _listed(codes: Sequence[str]) -> str:
    return ", ".join(codes[:NUM_SHOWN]) + (f" and {len(codes) - NUM_SHOWN} more" if len(codes) > NUM_SHOWN else "")


def _plain(code: str) -> str:
    return code.removeprefix(">>").removesuffix("<<").replace("_", "-").lower()


@lru_cache(maxsize=4096)
def _parse(code: str) -> langcodes.Language | None:
    """Read a code; a region without a script has that script which is written there (zh_TW: Hant)."""
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
    return langcodes.Language.make(language=language.language, script=script, territory=territory)


@lru_cache(maxsize=256)
def _find(name: str) -> langcodes.Language | None:
    try:
        return langcodes.find(name)
    except LookupError:
        return None


def _match(meant: langcodes.Language, known: tuple[str, ...]) -> Sequence[str]:
    """Find the codes of the language, in the script and region that are asked for or in none in particular."""
    found = [
        (code, language)
        for code in known
        if (language := _parse(code)) is not None
        and _agree(meant.script, language.script)
        and _agree(meant.territory, language.territory)
        and langcodes.tag_distance(str(meant.language), str(language.language)) <= MAX_DISTANCE
    ]
    # fr of fr and fr_CA; not fa of prs, which is fa_AF, and pes.
    exact = [code for code, one in found if (one.language, one.territory) == (meant.language, meant.territory)]
    return exact if len(exact) == 1 else [code for code, _ in found]


def _agree(wanted: str | None, other: str | None) -> bool:
    return wanted is None or other is None or wanted == other
