"""Convert flags of other trainers that are more than another name of a setting.

Each function gets the name of the flag, its text, and the texts of all flags given by name, and returns the settings.
foreign_flags.yaml names them by the key `convert`.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import PurePath

from mtloop.config.fields import LEAVE_ONE_OUT, MAX_BATCH_TOKENS, MAX_COUNT, read_value
from mtloop.config.model import split_revision
from mtloop.config.settings import FIELDS
from mtloop.errors import FieldError

# Defaults of TrainingArguments.
LOGGING_STEPS, SAVE_STEPS = "500", "500"
SHARDINGS = {"full_shard", "shard_grad_op", "hybrid_shard", "hybrid_shard_zero2"}

Settings = dict[str, str | None]


def _number(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise FieldError(name, "expected a whole number", got=repr(text)) from None


def _eval_batch(name: str, text: str, given: Mapping[str, str]) -> Settings:
    longest = given.get("max_source_length") or str(FIELDS["max_source_length"].default)
    tokens = _number(name, text) * _number("max_source_length", longest)
    return {"eval_max_tokens": str(min(tokens, MAX_BATCH_TOKENS))}


def _max_length(name: str, text: str, given: Mapping[str, str]) -> Settings:
    return {} if "max_source_length" in given else {"max_source_length": text}


def _repository(name: str, text: str, given: Mapping[str, str]) -> Settings:
    repository = given.get("push_to_hub_model_id") or PurePath(given.get("output_dir", "")).name
    if not repository:
        raise FieldError(name, "the repository has no name", got=text, remedy="Give --hub_model_id OWNER/NAME.")
    owner = given.get("push_to_hub_organization")
    return {"hub_model_id": f"{owner}/{repository}" if owner else repository}


def _revision(name: str, text: str, given: Mapping[str, str]) -> Settings:
    names = {flag: given[flag] for flag in ("model_name_or_path", "config_name", "tokenizer_name") if flag in given}
    if not names:
        raise FieldError(name, "only valid with --model_name_or_path", got=text, remedy="Add that.")
    found: Settings = {}
    for flag, model in names.items():
        if split_revision(model)[1] not in (None, text):
            raise FieldError(name, f"--{flag} {model} has a revision", got=text, remedy=LEAVE_ONE_OUT)
        if not os.path.exists(model):
            found[flag] = f"{split_revision(model)[0]}@{text}"
    return found


def _sharding(name: str, text: str, given: Mapping[str, str]) -> Settings:
    words = set(text.replace(",", " ").split())
    if not words or words == {"false"}:
        return {}
    if words & (SHARDINGS | {"true"}):
        return {"shard_model": "true"}
    raise FieldError(name, f"expected one of {', '.join(sorted(SHARDINGS))}", got=repr(text), remedy="Or leave it out.")


def _eval_strategy(name: str, text: str, given: Mapping[str, str]) -> Settings:
    if text == "no":
        return {"eval_steps": str(MAX_COUNT), **({} if "eval_on_start" in given else {"eval_on_start": "false"})}
    return _period(name, text, "eval_steps", given, default=given.get("logging_steps", LOGGING_STEPS))


def _save_strategy(name: str, text: str, given: Mapping[str, str]) -> Settings:
    if text == "best":
        return {"save_steps": given.get("eval_steps"), "save_total_limit": given.get("save_total_limit", "1")}
    return _period(name, text, "save_steps", given, default=SAVE_STEPS)


def _period(name: str, text: str, period: str, given: Mapping[str, str], *, default: str) -> Settings:
    if text not in ("no", "steps", "epoch"):
        raise FieldError(name, "expected one of no, steps, epoch", got=repr(text))
    if text == "steps":
        return {} if period in given else {period: default}
    return {period: None if text == "epoch" else str(MAX_COUNT)}


def _checkpointing_steps(name: str, text: str, given: Mapping[str, str]) -> Settings:
    return {"save_steps": None if text == "epoch" else text}


def _target_language(name: str, text: str, given: Mapping[str, str]) -> Settings:
    from mtloop.languages import match_language

    wanted = given.get("target_lang")
    if wanted is None and "pairs" not in given:
        return {"target_lang": text.strip("_")}
    if wanted is None or not match_language(wanted, [text.strip("_")]):
        other = f"--target_lang {wanted}" if wanted else f"--pairs {given['pairs']}"
        raise FieldError(
            name, f"not the language of {other}, which chooses this token", got=text, remedy="Leave it out."
        )
    return {}


def _tracking(name: str, text: str, given: Mapping[str, str]) -> Settings:
    if text == "false":
        return {"report_to": "none"} if "report_to" in given else {}
    if given.get("report_to") == "none":
        raise FieldError(name, "--report_to none is given as well", got=text, remedy=LEAVE_ONE_OUT)
    return {} if "report_to" in given else {"report_to": "all"}


def _warmup(name: str, text: str, given: Mapping[str, str]) -> Settings:
    if name == "warmup_steps" and read_value(FIELDS["num_warmup_steps"], text) == 0 and "warmup_ratio" in given:
        return {}  # as in TrainingArguments
    return {"num_warmup_steps": text}


CONVERSIONS: dict[str, Callable[[str, str, Mapping[str, str]], Settings]] = {
    "checkpointing_steps": _checkpointing_steps,
    "eval_batch": _eval_batch,
    "eval_strategy": _eval_strategy,
    "max_length": _max_length,
    "repository": _repository,
    "revision": _revision,
    "save_strategy": _save_strategy,
    "sharding": _sharding,
    "target_language": _target_language,
    "tracking": _tracking,
    "warmup": _warmup,
}
