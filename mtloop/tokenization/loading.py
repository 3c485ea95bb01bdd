"""Load a tokenizer from a folder or the Hub and set its languages. Owns language codes and the advice when it fails."""

import copy
import warnings
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from mtloop.config.inputs import split_revision
from mtloop.errors import UserError
from mtloop.languages import advise, language_name, match_language, translation_task
from mtloop.model.families import family_of

# Marian's normaliser, which the advice is about, is never called (transformers 5.23). A filter for the whole process,
# because worker processes unpickle the tokenizer and would each print it again.
warnings.filterwarnings("ignore", message="Recommended: pip install sacremoses")

# Names of tasks in a model's config: translation_en_to_fr, and one for a run without languages.
TRANSLATION, TEXT_TO_TEXT = "translation_", "text_to_text"


def load_tokenizer(
    name_or_path: str, *, source_lang: str | None, target_lang: str | None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load a tokenizer and, where it is multilingual (mBART, M2M100, NLLB), set its two languages.

    Args:
        name_or_path: A local folder, or a Hub name as `name` or `name@revision`.
        source_lang: Language, in any code (fr, fr_FR, fra_Latn) or by name; others than multilingual ignore it.
        target_lang: Likewise.
        trust_remote_code: Run code that the repository brings along.

    Raises:
        UserError: No such tokenizer, one without vocabulary or padding token, or a language it does not have.
    """
    name, given = split_revision(name_or_path)
    revision = given or "main"
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    except Exception as error:  # third-party loaders: OSError, ValueError, TypeError, JSONDecodeError were all seen
        raise UserError(_loading_advice(name_or_path, name, error)) from error
    if not _has_vocabulary(tokenizer, name, revision):
        raise UserError(_loading_advice(name_or_path, name, "it has no vocabulary file"))
    if tokenizer.pad_token_id is None:
        raise UserError(f"tokenizer {name_or_path!r} has no padding token: choose a translation model's tokenizer")
    _mark_languages(tokenizer)
    set_languages(tokenizer, source_lang, target_lang)
    return tokenizer


def _mark_languages(tokenizer: PreTrainedTokenizerBase) -> None:
    """Make language tokens special, so that no translation begins with one in words.

    M2M100Tokenizer (transformers 5.24) does so only where a file of the published model lists them.
    """
    tokens: dict[str, int] = getattr(tokenizer, "lang_token_to_id", None) or {}
    if tokens and not set(tokens.values()) <= set(tokenizer.all_special_ids):
        tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})
        moved = [token for token, token_id in tokens.items() if tokenizer.convert_tokens_to_ids(token) != token_id]
        assert not moved, f"{moved[0]} has another id as a special token"


def for_languages(
    tokenizer: PreTrainedTokenizerBase, source_lang: str | None, target_lang: str | None
) -> PreTrainedTokenizerBase:
    """Return a copy of a tokenizer for another pair of languages."""
    other = copy.deepcopy(tokenizer)
    set_languages(other, source_lang, target_lang)
    return other


def set_languages(tokenizer: PreTrainedTokenizerBase, source_lang: str | None, target_lang: str | None) -> None:
    """Set the two languages of a multilingual tokenizer (mBART, M2M100, NLLB); any other is left as it is.

    Raises:
        UserError: a language that it does not have.
    """
    if _is_multilingual(tokenizer):
        tokenizer.src_lang = _language_code(tokenizer, "src_lang", "--source_lang", source_lang)
        tokenizer.tgt_lang = _language_code(tokenizer, "tgt_lang", "--target_lang", target_lang)


def target_language_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the id that generation must force first (forced_bos_token_id), None where there is but one language."""
    if not _is_multilingual(tokenizer):
        return None
    codes: dict[str, int] | None = getattr(tokenizer, "lang_code_to_id", None)
    token_id = codes[tokenizer.tgt_lang] if codes else tokenizer.convert_tokens_to_ids(tokenizer.tgt_lang)
    assert isinstance(token_id, int)
    return token_id


def _has_vocabulary(tokenizer: PreTrainedTokenizerBase, name: str, revision: str) -> bool:
    """Tell a real tokenizer from the empty one that T5 and others make of a folder with a config.json alone."""
    files = {file for key, file in tokenizer.vocab_files_names.items() if key != "tokenizer_config_file"}
    if not files:  # ByT5 and Canine know their vocabulary by heart
        return True
    files |= {"tokenizer.json", "tokenizer.model"}
    if Path(name).is_dir():
        return any((Path(name) / file).is_file() for file in files)
    return any(isinstance(try_to_load_from_cache(name, file, revision=revision), str) for file in files)


def _loading_advice(name_or_path: str, name: str, reason: Exception | str) -> str:
    first_line = next(iter(str(reason).strip().splitlines()), "") or type(reason).__name__
    subject = f"--tokenizer_name / --model_name_or_path {name_or_path!r}"
    if Path(name).is_dir():
        return f"{subject}: no tokenizer loads from this folder ({first_line}): save one there"
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        return f"{subject}: there is no such folder: check the path"
    if "trust_remote_code" in str(reason):
        return f"{subject}: its repository brings its own code: read it and, if you trust it, add --trust_remote_code"
    return (
        f"{subject}: not on the Hub or not to be reached ({first_line.rstrip('.')}): check the name; offline, run"
        f" `hf download {name}` where there is a network and copy its cache (HF_HOME), or name a local folder"
    )


def _is_multilingual(tokenizer: PreTrainedTokenizerBase) -> bool:
    return hasattr(tokenizer, "src_lang") and hasattr(tokenizer, "tgt_lang")


def _language_code(tokenizer: PreTrainedTokenizerBase, attribute: str, flag: str, wanted: str | None) -> str:
    """Return the tokenizer's own code of the language that is wanted, or the one stored in its folder."""
    known = known_languages(tokenizer)
    # Without a stored target language the stored source language is a default that save_pretrained wrote down.
    stored = tokenizer.init_kwargs.get(attribute) if tokenizer.init_kwargs.get("tgt_lang") else None
    code = wanted or stored
    if code is None:
        raise UserError(f"{flag} is missing: this multilingual tokenizer needs one of its codes, such as {known[0]!r}")
    return resolve_language(code, known, flag)


def resolve_language(wanted: str, known: list[str], flag: str) -> str:
    """Return the one code of `known` that means the language.

    Raises:
        UserError: for an unknown or an ambiguous one, with the candidates.
    """
    found = match_language(wanted, known)
    if len(found) != 1:
        raise UserError(f"{flag} {wanted!r} is no one language of this tokenizer: {advise(wanted, known)}")
    return found[0]


def known_languages(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """List the codes of a multilingual tokenizer as it writes them; Marian's are `>>fra<<`. [] for a bilingual one."""
    if getattr(tokenizer, "lang_code_to_id", None):
        return sorted(tokenizer.lang_code_to_id)
    if _is_multilingual(tokenizer):
        named = {str(token) for token in tokenizer.special_tokens_map.values()}
        return sorted(token for token in tokenizer.all_special_tokens if token not in named)
    # A single one says nothing that the model does not know.
    codes = sorted(getattr(tokenizer, "supported_language_codes", []))
    return codes if len(codes) > 1 else []


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
