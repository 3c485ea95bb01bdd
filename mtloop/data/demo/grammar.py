"""Draw the pairs of the corpus: fill the slots of a pattern of patterns.txt with words that go together.

Owns the combinations of words and all use of randomness. Must not know the sentences. Only `Random.random` is used: its
sequence is the same in every version of Python, which is not guaranteed for `choice` or `shuffle`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from random import Random
from string import Formatter
from typing import TypeVar

from mtloop.data.demo.words import (
    ADJECTIVES,
    ATTRIBUTES,
    CONSTANTS,
    NOUNS,
    VERBS,
    Adjective,
    EnglishPhrase,
    EnglishVerb,
    FrenchPhrase,
    FrenchVerb,
    Noun,
    Phrase,
    Verb,
    capitalise,
    join_french,
    read_sections,
)

Item = TypeVar("Item")
Slots = dict[str, object]

NUM_TRAIN = 12_000
NUM_VALID = 1_000

# sha256 of the JSON of each split's pairs: a run with cached rows need not draw the 13,168 pairs.
PAIRS_SHA256 = {
    "train": "2b873a109ec23dbb694a3d1088de2be04898bb30a8677a33257f90da6d63a35d",
    "validation": "67589bec6afc057874aef50871618990d37fa53576a50dab31f07b68b7518a49",
}

_SEED = 20_240
_MIN_SOURCE_WORDS, _MAX_SOURCE_WORDS = 4, 20
_NOT_CONTENT = re.compile(r"[^a-z0-9%]+")

_PLURAL_SHARE, _OTHER_PLURAL_SHARE, _ADJECTIVE_SHARE, _SUFFIX_SHARE = 0.35, 0.2, 0.55, 0.2
_ANY_TAGS = "DEUHSGTK"
# The slot of the object of each verb; the slot of the subject of each predicate adjective, and its possible marks.
_OBJECT = {"v": "o", "w": "y"}
_SUBJECT = {
    "q": ("o", "?+-~"),
    "fit": ("o", "+"),
    "unfit": ("o", "-"),
    "once": ("x", "+"),
    "because": ("x", "-"),
    "s": ("t", "+-~"),
}


@dataclass(frozen=True)
class Pattern:
    """A template pair and the words that may fill it.

    `o`, `x` and `z` name the tags of which the nouns in these slots need one, "" for any; `number` is "singular",
    "plural" or "any" for o; `verbs` is the key of _VERBS_OF for v, "" for any verb.
    """

    english: str
    french: str
    o: str = ""
    x: str = "C"
    z: str = "C"
    number: str = "any"
    verbs: str = ""


def _read_patterns() -> list[Pattern]:
    patterns = []
    for line in (line for lines in read_sections("patterns.txt").values() for line in lines):
        english, french, *options = line.split(" | ")
        patterns.append(Pattern(english, french, **dict(option.split("=") for option in " ".join(options).split())))
    return patterns


PATTERNS = _read_patterns()
_VERBS_OF: dict[str, tuple[str, ...]] = {
    "": (),
    "FILE": ("open", "edit", "print", "convert", "compress", "encrypt", "sign", "read", "play", "translate", "export"),
    "PLACE": ("save", "copy", "move", "export", "extract", "install", "insert", "paste", "create", "write"),
    "KNOWN": ("replace", "rename", "delete", "open", "duplicate", "edit", "restore", "update", "select"),
}


def demo_pairs(split: str) -> list[tuple[str, str]]:
    """Return the pairs of a split; the same on every machine and Python version.

    Args:
        split: "train" (`NUM_TRAIN` pairs) or "validation" (`NUM_VALID` pairs). No source occurs twice, in one split
            or in both, even ignoring case, spacing and punctuation.

    Returns:
        (English, French) pairs; the list is the caller's own.

    Raises:
        ValueError: for another split.
    """
    if split not in ("train", "validation"):
        raise ValueError(f"split of the demo corpus is {split!r}; use 'train' or 'validation'")
    every = (NUM_TRAIN + NUM_VALID) // NUM_VALID
    is_valid_split = split == "validation"
    return [pair for index, pair in enumerate(_all_pairs()) if (index % every == 0) == is_valid_split]


@cache
def _all_pairs() -> tuple[tuple[str, str], ...]:
    rng = Random(_SEED)
    pairs: dict[str, tuple[str, str]] = {}
    while len(pairs) < NUM_TRAIN + NUM_VALID:
        english, french = draw_pair(rng)
        if _MIN_SOURCE_WORDS <= len(english.split()) <= _MAX_SOURCE_WORDS:
            pairs.setdefault(_NOT_CONTENT.sub(" ", english.lower()).strip(), (english, french))
    return tuple(pairs.values())


def draw_pair(rng: Random) -> tuple[str, str]:
    """Draw a pattern and its words.

    Args:
        rng: the only source of randomness.

    Returns:
        The (English, French) pair.
    """
    pattern = _pick(rng, PATTERNS)
    english, french = _Draw(rng, pattern).bindings()
    return capitalise(pattern.english.format(**english)), capitalise(join_french(pattern.french.format(**french)))


def _pick(rng: Random, items: Sequence[Item]) -> Item:
    return items[int(rng.random() * len(items))]


def _pick_noun(rng: Random, nouns: Sequence[Noun]) -> Noun:
    """Pick a noun; the first of a list comes up about five times as often as the last."""
    share = rng.random()
    return nouns[int(share * (0.3 + 0.7 * share) * len(nouns))]


@cache
def _forms(template: str) -> dict[str, frozenset[str]]:
    """Return for each slot of a template the forms it is asked for."""
    forms: dict[str, frozenset[str]] = {}
    for _, slot, form, _ in Formatter().parse(template):
        if slot:
            forms[slot] = forms.get(slot, frozenset()) | {form or ""}
    return forms


@cache
def _nouns(tags: str, also: str) -> list[Noun]:
    """Return the nouns that have one of `tags` and one of `also`."""
    return [noun for noun in NOUNS if set(noun.tags) & set(tags) and set(noun.tags) & set(also)]


@cache
def _verbs(tags: str, names: tuple[str, ...]) -> list[Verb]:
    return [verb for verb in VERBS if _nouns(verb.tags, tags) and (not names or verb.english in names)]


@cache
def _attributes(tags: str) -> list[Noun]:
    return [noun for noun in ATTRIBUTES if set(noun.tags) & set(tags)]


@cache
def _tags(noun: Noun) -> str:
    """Return the tags by which adjectives go with a noun."""
    return "A" if noun in ATTRIBUTES else noun.tags


@cache
def _adjectives(tags: str, excluded_marks: str) -> list[Adjective]:
    return [word for word in ADJECTIVES if set(word.tags) & set(tags) and not set(word.marks) & set(excluded_marks)]


@cache
def _predicates(tags: str, marks: str) -> list[Adjective]:
    return [word for word in _adjectives(tags, "") if set(word.marks) & set(marks)]


def _excluded_marks(forms: frozenset[str]) -> str:
    """Return the marks of the adjectives that are wrong in these forms: "a next file", "create a damaged file"."""
    if "a" in forms:
        return "~!-"
    return "~!" if forms & {"", "no", "this", "your", "each", "which"} else "~"


class _Draw:
    """The words drawn for one pattern; the slots are drawn in a fixed order."""

    def __init__(self, rng: Random, pattern: Pattern):
        self._rng = rng
        self._pattern = pattern
        self._forms = _forms(pattern.english)
        self._verb_of: dict[str, Verb] = {}
        self._phrases: dict[str, Phrase] = {}

    def bindings(self) -> tuple[Slots, Slots]:
        """Return the slots of the English and the French template."""
        pattern = self._pattern
        self._draw_action("v", pattern.o or _ANY_TAGS + "P", _VERBS_OF[pattern.verbs])
        self._draw_action("w", _ANY_TAGS, ())
        for slot, tags in (("o", pattern.o or _ANY_TAGS), ("x", pattern.x), ("z", pattern.z), ("p", "P")):
            if slot in self._forms and slot not in self._phrases:
                self._draw_phrase(slot, tags, tags)
        for slot in ("t", "u"):
            if slot in self._forms:
                self._draw_attribute(slot)
        english: Slots = {slot: EnglishPhrase(phrase) for slot, phrase in self._phrases.items()}
        french: Slots = {slot: FrenchPhrase(phrase) for slot, phrase in self._phrases.items()}
        for slot, verb in self._verb_of.items():
            english[slot], french[slot] = EnglishVerb(verb), FrenchVerb(verb, self._phrases[_OBJECT[slot]])
        for slot in self._forms:
            if slot in _SUBJECT:
                english[slot], french[slot] = self._draw_predicate(*_SUBJECT[slot])
            elif slot in CONSTANTS:
                english[slot], french[slot] = _pick(self._rng, CONSTANTS[slot])
        return english, french

    def _draw_action(self, slot: str, tags: str, names: tuple[str, ...]) -> None:
        if slot in self._forms:
            used = [verb.english for verb in self._verb_of.values()]
            verb = _pick(self._rng, [verb for verb in _verbs(tags, names) if verb.english not in used])
            self._verb_of[slot] = verb
            self._draw_phrase(_OBJECT[slot], verb.tags, tags, verb)

    def _draw_phrase(self, slot: str, tags: str, also: str, verb: Verb | None = None) -> None:
        rng, number = self._rng, self._pattern.number if slot == "o" else "any"
        used = [phrase.noun for phrase in self._phrases.values()]
        noun = _pick_noun(rng, [noun for noun in _nouns(tags, also) if noun not in used])
        share = _PLURAL_SHARE if slot == "o" else _OTHER_PLURAL_SHARE
        is_plural = number == "plural" or (number == "any" and rng.random() < share)
        forms = self._forms[slot]
        adjective = None
        if rng.random() < _ADJECTIVE_SHARE and not self._has_predicate(slot):
            adjective = self._adjective(noun, _excluded_marks(forms), verb)
        is_named = slot == "o" and not is_plural and "the" in forms and "%" not in self._pattern.english
        suffix = "%1" if is_named and rng.random() < _SUFFIX_SHARE else ""
        self._phrases[slot] = Phrase(noun, adjective, is_plural, suffix)

    def _draw_attribute(self, slot: str) -> None:
        used = [phrase.noun for phrase in self._phrases.values()]
        noun = _pick(self._rng, [noun for noun in _attributes(self._phrases["o"].noun.tags) if noun not in used])
        adjective = None
        if self._rng.random() < _ADJECTIVE_SHARE and "the" in self._forms[slot] and not self._has_predicate(slot):
            adjective = self._adjective(noun, "~", None)
        self._phrases[slot] = Phrase(noun, adjective)

    def _has_predicate(self, slot: str) -> bool:
        return any(slot == _SUBJECT[other][0] for other in self._forms if other in _SUBJECT)

    def _adjective(self, noun: Noun, excluded_marks: str, verb: Verb | None) -> Adjective | None:
        """Draw an adjective other than the verb's participle: no "lock the locked file"."""
        words = _adjectives(_tags(noun), excluded_marks)
        words = [word for word in words if verb is None or word.french[0] != verb.done[0]]
        return _pick(self._rng, words) if words else None

    def _draw_predicate(self, slot: str, marks: str) -> tuple[str, str]:
        phrase = self._phrases[slot]
        participles = [verb.done[0] for verb in self._verb_of.values()]
        words = [word for word in _predicates(_tags(phrase.noun), marks) if word.french[0] not in participles]
        word = _pick(self._rng, words)
        return word.english, word.french[phrase.agreement()]
