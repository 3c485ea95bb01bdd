"""Write the model card, README.md of a push, from the run folder alone.

Owns the facts of a run that a card shows (`Facts`); card.md.jinja owns the text. Must not know the network.

Source: the metadata of https://huggingface.co/docs/hub/model-cards, written by huggingface_hub's ModelCardData and
EvalResult.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from mtloop.atomic import read_json
from mtloop.config.model import split_revision
from mtloop.config.settings import DEFAULTS, Config, flat, is_from_scratch
from mtloop.evaluation.metrics import METRICS, Metric, metrics_of, with_column
from mtloop.evaluation.significance import recorded_text
from mtloop.hub.parts import MAIN_BRANCH, Part, Target, has_curves, lines_until, manifest_of
from mtloop.languages import base_code, is_iso_639, translation_task
from mtloop.metrics_log import evaluations_of, updates_of
from mtloop.run_folder import RunFolder

NUM_EXAMPLES, NUM_WIDGETS = 10, 3
MAX_EXAMPLE_LENGTH = 300
# Settings of one machine or of the push, which do not describe how the model was trained.
OMITTED = {
    "output_dir",
    "overwrite_cache",
    "resume_from_checkpoint",
    "allow_changed",
    "preprocessing_num_workers",
}
FILE_SETTINGS = {"train_file", "validation_file", "test_file", "model_name_or_path", "tokenizer_name", "config_name"}


@dataclass(frozen=True)
class Facts:
    """The facts of a run that a card shows, all read from the run folder.

    Attributes:
        folder: The run folder.
        part: The part that is pushed.
        target: The repository and branch.
    """

    folder: RunFolder
    part: Part
    target: Target

    @cached_property
    def config(self) -> Config:
        """Return the resolved config."""
        config = self.folder.stored_config()
        assert config is not None  # a run that has a checkpoint has its configuration
        return config

    @cached_property
    def lines(self) -> list[dict[str, Any]]:
        """Return metrics.jsonl up to the part's step."""
        return lines_until(self.folder, self.part)

    @cached_property
    def record(self) -> dict[str, Any]:
        """Return the manifest of the checkpoint; {} if it no longer exists."""
        return manifest_of(self.folder, self.part)

    @cached_property
    def tokenizer_config(self) -> dict[str, Any]:
        """Return the tokenizer's settings, which say whether it has two vocabularies and what is masked."""
        return read_json(self.part.folder / "tokenizer_config.json")

    @cached_property
    def examples(self) -> list[dict[str, Any]]:
        """Return index, source, reference, hypothesis of some validation rows; empty without an evaluation."""
        name = "average" if self.part.average_of else f"step_{self.scores.get('step', 0)}"
        return choose(self.folder.hypotheses(name))

    @cached_property
    def scores(self) -> dict[str, Any]:
        """Return the newest evaluation up to these weights; for an average, its own; {} without one."""
        if self.part.average_of:
            return self._last_of("average")
        return next((line for line in reversed(evaluations_of(self.lines)) if line["step"] <= self.part.step), {})

    @cached_property
    def scored_splits(self) -> list[tuple[str, dict[str, Any]]]:
        """Return (name of the split, evaluation); the test rows are scored only at the end of the run."""
        test_scores = self._last_of("test") if self.part.epoch is None else {}
        return [(split, line) for split, line in (("validation", self.scores), ("test", test_scores)) if line]

    def _last_of(self, split: str) -> dict[str, Any]:
        return (evaluations_of(self.lines, split) or [{}])[-1]

    @cached_property
    def epochs(self) -> list[tuple[str, dict[str, Any], float | None]]:
        """Return the rows of the table of results, as epoch_rows lists them; an average is last."""
        rows = epoch_rows(self.lines)
        return [*rows, ("average", self.scores, None)] if rows and self.part.average_of and self.scores else rows

    @cached_property
    def newest(self) -> dict[str, Any]:
        """Return the evaluation from which the signatures and the scores of each pair are shown."""
        return self.scores or self.epochs[-1][1]

    @cached_property
    def metrics(self) -> list[Metric]:
        """Return every metric that an evaluation of the run recorded, without those that another one counts too."""
        return with_column(metric for line in evaluations_of(self.lines) for metric in metrics_of(line))

    @property
    def kinds_of_survival(self) -> list[Metric]:
        """Return the metrics of the newest evaluation that have a table of their own."""
        found = metrics_of(self.newest)
        return [metric for metric in found if metric not in with_column(found)]

    @property
    def has_intervals(self) -> bool:
        return any(key.endswith("_ci") for _, line, _ in self.epochs for key in line)

    @property
    def dataset_text(self) -> str:
        if self.config.data.dataset_name == "demo":
            return "the demo corpus that comes with it"
        name = dataset_id(self.config)
        return f"[{name}](https://huggingface.co/datasets/{name})" if name else escape(data_name(self.config))

    @property
    def tokenizer_codes(self) -> tuple[str, str] | None:
        """Return the pair in the tokenizer's codes; None for a tokenizer that does not take languages."""
        if not self.tokenizer_config.get("src_lang") or not self.config.data.languages[0][0]:
            return None
        return self.tokenizer_config["src_lang"], self.tokenizer_config["tgt_lang"]

    @property
    def settings(self) -> dict[str, str]:
        """Return the settings that differ from the defaults, without the paths of this machine."""
        return {
            name: _setting_text(name, value)
            for name, value in flat(self.config).items()
            if value != DEFAULTS[name] and name not in OMITTED and not name.startswith(("hub_", "push_"))
        }

    @cached_property
    def tasks(self) -> dict[str, Any]:
        """Return the tasks of the model's configuration, which hold the prefix of each pair."""
        return read_json(self.part.folder / "config.json").get("task_specific_params") or {}

    def source_text(self, row: Mapping[str, Any]) -> str:
        """Return the model's input for a row: the prefix of its pair and its source."""
        prefix = self.config.data.source_prefix
        if "pair" in row:
            source_lang, _, target_lang = row["pair"].partition("-")
            prefix = self.tasks.get(translation_task(source_lang, target_lang), {}).get("prefix")
        return (prefix or "") + str(row["source"])


def write_card(folder: RunFolder, part: Part, target: Target) -> str:
    """Return README.md of a part for the target of its push."""
    facts = Facts(folder, part, target)
    is_main = target.revision == MAIN_BRANCH
    card = ModelCard.from_template(
        _metadata(facts),
        template_str=files("mtloop.hub").joinpath("card.md.jinja").read_text(encoding="utf-8"),
        facts=facts,
        part=part,
        config=facts.config,
        repo_id=target.repo_id,
        repo_at_revision=target.repo_id if is_main else f"{target.repo_id}@{target.revision}",
        revision_argument="" if is_main else f', revision="{target.revision}"',
        is_from_scratch=is_from_scratch(facts.config),
        has_curves=has_curves(folder, part),
        metrics_of=lambda line: with_column(metrics_of(line)),
        number=lambda value, digits: "not finite" if value is None else f"{value:.{digits}f}",
        score=recorded_text,
        cell=escape,
        linked=linked,
        duration=duration,
        code=lambda text: json.dumps(text, ensure_ascii=False),
        count="{:,}".format,
    )
    return str(card)


def _metadata(facts: Facts) -> ModelCardData:
    metrics = [metric.name for metric in facts.metrics]
    widget = [{"text": facts.source_text(row)} for row in facts.examples[:NUM_WIDGETS]]
    return config_metadata(facts.config, facts.target, _eval_results(facts), metrics=metrics, widget=widget)


def expected_metadata(config: Config, target: Target) -> ModelCardData:
    """Return the metadata of the card that a run will have, with a score of 0."""
    metric = METRICS["bleu"]
    result = _eval_result(config, metric, 0.0, split="validation", pair=(config.data.pair_names or ("",))[0])
    return config_metadata(config, target, [result], metrics=[metric.name], widget=[{"text": "a"}])


def config_metadata(
    config: Config, target: Target, results: list[EvalResult], *, metrics: list[str], widget: list[dict[str, str]]
) -> ModelCardData:
    """Return the metadata of a card."""
    codes = [language_of(code) for pair in config.data.languages for code in pair]
    dataset = dataset_id(config)
    return ModelCardData(
        language=list(dict.fromkeys(code for code in codes if code)) or None,
        license=target.license,
        base_model=hub_name(config.model.model_name_or_path),
        datasets=[dataset] if dataset else None,
        library_name="transformers",
        pipeline_tag="translation",
        tags=["translation", "mtloop"],
        metrics=metrics or None,
        model_name=target.repo_id.split("/")[-1],
        eval_results=results or None,
        widget=widget or None,
    )


def _eval_result(
    config: Config, metric: Metric, value: float, *, split: str, pair: str = "", signature: str | None = None
) -> EvalResult:
    name = data_name(config)
    return EvalResult(
        task_type="translation",
        task_name=f"Translation {pair}".rstrip(),
        dataset_type=dataset_id(config) or re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "local",
        dataset_name=name,
        dataset_config=pair or config.data.dataset_config_name,
        dataset_split=split,
        metric_type=metric.name,
        metric_name=metric.title,
        metric_value=round(value, metric.decimals),
        metric_config=signature,
    )


def _eval_results(facts: Facts) -> list[EvalResult]:
    return [
        _eval_result(
            facts.config,
            metric,
            value,
            split=split,
            pair=pair,
            signature=line.get(f"{metric.name}_signature", "").rpartition(": ")[2] or None,
        )
        for split, line in facts.scored_splits
        for pair in facts.config.data.pair_names or ("",)
        for metric in with_column(metrics_of(line))
        if (value := line.get(f"{metric.name}_{pair}" if pair else metric.name)) is not None
    ]


def epoch_rows(lines: Iterable[dict[str, Any]]) -> list[tuple[str, dict[str, Any], float | None]]:
    """Return (label, evaluation, mean logged training loss) of each epoch, after the evaluation before training.

    Of several evaluations in an epoch the last is used.
    """

    def epoch_of(line: dict[str, Any]) -> int:
        return -int(-line["epoch"] // 1)  # the epoch of an update, from 1; 0 before the first

    losses: dict[int, float] = {}
    for epoch, logged in groupby(updates_of(lines), key=epoch_of):
        group = list(logged)
        tokens = sum(line["target_tokens"] for line in group)
        losses[epoch] = sum(line["loss"] * line["target_tokens"] for line in group) / max(1, tokens)
    last = {epoch_of(line): line for line in evaluations_of(lines)}
    return [
        ("before training" if epoch == 0 else f"{line['epoch']:g}", line, losses.get(epoch))
        for epoch, line in sorted(last.items())
    ]


def choose(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows at regular intervals: the same ones for every epoch."""
    return rows[:: max(1, len(rows) // NUM_EXAMPLES)][:NUM_EXAMPLES]


def language_of(code: str | None) -> str | None:
    """Return the ISO 639 code that a tokenizer's code begins with: en of en_XX, eng of eng_Latn; None without one."""
    found = re.fullmatch(r"([A-Za-z]{2,3})([_-].*)?", code or "")
    if found is None and code and len(base_code(code)) <= len("eng"):  # a name, as French
        return base_code(code)
    return found[1].lower() if found and is_iso_639(found[1]) else None


def hub_name(name: str | None) -> str | None:
    """Return a name on the Hub without its revision; None for a local folder."""
    if not name or Path(name).exists() or name.startswith(("/", ".", "~")) or name.count("/") > 1:
        return None
    return split_revision(name)[0]


def dataset_id(config: Config) -> str | None:
    """Return the name of the data set on the Hub; None for files, the demo, and archives of OPUS."""
    name = config.data.dataset_name
    if name == "kde4":
        return "Helsinki-NLP/kde4"
    return None if name == "demo" or (name or "").startswith("opus:") else hub_name(name)


def data_name(config: Config) -> str:
    """Return a short name of the data, without a path."""
    data = config.data
    if data.dataset_name == "demo":
        return "mtloop demo"
    return Path(data.dataset_name or (data.train_file or ["?"])[0]).name


def linked(name: str | None) -> str:
    """Return a link to a model of the Hub, or the name of a local one without its path."""
    on_hub = hub_name(name)
    return (
        f"[{on_hub}](https://huggingface.co/{on_hub})" if on_hub else f"the local model {escape(Path(name or '').name)}"
    )


def escape(text: str) -> str:
    """Return a text for a cell of a table: one line without effective Markdown or HTML."""
    one_line = " ".join(text.split())
    if len(one_line) > MAX_EXAMPLE_LENGTH:
        one_line = one_line[: MAX_EXAMPLE_LENGTH - 1] + "…"
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", html.escape(one_line, quote=False))


def duration(seconds: float) -> str:
    """Return seconds as 2 h 5 min, 3 min 20 s or 12 s."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole // 60 % 60} min"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"


def _setting_text(name: str, value: Any) -> str:
    values = value if isinstance(value, (list, tuple)) else [value]
    if name in FILE_SETTINGS:  # the folders of files are private
        values = [one if hub_name(one) == split_revision(one)[0] else Path(one).name for one in values]
    return " ".join(map(str, values))
