"""Load a tokenizer from a folder or the Hub, set its languages, and resolve the prefix of a pair of languages.

A multilingual tokenizer (mBART, M2M100, NLLB) marks the languages with tokens. T5 and a multilingual Marian need a
prefix before every source: the task in words, or the token of the target language (Marian, MADLAD-400).
"""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from mtloop.config.model import split_revision
from mtloop.errors import UserError, described, refused
from mtloop.languages import LANGUAGE_TOKEN, advise, language_name, match_language, translation_task
from mtloop.model.families import family_of
from mtloop.model.vocabularies import target_vocabulary
from mtloop.tokenization.protection import is_protected, keep_spaces

# The warning is about Marian's normalizer, which is never called (transformers 5.23). The filter is for the process,
# because worker processes unpickle the tokenizer and would each print it again.
warnings.filterwarnings("ignore", message="Recommended: pip install sacremoses")

_FLAGS = "--tokenizer_name / --model_name_or_path"
# Names of tasks in a model's config: translation_en_to_fr, and another for a run without languages.
TRANSLATION, TEXT_TO_TEXT = "translation_", "text_to_text"


def load_tokenizer(
    name_or_path: str, *, source_lang: str | None, target_lang: str | None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load a tokenizer and, if it is multilingual, set its two languages.

    Args:
        name_or_path: A local folder, or a Hub name as `name` or `name@revision`.
        source_lang: Code in any style (fr, fr_FR, fra_Latn) or name; ignored by a tokenizer that is not multilingual.
        target_lang: As source_lang.
        trust_remote_code: Whether code of the repository may run.

    Raises:
        UserError: No such tokenizer, one without vocabulary or padding token, or a language it does not have.
    """
    name, given = split_revision(name_or_path)
    revision = given or "main"
    with refused(lambda error: _loading_advice(name_or_path, name, error)):
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    if not _has_vocabulary(tokenizer, name, revision):
        raise UserError(_loading_advice(name_or_path, name, "no vocabulary file"))
    own = target_vocabulary(tokenizer)
    if own is not None and str(tokenizer.unk_token) not in own:
        raise UserError(
            f"{_FLAGS} {name_or_path!r}: the target vocabulary has no {tokenizer.unk_token} (got {len(own):,} tokens). "
            "Add it, or choose the tokenizer of a translation model."
        )
    if tokenizer.pad_token_id is None:
        raise UserError(f"{_FLAGS} {name_or_path!r}: no padding token. Choose the tokenizer of a translation model.")
    with refused(lambda error: _loading_advice(name_or_path, name, error)):
        _mark_languages(tokenizer)
        set_languages(tokenizer, source_lang, target_lang)
        if is_protected(tokenizer):
            keep_spaces(tokenizer)
        _try(tokenizer)
    return tokenizer


def _try(tokenizer: PreTrainedTokenizerBase) -> None:
    """Encode and decode a text, where values of a wrong type are used: files of another kind may load without an error.

    Raises:
        Exception: It fails, or there are no tokens but the special ones.
    """
    for ids in tokenizer(["a"], text_target=["a"])["labels"], tokenizer(["a"])["input_ids"]:
        if not all(isinstance(token_id, int) and token_id >= 0 for token_id in ids[0]):
            raise TypeError(f"ids that are not numbers, {ids[0]}")
        tokenizer.decode(ids[0], skip_special_tokens=True)
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise ValueError("its vocabulary is empty")


def _mark_languages(tokenizer: PreTrainedTokenizerBase) -> None:
    """Make language tokens special, so that they are not decoded at the beginning of a translation.

    M2M100Tokenizer (transformers 5.24) does so only if a file of the published model lists them.
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
    """Set the two languages of a multilingual tokenizer; leave any other as it is.

    Raises:
        UserError: A language that it does not have.
    """
    if _is_multilingual(tokenizer):
        tokenizer.src_lang = _language_code(tokenizer, "src_lang", "--source_lang", source_lang)
        tokenizer.tgt_lang = _language_code(tokenizer, "tgt_lang", "--target_lang", target_lang)


def target_language_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the target language's token (forced_bos_token_id) of a multilingual tokenizer, None of any other."""
    if not _is_multilingual(tokenizer):
        return None
    codes: dict[str, int] | None = getattr(tokenizer, "lang_code_to_id", None)
    token_id = codes[tokenizer.tgt_lang] if codes else tokenizer.convert_tokens_to_ids(tokenizer.tgt_lang)
    assert isinstance(token_id, int)
    return token_id


def _has_vocabulary(tokenizer: PreTrainedTokenizerBase, name: str, revision: str) -> bool:
    """Return False for the empty tokenizer that T5 and others create from a folder with only a config.json."""
    files = {file for key, file in tokenizer.vocab_files_names.items() if key != "tokenizer_config_file"}
    if not files:  # ByT5 and Canine need no file
        return True
    files |= {"tokenizer.json", "tokenizer.model"}
    if Path(name).is_dir():
        return any((Path(name) / file).is_file() for file in files)
    return any(isinstance(try_to_load_from_cache(name, file, revision=revision), str) for file in files)


def _loading_advice(name_or_path: str, name: str, reason: BaseException | str) -> str:
    line = reason if isinstance(reason, str) else described(reason)
    subject = f"{_FLAGS} {name_or_path!r}"
    if Path(name).is_dir():
        return f"{subject}: the folder has no valid tokenizer ({line}). Save one there."
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        return f"{subject}: there is no such folder. Check the path."
    if "trust_remote_code" in str(reason):
        return f"{subject}: the repository contains code. Read it and, if you trust it, add --trust_remote_code."
    return (
        f"{subject}: no such folder (in {Path.cwd()}), and not on the Hub, or the Hub cannot be reached "
        f"({line.rstrip('.')}). Check the name; offline, run `hf download {name}` on a machine with network and copy "
        "its cache (HF_HOME)."
    )


def _is_multilingual(tokenizer: PreTrainedTokenizerBase) -> bool:
    has_languages = hasattr(tokenizer, "src_lang") and hasattr(tokenizer, "tgt_lang")
    return has_languages and not hasattr(tokenizer, "tgt_vocab_file")  # FSMT's are those of its vocabularies


def _language_code(tokenizer: PreTrainedTokenizerBase, attribute: str, flag: str, wanted: str | None) -> str:
    """Return the tokenizer's code of the wanted language, or the code stored in its folder."""
    known = known_languages(tokenizer)
    # Without a stored target language, the stored source language is a default of save_pretrained.
    stored = tokenizer.init_kwargs.get(attribute) if tokenizer.init_kwargs.get("tgt_lang") else None
    code = wanted or stored
    if code is None:
        raise UserError(f"{flag}: not given, but the tokenizer is multilingual. Give a code such as {known[0]}.")
    return resolve_language(code, known, flag)


def resolve_language(wanted: str, known: list[str], flag: str) -> str:
    """Return the only code of `known` that denotes the language.

    Raises:
        UserError: The language is unknown or ambiguous, with the candidates.
    """
    found = match_language(wanted, known)
    if len(found) != 1:
        problem = "an ambiguous language" if found else "not a language of this tokenizer"
        raise UserError(f"{flag}: {problem} (got {wanted!r}). {advise(wanted, known)}")
    return found[0]


def known_languages(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """List the language codes of a tokenizer in its style (Marian: `>>fra<<`, T5: `<2fr>`); [] if it has none."""
    if getattr(tokenizer, "lang_code_to_id", None):
        return sorted(tokenizer.lang_code_to_id)
    if _is_multilingual(tokenizer):
        named = {str(token) for token in tokenizer.special_tokens_map.values()}
        return sorted(token for token in tokenizer.all_special_tokens if token not in named)
    codes: list[str] | None = getattr(tokenizer, "supported_language_codes", None)  # Marian's
    if codes is None:
        return sorted(token for token in tokenizer.get_vocab() if LANGUAGE_TOKEN.match(token))
    return sorted(codes) if len(codes) > 1 else []  # a single target language needs no token


def source_prefix(
    model_config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    source_lang: str | None,
    target_lang: str | None,
    *,
    is_one_of_several: bool = False,
    must_choose: bool = False,
) -> str | None:
    """Return the prefix that a model needs for a pair of languages; None if it needs none.

    Args:
        model_config: Has the model type, and the prefixes stored by earlier training (`remember_prefix`).
        tokenizer: That of a multilingual Marian or of MADLAD-400 has language tokens.
        source_lang: Code in any style, or name.
        target_lang: As source_lang.
        is_one_of_several: Whether the model translates several pairs, which the prefix must distinguish.
        must_choose: Whether a model with the prefixes of several pairs needs the languages.

    Raises:
        UserError: The languages are needed and not given; a target language that has no token among several.
    """
    stored = _stored_prefix(model_config, source_lang, target_lang)
    if stored is not None:
        return stored
    prefix = family_of(model_config).source_prefix
    if prefix is not None and (known := known_languages(tokenizer)):
        if target_lang is None:
            raise UserError(
                "--target_lang: not given, but the model has several target languages. Give one, for example "
                f"{', '.join(known[:3])}, or --source_prefix (empty if the texts begin with such a token)."
            )
        return resolve_language(target_lang, known, "--target_lang") + " "
    if must_choose and not source_lang and not target_lang and (tasks := stored_prefixes(model_config)):
        raise UserError(
            "--source_lang, --target_lang: not given, but the model has several tasks, for example "
            f"{', '.join(list(tasks)[:3])}. Give both languages, or --source_prefix."
        )
    needs_task = prefix == "task" or (prefix == "task of several" and is_one_of_several)
    if needs_task and source_lang and target_lang:
        return f"translate {language_name(source_lang)} to {language_name(target_lang)}: "
    return None


def language_token(language: str) -> str:
    """Return the token of a language in the style of a multilingual Marian."""
    return f">>{language}<<"


def can_tell_pairs_apart(model_config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return True if a model can distinguish several pairs: by language tokens, or by the task in words."""
    prefix = family_of(model_config).source_prefix
    return _is_multilingual(tokenizer) or prefix in ("task", "task of several") or (
        prefix == "language" and bool(known_languages(tokenizer))
    )  # fmt: skip


def remember_prefix(
    model_config: PretrainedConfig, source_lang: str | None, target_lang: str | None, prefix: str | None
) -> None:
    """Store the prefix of a pair in the model's config, as T5's published models have it."""
    if prefix is None:
        return
    task = _task(source_lang, target_lang)
    tasks = dict(_tasks(model_config))
    known = tasks.get(task)
    tasks[task] = {**(known if isinstance(known, dict) else {}), "prefix": prefix}
    model_config.task_specific_params = tasks


def _stored_prefix(model_config: PretrainedConfig, source_lang: str | None, target_lang: str | None) -> str | None:
    """Return the stored prefix of a pair; without languages, that of the only pair."""
    known = stored_prefixes(model_config)
    if not source_lang and not target_lang and len(known) == 1:
        return next(iter(known.values()))
    return known.get(_task(source_lang, target_lang))


def stored_prefixes(model_config: PretrainedConfig) -> dict[str, str]:
    """Return all translation prefixes of a model's config, by the name of the task."""
    return {
        name: str(entry["prefix"])
        for name, entry in _tasks(model_config).items()
        if isinstance(entry, dict) and "prefix" in entry and (name == TEXT_TO_TEXT or name.startswith(TRANSLATION))
    }


def _tasks(model_config: PretrainedConfig) -> dict[str, Any]:
    """Return the tasks of a model's config, {} if they are none or of another type."""
    tasks = getattr(model_config, "task_specific_params", None)
    return tasks if isinstance(tasks, dict) else {}


def _task(source_lang: str | None, target_lang: str | None) -> str:
    """Return the name of a pair's task in T5's config: translation_en_to_fr."""
    if not source_lang or not target_lang:
        return TEXT_TO_TEXT
    return translation_task(source_lang, target_lang)
