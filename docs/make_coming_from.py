"""Write the tables of docs/coming-from.md about flags of other programs from the settings and foreign_flags.yaml.

    python docs/make_coming_from.py

tests/unit/test_docs.py compares the committed page with what page() returns.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from mtloop.config.fields import default_text
from mtloop.config.foreign import ForeignFlag, foreign_flags, other_values
from mtloop.config.settings import FIELDS

PAGE = Path(__file__).with_name("coming-from.md")
BEGIN, END = "<!-- generated: begin -->\n", "<!-- generated: end -->\n"
# Flags of the same name and meaning.
SAME = [
    "model_name_or_path",
    "config_name",
    "tokenizer_name",
    "trust_remote_code",
    "dataset_name",
    "dataset_config_name",
    "train_file",
    "validation_file",
    "test_file",
    "source_lang",
    "target_lang",
    "source_prefix",
    "max_target_length",
    "val_max_target_length",
    "preprocessing_num_workers",
    "overwrite_cache",
    "max_train_samples",
    "max_eval_samples",
    "max_predict_samples",
    "output_dir",
    "weight_decay",
    "adam_beta1",
    "adam_epsilon",
    "max_grad_norm",
    "num_train_epochs",
    "max_train_steps",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "label_smoothing_factor",
    "gradient_accumulation_steps",
    "dataloader_num_workers",
    "load_best_model_at_end",
    "save_total_limit",
    "seed",
    "use_cpu",
    "push_to_hub",
    "hub_model_id",
    "hub_private_repo",
    "hub_revision",
    "hub_strategy",
    "resume_from_checkpoint",
    "report_to",
    "gradient_checkpointing",
]
# Flags of the same name and meaning, with their default there.
OTHER_DEFAULT = {
    "learning_rate": "5e-5",
    "per_device_train_batch_size": "8",
    "num_warmup_steps": "0",
    "adam_beta2": "0.999",
    "max_source_length": "1024",
    "num_beams": "the one of the model",
    "eval_steps": "no evaluation in training; with `eval_strategy=steps` every `logging_steps`",
    "eval_on_start": "false",
    "save_steps": "500",
    "logging_steps": "500",
    "metric_for_best_model": "loss",
}
OWN_DEFAULT = {"per_device_train_batch_size": "32 sentences an update when fine-tuning, 500 tokens from scratch"}
EFFECTS = {
    "modes": ("What is to be done", "what happens", ""),
    "translated": ("Read as another flag", "becomes", "A line shows each: `--max_steps 9 -> --max_train_steps 9`."),
    "ignored": (
        "Ignored, with a warning",
        "reason",
        "Weights, scores and the place of publication do not depend on them. The values in the third column ask for "
        "what is done anyway: they give no warning.",
    ),
    "changes_result": ("Ignored, and the result changes", "reason", "The warning says so."),
    "refused": ("Refused", "reason", "The run stops, except for the values in the third column."),
}  # fmt: skip


def page() -> str:
    """Return the text of docs/coming-from.md, with its tables as the code gives them."""
    text = PAGE.read_text("utf-8")
    head, rest = text.split(BEGIN)
    return head + BEGIN + tables() + END + rest.split(END)[1]


def tables() -> str:
    """Return what happens with each flag."""
    parts = [
        "\n### The same name and meaning\n",
        ", ".join(map(_code, SAME)) + ".\n",
        "With another default:\n",
        _table(
            ("flag", "default there", "default here"),
            ((_code(name), there, OWN_DEFAULT.get(name) or _default(name)) for name, there in OTHER_DEFAULT.items()),
        ),
        "Words for values:\n",
        _table(
            ("flag", "there", "here"),
            (
                (_code(name), f"`{there}`", f"`{here}`")
                for name, words in other_values().items()
                for there, here in words.items()
            ),
        ),
    ]
    for effect, (title, column, explanation) in EFFECTS.items():
        flags = [(name, flag) for name, flag in foreign_flags().items() if flag.effect == effect]
        rows = []
        for (meaning, silent), group in groupby(flags, lambda one: (_meaning(one[1]), one[1].silent)):
            names = ", ".join(_code(name) for name, _ in group)
            rows.append((names, meaning, ", ".join(f"`{value}`" for value in silent)))
        has_silent = effect in ("ignored", "changes_result", "refused")
        head = ("flags", column, "no warning for") if has_silent else ("flags", column)
        parts += [f"### {title}\n", *([f"{explanation}\n"] if explanation else [])]
        parts.append(_table(head, (row[: len(head)] for row in rows)))
    return "\n".join(parts) + "\n"


def _meaning(flag: ForeignFlag) -> str:
    if flag.to:
        return _code(flag.to)
    if flag.set:
        return ", ".join(f"`--{name} {value}`" for name, value in flag.set.items())
    return _with_code(flag.advice)


def _with_code(text: str) -> str:
    """Mark the flags in a text for the terminal as code."""
    plain, *rest = text.split("`", 1)
    if rest:
        code, _, after = rest[0].partition("`")
        return f"{_with_code(plain)}`{code}`{_with_code(after)}"
    return re.sub(r"--[a-z_]+\*?( [A-Z]+\b)?", r"`\g<0>`", text)


def _default(name: str) -> str:
    field = FIELDS[name]
    return f"`{default_text(field)}`" if field.default is not None else _with_code(default_text(field))


def _code(name: str) -> str:
    return f"`--{name}`"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = tuple(head)
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
