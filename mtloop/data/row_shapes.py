"""Read the shapes in which libraries write rows: the forms of a "translation", and a table in one JSON value.

Must not know files or the Hub.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import pyarrow as pa

TRANSLATION = "translation"
# The keys of an item of a map as the datasets library gives it, and of its TranslationVariableLanguages.
_PAIR_KEYS = (("key", "value"), ("language", TRANSLATION))
# An array of NumPy in the Python text of `Dataset.to_csv`.
_ARRAY = re.compile(r"\barray\((\[.*?\])(?:, dtype=\w+)?\)", re.DOTALL)


def by_language(value: Any) -> Any:
    """Return a "translation" as a mapping from language to text, and a value that is none as it is.

    Besides mappings these forms are read: their text as JSON and as Python (of `Dataset.to_csv`), the pairs of a map of
    Arrow or Spark, and {"language": [...], "translation": [...]} of `TranslationVariableLanguages`, of which the first
    text of a language counts. Keys that are not text are left out.
    """
    value = _parsed(value) if isinstance(value, str) else value
    if isinstance(value, Mapping) and "language" not in value and all(isinstance(key, str) for key in value):
        return value  # the usual form
    pairs = _pairs(value)
    return value if pairs is None else dict(reversed(pairs))


def languages_of(value: Any) -> Iterable[str]:
    """Return the languages of a "translation" value, in any of its forms; none for another value."""
    found = by_language(value)
    return found if isinstance(found, Mapping) else ()


def languages_in(schema: pa.Schema) -> list[str]:
    """Return the keys of a "translation" column of structs of languages; none without such a column."""
    kind = schema.field(TRANSLATION).type if TRANSLATION in schema.names else None
    if kind is None or not pa.types.is_struct(kind):
        return []
    keys = [kind.field(i).name for i in range(kind.num_fields)]
    return [] if set(keys) == {"language", TRANSLATION} else keys


def repeated_languages(value: Any) -> set[str]:
    """Return the languages of which a "translation" value has more than one text."""
    if isinstance(value, Mapping) and "language" not in value:  # the usual form
        return set()
    languages = [language for language, _ in _pairs(_parsed(value) if isinstance(value, str) else value) or ()]
    return {language for language in languages if languages.count(language) > 1}


def rows_of(value: Any) -> list[Any]:
    """Return the rows of the only value of a JSON file: those of a table as pandas and others write it, or the value.

    A table is an object of columns of one length, or one of rows by their numbers.
    """
    if not isinstance(value, dict) or not value:
        return [value]
    numbered = _numbered(value)
    if numbered is not None and all(isinstance(row, dict) for row in numbered):
        return numbered
    columns = [_numbered(column) for column in value.values()]
    is_table = None not in columns and len({len(column) for column in columns if column is not None}) == 1
    if not is_table or isinstance(by_language(value.get(TRANSLATION)), Mapping):
        return [value]
    return [dict(zip(value, cells, strict=True)) for cells in zip(*filter(None, columns), strict=True)]


def _numbered(value: Any) -> list[Any] | None:
    """Return the items of a list, or of an object whose keys are numbers; None for another value."""
    if isinstance(value, dict) and all(key.isdecimal() for key in value):
        return list(value.values())
    return value if isinstance(value, list) else None


def _pairs(value: Any) -> list[tuple[str, Any]] | None:
    """Return the languages and texts of a value in order; None for a value that has none."""
    pairs: Iterable[Any] | None = None
    if isinstance(value, Mapping):
        sides = [value.get(key) for key in _PAIR_KEYS[1]]
        is_variable = len(value) == len(sides) and all(isinstance(side, list) for side in sides)
        pairs = zip(*sides, strict=False) if is_variable else value.items()
    elif isinstance(value, list) and value:
        for keys in _PAIR_KEYS:
            if all(isinstance(item, Mapping) and set(item) == set(keys) for item in value):
                pairs = [[item[key] for key in keys] for item in value]
        if all(isinstance(item, Mapping) and len(item) == 1 for item in value):
            pairs = [next(iter(item.items())) for item in value]
        if all(isinstance(item, (list, tuple)) and len(item) == 2 for item in value):
            pairs = value
    if pairs is None:
        return None
    return [(language, text) for language, text in pairs if isinstance(language, str)]


@lru_cache(maxsize=1)  # a row is parsed for its languages, then for its texts
def _parsed(text: str) -> Any:
    """Return the value that a text spells as JSON or Python; other text as it is. It must not be changed."""
    if not text.lstrip().startswith(("{", "[")):
        return text
    for spelled, parse in ((text, json.loads), (text, ast.literal_eval), (_ARRAY.sub(r"\1", text), ast.literal_eval)):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SyntaxWarning)  # of a backslash in Python text
                return parse(spelled)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    return text
