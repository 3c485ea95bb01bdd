"""Read the vocabulary of the embedded corpus, words.txt, and inflect words and noun phrases in English and French.

Owns regular forms, determiners, agreement, the place of adjectives, elision and contraction. words.txt explains its
entries and their tags. Must not know the patterns or how words are drawn. In a pattern `{o:the}` formats a phrase as
"the file" / "le fichier", `{v:done}` a verb as the participle that agrees with its object, `{q}` an adjective that
agrees with its subject.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.resources import files


def read_sections(name: str) -> dict[str, list[str]]:
    """Return the lines of each [section] of a file in this folder, without blank lines and comments."""
    sections: dict[str, list[str]] = {}
    for line in files("mtloop.data.demo").joinpath(name).read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            lines = sections[line.strip("[]")] = []
        elif line and not line.startswith("#"):
            lines.append(line)
    return sections


# The words are compared and hashed by identity (eq=False): two entries are never the same word, and drawing is faster.


@dataclass(frozen=True, eq=False)
class Noun:
    """A noun in both languages; each pair of forms is (singular, plural)."""

    english: tuple[str, str]
    french: tuple[str, str]
    is_feminine: bool
    is_aspirated: bool
    tags: str


@dataclass(frozen=True, eq=False)
class Verb:
    """A transitive verb; `done` holds the participle as (masculine, feminine, masculine plural, feminine plural)."""

    english: str
    participle: str
    gerund: str
    infinitive: str
    done: tuple[str, ...]
    action: str
    action_is_feminine: bool
    tags: str


@dataclass(frozen=True, eq=False)
class Adjective:
    """An adjective; `french` holds its four forms in the order of `Verb.done`, `marks` are explained at the table."""

    english: str
    french: tuple[str, ...]
    marks: str
    tags: str


def french_plural(singular: str) -> str:
    """Return the regular plural of a French noun or masculine adjective."""
    if singular.endswith(("s", "x", "z")):
        return singular
    if singular.endswith("al"):
        return singular[:-2] + "aux"
    return singular + ("x" if singular.endswith(("eau", "jeu", "feu")) else "s")


def french_forms(spelled: str) -> tuple[str, ...]:
    """Complete `masculine[/feminine[/plurals]]` to the four forms of a French adjective or participle."""
    forms = spelled.split("/")
    if len(forms) == 4:
        return tuple(forms)
    masculine = forms[0]
    feminine = forms[1] if len(forms) > 1 else masculine + ("" if masculine.endswith("e") else "e")
    return masculine, feminine, french_plural(masculine), french_plural(feminine)


def _english_plural(singular: str) -> str:
    if singular.endswith("y") and singular[-2] not in "aeo":
        return singular[:-1] + "ies"
    return singular + ("es" if singular.endswith(("s", "x", "ch", "sh")) else "s")


def _noun(entry: str) -> Noun:
    english, right = entry.split(" = ")
    french, gender, tags = right.rsplit(" ", 2)
    singular, _, plural = english.partition("/")
    french_singular, _, plural_french = french.partition("/")
    return Noun(
        (singular, plural or _english_plural(singular)),
        (french_singular, plural_french or french_plural(french_singular)),
        gender.startswith("f"),
        gender.endswith("h"),
        tags,
    )


def _verb(entry: str) -> Verb:
    english, right = entry.split(" = ")
    infinitive, done, action, tags = right.split(" | ")
    base, *irregular = english.split("/")
    stem = base[:-1] if base.endswith("e") else base
    past = base[:-1] + "ied" if base.endswith(("py", "fy", "ly")) else stem + "ed"
    participle, gerund = irregular or (past, stem + "ing")
    noun, gender = action.rsplit(" ", 1)
    return Verb(base, participle, gerund, infinitive, french_forms(done), noun, gender == "f", tags)


def _adjective(entry: str) -> Adjective:
    english, right = entry.split(" = ", 1)
    french, tags = right.rsplit(" ", 1)
    spelled = french.lstrip("<=!?~+-")
    marks = french[: len(french) - len(spelled)]
    return Adjective(english, (spelled,) * 4 if "=" in marks else french_forms(spelled), marks, tags)


def _entries(lines: list[str]) -> list[str]:
    return [entry.strip() for line in lines for entry in line.split(";")]


def _constants(lines: list[str]) -> dict[str, list[tuple[str, str]]]:
    constants: dict[str, list[tuple[str, str]]] = {}
    for line in lines:
        kind, _, entries = line.partition(": ")
        for entry in _entries([entries]):
            english, _, french = entry.partition(" = ")
            constants.setdefault(kind, []).append((english, french or english))
    return constants


_SECTIONS = read_sections("words.txt")
NOUNS = [_noun(entry) for entry in _entries(_SECTIONS["nouns"])]
ATTRIBUTES = [_noun(entry) for entry in _entries(_SECTIONS["attributes"])]
VERBS = [_verb(entry) for entry in _entries(_SECTIONS["verbs"])]
ADJECTIVES = [_adjective(entry) for entry in _entries(_SECTIONS["adjectives"])]
CONSTANTS = _constants(_SECTIONS["constants"])

# (singular, plural)
_ENGLISH_BY_NUMBER = {
    "be": ("is", "are"),
    "has": ("has", "have"),
    "does": ("does", "do"),
    "exists": ("exists", "exist"),
    "contains": ("contains", "contain"),
    "it": ("it", "them"),
    "this": ("this", "these"),
}
_FRENCH_BY_NUMBER = {
    "be": ("est", "sont"),
    "be_not": ("n'est pas", "ne sont pas"),
    "has": ("a", "ont"),
    "has_not": ("n'a pas", "n'ont pas"),
    "will_be": ("sera", "seront"),
    "can": ("peut", "peuvent"),
    "cannot": ("ne peut pas", "ne peuvent pas"),
    "exists": ("existe", "existent"),
    "exists_not": ("n'existe pas", "n'existent pas"),
    "contains": ("contient", "contiennent"),
}
# (masculine, feminine, masculine plural, feminine plural)
_FRENCH_BY_GENDER = {
    "it": ("le", "la", "les", "les"),
    "has_it": ("a-t-il", "a-t-elle", "ont-ils", "ont-elles"),
    "only": french_forms("seul"),
    "found": french_forms("trouvé"),
    "passed": french_forms("passé"),
}
_FRENCH_DETERMINERS = {
    "the": ("le", "la", "les", "les"),
    "a": ("un", "une", "des", "des"),
    "this": ("ce", "cette", "ces", "ces"),
    "your": ("votre", "votre", "vos", "vos"),
    "all": ("tous les", "toutes les", "tous les", "toutes les"),
    "each": ("chaque", "chaque", "chaque", "chaque"),
    "no": ("aucun", "aucune", "aucun", "aucune"),
    "which": ("quel", "quelle", "quels", "quelles"),
}
_ENGLISH_DETERMINERS = {"the": "the", "your": "your", "all": "all the", "each": "each", "no": "no", "which": "which"}
# Written with a vowel, spoken with a consonant: "a user", "a USB key".
_SPOKEN_CONSONANT = re.compile(r"us|uni")

_VOWELS = "aeiouyàâéèêëîïôûœæAEIOUYÀÂÉÈÊËÎÏÔÛŒÆ"
_ASPIRATED = [form for noun in (*NOUNS, *ATTRIBUTES) if noun.is_aspirated for form in noun.french]
_BEFORE_VOWEL = rf"(?!(?:{'|'.join(map(re.escape, _ASPIRATED))})\b)(?=[{_VOWELS}hH])"
_ELISION = re.compile(rf"\b([lLdDnN])(?:e|a) {_BEFORE_VOWEL}|\b([qQ]u)e {_BEFORE_VOWEL}")
_CONTRACTION = re.compile(r"\b(de les|de le|à les|à le) ")
_CONTRACTED = {"de le": "du", "de les": "des", "à le": "au", "à les": "aux"}
_STARTS_WITH_VOWEL = re.compile(_BEFORE_VOWEL)
_SENTENCE_START = re.compile(r"(?:^|[.?!] )(\w)")


@dataclass(frozen=True)
class Phrase:
    """The content of a noun phrase, in no language yet; `suffix` is "" or a placeholder for the name of the thing."""

    noun: Noun
    adjective: Adjective | None = None
    is_plural: bool = False
    suffix: str = ""

    def agreement(self) -> int:
        """Return the index of this phrase's gender and number among the four French forms."""
        return 2 * self.is_plural + self.noun.is_feminine


class EnglishPhrase:
    """A phrase, formatted with a determiner ("the", "a", ...), as a word agreeing with it ("be", ...) or bare ("")."""

    def __init__(self, phrase: Phrase):
        self._number = int(phrase.is_plural)
        name = phrase.noun.english[self._number]
        self._words = f"{phrase.adjective.english} {name}" if phrase.adjective else name
        self._suffix = phrase.suffix and f' "{phrase.suffix}"'

    def __format__(self, form: str) -> str:
        if form == "this":
            return f"{_ENGLISH_BY_NUMBER['this'][self._number]} {self._words}{self._suffix}"
        if form in _ENGLISH_BY_NUMBER:
            return _ENGLISH_BY_NUMBER[form][self._number]
        if form == "a" and not self._number:
            is_vowel = self._words[0] in "aeiouAEIOU" and not _SPOKEN_CONSONANT.match(self._words.lower())
            return f"{'an' if is_vowel else 'a'} {self._words}{self._suffix}"
        determiner = _ENGLISH_DETERMINERS[form] + " " if form in _ENGLISH_DETERMINERS else ""
        return f"{determiner}{self._words}{self._suffix}"


class FrenchPhrase:
    """The French side of `EnglishPhrase`, with the same format specifications and some for French alone."""

    def __init__(self, phrase: Phrase):
        self._phrase = phrase
        self._agreement = phrase.agreement()
        self._suffix = phrase.suffix and f" « {phrase.suffix} »"
        self._words = phrase.noun.french[phrase.is_plural]
        self._is_preposed = bool(phrase.adjective and "<" in phrase.adjective.marks)
        if phrase.adjective:
            form = phrase.adjective.french[self._agreement]
            if form == "nouveau" and starts_with_vowel(self._words):
                form = "nouvel"
            self._words = f"{form} {self._words}" if self._is_preposed else f"{self._words} {form}"

    def __format__(self, form: str) -> str:
        if form in _FRENCH_BY_NUMBER:
            return _FRENCH_BY_NUMBER[form][self._phrase.is_plural]
        if form in _FRENCH_BY_GENDER:
            return _FRENCH_BY_GENDER[form][self._agreement]
        if form == "":
            return self._words + self._suffix
        determiner = _FRENCH_DETERMINERS[form][self._agreement]
        if determiner == "ce" and starts_with_vowel(self._words):
            determiner = "cet"
        if determiner == "des" and self._is_preposed:
            determiner = "de"
        return f"{determiner} {self._words}{self._suffix}"


class EnglishVerb:
    """A verb: base form, or "done" (participle) or "doing" (gerund)."""

    def __init__(self, verb: Verb):
        self._forms = {"": verb.english, "done": verb.participle, "past": verb.participle, "doing": verb.gerund}

    def __format__(self, form: str) -> str:
        return self._forms[form]


class FrenchVerb:
    """A verb: infinitive, "done" (agreeing with its object), "past" (after avoir), "action" or "the_action"."""

    def __init__(self, verb: Verb, phrase: Phrase):
        article = "la" if verb.action_is_feminine else "le"
        self._forms = {
            "": verb.infinitive,
            "done": verb.done[phrase.agreement()],
            "past": verb.done[0],
            "action": verb.action,
            "the_action": f"{article} {verb.action}",
        }

    def __format__(self, form: str) -> str:
        return self._forms[form]


def starts_with_vowel(french: str) -> bool:
    """Return True if French elides before these words: before a vowel or a mute h."""
    return bool(_STARTS_WITH_VOWEL.match(french))


def join_french(text: str) -> str:
    """Elide (le image -> l'image) and contract (de le fichier -> du fichier) the words of a French sentence.

    An object pronoun after "de" or "à" would also be contracted: a pattern must not have one there.
    """
    text = _ELISION.sub(lambda found: f"{found.group(1) or found.group(2)}'", text)
    return _CONTRACTION.sub(lambda found: _CONTRACTED[found.group(1)] + " ", text)


def capitalise(text: str) -> str:
    """Return the text with a capital at the start of each sentence."""
    return _SENTENCE_START.sub(lambda found: found.group().upper(), text)
