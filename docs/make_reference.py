"""Write docs/reference.md from the code: flags of every command, files of a run folder, statuses, metrics, families.

    python docs/make_reference.py

tests/unit/test_docs.py compares the committed page with what page() returns.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import pkgutil
import signal
import sys
from collections.abc import Iterable
from dataclasses import Field, fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from mtloop.cli import commands
from mtloop.cli.main import Parser
from mtloop.cli.status import status_of
from mtloop.config.fields import default_text, kind_of, valid_values
from mtloop.config.settings import GROUPS
from mtloop.evaluation.metrics import DEFAULT_METRICS, METRICS, Metric
from mtloop.hub.parts import STATUS_NOT_PUSHED
from mtloop.model.families import FAMILIES, Family
from mtloop.run_files import RUN_FILES

PAGE = Path(__file__).with_name("reference.md")
HEAD = """\
# Reference

All flags, the files of a run folder, exit statuses, metrics and model families.

Generated from the code by `python docs/make_reference.py`.

- [Training](#training): `train.py` and `mtloop train`
- [Commands](#commands): {commands}
- [Files of a run folder](#files-of-a-run-folder)
- [Exit statuses](#exit-statuses)
- [Metrics](#metrics)
- [Model families](#model-families)

## Training

`train.py [RECIPE | FILE.yaml] [--flag value ...]`. A flag is also a key of a YAML file. A switch takes no
value on the command line, and true or false in a file. A run folder resumes only with the same value of a flag marked
●, unless `--allow_changed` is given.
"""
STATUSES = (
    (0, "done, already finished, or saved on USR1"),
    (1, "the run failed (disk, process, non-finite gradient), or a check found a difference"),
    (2, "a mistake in flags or data: one line names the flag, or the file and line, and the remedy"),
    (STATUS_NOT_PUSHED, "trained, but not everything was pushed to the Hub"),
    (status_of(signal.SIGHUP), "saved on HUP"),
    (status_of(signal.SIGINT), "saved on INT (Ctrl-C)"),
    (status_of(signal.SIGTERM), "saved on TERM"),
)
LANGUAGES = {
    None: "language codes of its tokenizer, or text to text",
    "language": "language token before every source, where the tokenizer has several",
    "task": '"translate English to French: " before every source',
    "task of several": "the same words, only where a run has several pairs",
}


def page() -> str:
    """Return the text of docs/reference.md."""
    names = [module.name for module in pkgutil.iter_modules(commands.__path__) if module.name != "train"]
    links = ", ".join(f"[{name}](#mtloop-{name})" for name in names)
    parts = [HEAD.format(commands=links)]
    for group, kind in GROUPS.items():
        parts += [f"### {group.capitalize()} flags\n", _first_line(kind), "", _field_table(kind)]
    parts += ["## Commands\n", "`mtloop COMMAND` or, without an installation, `python -m mtloop COMMAND`.\n"]
    for name in names:
        parts += [f"### mtloop {name}\n", *_command(name)]
    parts += [
        "## Files of a run folder\n",
        "Paths below `--output_dir`; `N` is the number of an update.\n",
        _table(("path", "content"), ((f"`{path}`", text) for path, text in RUN_FILES.items())),
        "## Exit statuses\n",
        _table(("status", "meaning"), STATUSES),
        "## Metrics\n",
        "Values of `--metrics` and `--metric_for_best_model`; the latter also takes `eval_loss`. By default "
        "`mtloop evaluate` computes `ter` too.\n",
        _table(
            ("name", "title", "better", "interval and p-value", "default in training"), map(_metric, METRICS.values())
        ),
        "## Model families\n",
        "Families that are not listed train too, where `AutoModelForSeq2SeqLM` loads them.\n",
        _table(
            ("`model_type`", "languages are set by", "LoRA layers", "CTranslate2 export"),
            (_family(name, row) for name, row in FAMILIES.items()),
        ),
    ]
    return "\n".join(parts).rstrip() + "\n"


def _command(name: str) -> list[str]:
    module = importlib.import_module(f"mtloop.cli.commands.{name}")
    parser = Parser(prog=f"mtloop {name}", allow_abbrev=False)
    module.add_flags(parser)
    description = " ".join((inspect.getdoc(module) or "").split("\n", 1)[-1].split()) or _first_line(module)
    rows = ((_flag(action), _default(action), _values(action), action.help or "") for action in parser._actions[1:])
    return [description, "", _table(("flag", "default", "values", "meaning"), rows)]


def _flag(action: argparse.Action) -> str:
    names = sorted(action.option_strings, key=len) or [action.metavar or action.dest]
    return ", ".join(f"`{name}`" for name in names)


def _default(action: argparse.Action) -> str:
    if action.required and action.nargs != "*":
        return "required"
    if action.default in (None, False, []) or action.nargs == 0:
        return ""
    return f"`{' '.join(action.default) if isinstance(action.default, list) else action.default}`"


def _values(action: argparse.Action) -> str:
    if action.choices:
        return ", ".join(f"`{choice}`" for choice in action.choices)
    if action.nargs == 0:
        return "switch"
    return {int: "whole number", float: "number"}.get(action.type, f"{action.metavar or 'text'}")


def _field_table(kind: type) -> str:
    rows = (
        (f"`--{one.name}`{_mark(one)}", _field_default(one), _bounds(one), one.metadata["help"]) for one in fields(kind)
    )
    return _table(("flag", "default", "values", "meaning"), rows)


def _mark(one: Field) -> str:
    return " ●" if one.metadata["same_run"] else ""


def _field_default(one: Field) -> str:
    text = default_text(one)
    return text if one.default is None else "" if one.default is False else f"`{text}`"


def _bounds(one: Field) -> str:
    """Return the values that a field takes."""
    if choices := one.metadata["choices"]:
        return ", ".join(f"`{choice}`" for choice in choices)
    return "switch" if kind_of(one) is bool else valid_values(one)


def _family(name: str, row: Family) -> tuple[str, ...]:
    layers = " ".join(row.attention) if row.attention else "found by trying"
    export = _yes(row.ctranslate2_loader is not None)
    if row.ctranslate2_needs:
        export += f", from transformers {row.ctranslate2_needs[1]}"
    return f"`{name}`", LANGUAGES[row.source_prefix], f"`{layers}`", export


def _metric(metric: Metric) -> tuple[str, ...]:
    direction = "higher" if metric.greater_is_better else "lower"
    return f"`{metric.name}`", metric.title, direction, _yes(metric.count is not None), _yes(metric in DEFAULT_METRICS)


def _yes(value: bool) -> str:
    return "yes" if value else ""


def _first_line(documented: object) -> str:
    return (inspect.getdoc(documented) or "").partition("\n")[0]


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("<", "&lt;")


def _table(head: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    head = tuple(head)
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
