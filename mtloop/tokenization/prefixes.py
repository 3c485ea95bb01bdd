"""What stands before every source to say what is wanted: T5's task in words, a multilingual Marian's language token."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from mtloop.errors import UserError
from mtloop.languages import language_name, translation_task
from mtloop.model.families import family_of
from mtloop.tokenization.loading import known_languages, resolve_language

# Names of tasks in a model's config: translation_en_to_fr, and one for a run without languages.
TRANSLATION, TEXT_TO_TEXT = "translation_", "text_to_text"


def source_prefix(
    model_config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    source_lang: str | None,
    target_lang: str | None,
    *,
    is_one_of_several: bool = False,
    must_choose: bool = False,
) -> str | None:
    """Return the prefix that a model needs for a pair of languages; None for one that needs none.

    Args:
        model_config: Says the family, and what earlier training stored there (`remember_prefix`).
        tokenizer: A multilingual Marian's knows its language tokens.
        source_lang: In any code.
        target_lang: Likewise.
        is_one_of_several: Whether the model translates other pairs too: then a prefix must tell which is wanted.
        must_choose: Whether a model that stored the prefixes of several pairs may not go without.

    Raises:
        UserError: no choice where one must be made; a multilingual Marian without a target language, or with another
            than it has.
    """
    stored = _stored_prefix(model_config, source_lang, target_lang)
    if stored is not None:
        return stored
    prefix = family_of(model_config).source_prefix
    if prefix == "language" and (known := known_languages(tokenizer)):
        if target_lang is None:
            raise UserError(
                f"--target_lang is missing: this model writes several languages, such as {', '.join(known[:3])} (or "
                "give --source_prefix, an empty one where the texts begin with such a token)"
            )
        return resolve_language(target_lang, known, "--target_lang") + " "
    if must_choose and not source_lang and not target_lang and (tasks := stored_prefixes(model_config)):
        raise UserError(
            "--source_lang and --target_lang are missing: this model has several tasks, such as "
            f"{', '.join(list(tasks)[:3])} (or give --source_prefix)"
        )
    needs_task = prefix == "task" or (prefix == "task of several" and is_one_of_several)
    if needs_task and source_lang and target_lang:
        return f"translate {language_name(source_lang)} to {language_name(target_lang)}: "
    return None


def language_token(language: str) -> str:
    """Write a language as a multilingual Marian does."""
    return f">>{language}<<"


def can_tell_pairs_apart(model_config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a model can be told which of several pairs is wanted: by language tokens, or in words."""
    return bool(known_languages(tokenizer)) or family_of(model_config).source_prefix in ("task", "task of several")


def remember_prefix(
    model_config: PretrainedConfig, source_lang: str | None, target_lang: str | None, prefix: str | None
) -> None:
    """Store the prefix of a pair in the model's config, where T5's published models have theirs."""
    if prefix is None:
        return
    task = _task(source_lang, target_lang)
    tasks = dict(getattr(model_config, "task_specific_params", None) or {})
    tasks[task] = {**tasks.get(task, {}), "prefix": prefix}
    model_config.task_specific_params = tasks


def _stored_prefix(model_config: PretrainedConfig, source_lang: str | None, target_lang: str | None) -> str | None:
    """Read the prefix of a pair from the model's config; without languages that of the only pair there is."""
    known = stored_prefixes(model_config)
    if not source_lang and not target_lang and len(known) == 1:
        return next(iter(known.values()))
    return known.get(_task(source_lang, target_lang))


def stored_prefixes(model_config: PretrainedConfig) -> dict[str, str]:
    """Read all prefixes of translations from a model's config, by the name of the task."""
    tasks: dict[str, Any] = getattr(model_config, "task_specific_params", None) or {}
    return {
        name: str(entry["prefix"])
        for name, entry in tasks.items()
        if isinstance(entry, dict) and "prefix" in entry and (name == TEXT_TO_TEXT or name.startswith(TRANSLATION))
    }


def _task(source_lang: str | None, target_lang: str | None) -> str:
    """The name that T5's config gives a translation task: translation_en_to_fr."""
    if not source_lang or not target_lang:
        return TEXT_TO_TEXT
    return translation_task(source_lang, target_lang)
