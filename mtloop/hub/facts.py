"""What a card is made of, read from the run folder, and how it is put into words."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtloop.atomic import read_json, read_json_lines
from mtloop.config.inputs import split_revision
from mtloop.config.settings import Config
from mtloop.hub.parts import Part, Target
from mtloop.languages import translation_task
from mtloop.metrics_log import evaluations_of
from mtloop.run_folder import RunFolder

NUM_EXAMPLES, NUM_WIDGETS = 10, 3
MAX_EXAMPLE_LENGTH = 300


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a card is made of: all of it is in the run folder.

    Attributes:
        part: Which weights.
        target: Where they go.
        config: Resolved.
        data: data.json.
        lines: metrics.jsonl up to the part's step.
        record: The manifest of the checkpoint; {} where that is gone.
        examples: index, source, reference, hypothesis of the validation rows; empty without an evaluation.
        tokenizer: tokenizer_config.json.
        tasks: What the model's config says of its tasks: the prefix of each pair's sources.
    """

    part: Part
    target: Target
    config: Config
    data: dict[str, Any]
    lines: list[dict[str, Any]]
    record: dict[str, Any]
    examples: list[dict[str, Any]]
    tokenizer: dict[str, Any]
    tasks: dict[str, Any]

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        return evaluations_of(self.lines)

    @property
    def scores(self) -> dict[str, Any]:
        """The newest evaluation of these weights or earlier, of an average its own; {} where there is none."""
        if self.part.average_of:
            return self._last_of("average")
        return next((line for line in reversed(self.evaluations) if line["step"] <= self.part.step), {})

    @property
    def test_scores(self) -> dict[str, Any]:
        return self._last_of("test") if self.part.epoch is None else {}

    def _last_of(self, split: str) -> dict[str, Any]:
        return (evaluations_of(self.lines, split) or [{}])[-1]


def collect(folder: RunFolder, part: Part, target: Target, *, record: dict[str, Any]) -> Facts:
    """Read what a card needs; `record` is the manifest of the checkpoint that the weights are of."""
    config = folder.stored_config()
    assert config is not None  # a run that has a checkpoint has its configuration
    evaluated = [step for step in folder.metrics.scores("bleu") if step <= part.step]
    name = "average" if part.average_of else f"step_{max(evaluated, default=0)}"
    path = folder.hypotheses_dir / f"{name}.jsonl"
    return Facts(
        part=part,
        target=target,
        config=config,
        data=read_json(folder.data_path),
        lines=lines_until(folder, part),
        record=record,
        examples=read_json_lines(path),
        tokenizer=read_json(part.folder / "tokenizer_config.json"),
        tasks=read_json(part.folder / "config.json").get("task_specific_params") or {},
    )


def lines_until(folder: RunFolder, part: Part) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl up to an epoch's end; all of them for the end of the run."""
    return folder.metrics.lines(until=None if part.epoch is None else part.step)


def choose(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Pick rows evenly over the data: the same ones for every epoch."""
    step = max(1, len(rows) // NUM_EXAMPLES)
    return rows[::step][:NUM_EXAMPLES]


def hub_name(name: str | None) -> str | None:
    """Return the Hub's name of what a flag names, without a revision; None for a local folder."""
    if not name or Path(name).exists() or name.startswith(("/", ".", "~")) or name.count("/") > 1:
        return None
    return split_revision(name)[0]


def dataset_id(config: Config) -> str | None:
    """Return the Hub's name of the data set; None for files, the demo, and archives of OPUS."""
    name = config.data.dataset_name
    if name == "kde4":
        return "Helsinki-NLP/kde4"
    return None if name == "demo" or (name or "").startswith("opus:") else hub_name(name)


def data_name(config: Config) -> str:
    """Name the data in a few words, without a path."""
    data = config.data
    if data.dataset_name == "demo":
        return "mtloop demo"
    return Path(data.dataset_name or (data.train_file or ["?"])[0]).name


def dataset_text(config: Config) -> str:
    if config.data.dataset_name == "demo":
        return "the demo corpus that comes with it"
    name = dataset_id(config)
    return f"[{name}](https://huggingface.co/datasets/{name})" if name else escape(data_name(config))


def linked(name: str | None) -> str:
    on_hub = hub_name(name)
    return (
        f"[{on_hub}](https://huggingface.co/{on_hub})" if on_hub else f"the local model {escape(Path(name or '').name)}"
    )


def source_text(facts: Facts, row: dict[str, Any]) -> str:
    """What the model is given for a row: its source, behind the prefix of its pair."""
    prefix = facts.config.data.source_prefix
    if "pair" in row:
        source_lang, _, target_lang = row["pair"].partition("-")
        prefix = facts.tasks.get(translation_task(source_lang, target_lang), {}).get("prefix")
    return (prefix or "") + str(row["source"])


def escape(text: str) -> str:
    """Show a text in a cell of a table as it is: no markup of Markdown or HTML in it takes effect."""
    one_line = " ".join(text.split())
    if len(one_line) > MAX_EXAMPLE_LENGTH:
        one_line = one_line[: MAX_EXAMPLE_LENGTH - 1] + "…"
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", html.escape(one_line, quote=False))


def number_text(value: float | None, digits: int) -> str:
    return "not finite" if value is None else f"{value:.{digits}f}"


def duration(seconds: float) -> str:
    """Write seconds as 2 h 5 min, 3 min 20 s or 12 s."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole // 60 % 60} min"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"
