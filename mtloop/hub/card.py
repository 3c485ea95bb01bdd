"""The model card: README.md of what is pushed, made from the run folder alone.

Source: the metadata of https://huggingface.co/docs/hub/model-cards, written by huggingface_hub's ModelCardData and
EvalResult.
"""

from __future__ import annotations

import html
import json
import re
import shlex
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from mtloop.config import DEFAULTS, Config, flat, is_from_scratch, split_revision
from mtloop.hub.parts import MAIN_BRANCH, Part, Target
from mtloop.run_folder import RunFolder, read_json, read_json_lines

NUM_EXAMPLES, NUM_WIDGETS = 10, 3
MAX_EXAMPLE_LENGTH = 300
# Where the run stood on one machine, and where it is pushed: nothing that it was trained with.
UNTOLD = {"output_dir", "overwrite_cache", "resume_from_checkpoint", "allow_changed", "preprocessing_num_workers"}
FILE_SETTINGS = {"train_file", "validation_file", "test_file", "model_name_or_path", "tokenizer_name", "config_name"}
CHANCE_TEXT = (
    "± is half of the 95 % confidence interval by bootstrap; in parentheses, where the model was evaluated before "
    "training, the difference from that and the p-value of the paired bootstrap test."
)


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
    """

    part: Part
    target: Target
    config: Config
    data: dict[str, Any]
    lines: list[dict[str, Any]]
    record: dict[str, Any]
    examples: list[dict[str, Any]]
    tokenizer: dict[str, Any]

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        return [line for line in self.lines if "bleu" in line and "split" not in line]

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
        return next((line for line in reversed(self.lines) if line.get("split") == split), {})


def collect(folder: RunFolder, part: Part, target: Target, *, record: dict[str, Any]) -> Facts:
    """Read what a card needs; `record` is the manifest of the checkpoint that the weights are of."""
    config = folder.stored_config()
    assert config is not None  # a run that has a checkpoint has its configuration
    evaluated = [line["step"] for line in lines_until(folder, part) if "bleu" in line and line["step"] <= part.step]
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
    )


def lines_until(folder: RunFolder, part: Part) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl up to an epoch's end; all of them for the end of the run."""
    lines = read_json_lines(folder.metrics_path)
    if part.epoch is None:
        return lines
    return [line for line in lines if line.get("step", 0) <= part.step and "split" not in line]


def write_card(facts: Facts) -> str:
    """Write README.md."""
    parts = [_title(facts), _usage(facts), _adapter(facts), _results(facts), _examples(facts), _training(facts)]
    body = "\n\n".join(part for part in parts if part)
    return str(ModelCard(f"---\n{_metadata(facts).to_yaml()}\n---\n\n{body}\n"))


def language_of(code: str | None) -> str | None:
    """Return the ISO 639 code that a tokenizer's code begins with: en of en_XX, eng of eng_Latn; None without one."""
    found = re.fullmatch(r"([A-Za-z]{2,3})([_-].*)?", code or "")
    return found[1].lower() if found else None


def _metadata(facts: Facts) -> ModelCardData:
    data = facts.config.data
    codes = [language_of(data.source_lang), language_of(data.target_lang)]
    languages = list(dict.fromkeys(code for code in codes if code))
    base = hub_name(facts.config.model.model_name_or_path)
    dataset = dataset_id(facts.config)
    return ModelCardData(
        language=languages or None,
        license=facts.target.license,
        base_model=base,
        datasets=[dataset] if dataset else None,
        library_name="transformers",
        pipeline_tag="translation",
        tags=["translation", "mtloop"],
        metrics=["bleu", "chrf"],
        model_name=facts.target.repo_id.split("/")[-1],
        eval_results=_eval_results(facts) or None,
        widget=[{"text": _source_text(facts, row["source"])} for row in choose(facts.examples)[:NUM_WIDGETS]] or None,
    )


def _eval_results(facts: Facts) -> list[EvalResult]:
    name = data_name(facts.config)
    dataset = dataset_id(facts.config) or re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return [
        EvalResult(
            task_type="translation",
            task_name="Translation",
            dataset_type=dataset,
            dataset_name=name,
            dataset_config=facts.config.data.dataset_config_name,
            dataset_split=split,
            metric_type=metric,
            metric_name=title,
            metric_value=round(line[metric], 2),
            metric_config=line[f"{metric}_signature"],
        )
        for split, line in (("validation", facts.scores), ("test", facts.test_scores))
        for metric, title in (("bleu", "BLEU"), ("chrf", "chrF"))
        if metric in line
    ]


def _title(facts: Facts) -> str:
    config, part = facts.config, facts.part
    direction = f"{config.data.source_lang} to {config.data.target_lang}" if config.data.source_lang else "text to text"
    if is_from_scratch(config):
        origin = "trained from scratch with mtloop"
    else:
        origin = f"fine-tuned with mtloop from {_linked(config.model.model_name_or_path)}"
    num_epochs = config.optimizer.num_train_epochs
    if part.average_of:
        *others, last = [f"{step:,}" for step in part.average_of]
        steps = f"{', '.join(others)} and {last}" if others else last
        state = f"Training is complete; this is the average of the weights after {steps} updates."
    elif part.epoch is None:
        state = f"Training is complete; these are the weights after {part.step:,} updates."
    else:
        of = "" if config.optimizer.max_train_steps else f" of {num_epochs}"
        state = f"**Training in progress**: these are the weights after epoch {part.epoch}{of}, update {part.step:,}."
    lines = [
        f"# {facts.target.repo_id.split('/')[-1]}",
        "",
        f"Translates {direction}; {origin} on {_dataset_text(config)}. {state}",
    ]
    for split, line in (("validation", facts.scores), ("test", facts.test_scores)):
        if line:
            lines += [
                "",
                f"**BLEU {line['bleu']:.2f}, chrF {line['chrf']:.2f}** on {line['num_sentences']:,} {split} sentences"
                + (f" (at update {line['step']:,})." if line["step"] != part.step else "."),
            ]
    return "\n".join(lines)


def _usage(facts: Facts) -> str:
    target, data = facts.target, facts.config.data
    revision = "" if target.revision == MAIN_BRANCH else f', revision="{target.revision}"'
    languages = ""
    if "src_lang" in facts.tokenizer and data.source_lang:
        languages = f', src_lang="{data.source_lang}", tgt_lang="{data.target_lang}"'
    text = _source_text(facts, next((row["source"] for row in choose(facts.examples)), "..."))
    name = target.repo_id + ("" if target.revision == MAIN_BRANCH else f"@{target.revision}")
    options = f" --source_lang {data.source_lang} --target_lang {data.target_lang}" if languages else ""
    if data.source_prefix:
        options += f" --source_prefix {shlex.quote(data.source_prefix)}"
    codes = f" --source_lang {data.source_lang} --target_lang {data.target_lang}" if data.source_lang else ""
    return f"""## How to use it

With transformers (version 5 has no translation pipeline):

```python
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{target.repo_id}"{revision}{languages})
model = AutoModelForSeq2SeqLM.from_pretrained("{target.repo_id}"{revision})
batch = tokenizer([{json.dumps(text, ensure_ascii=False)}], return_tensors="pt", padding=True)
output = model.generate(**batch)  # beams, length and target language are in its generation config
print(tokenizer.batch_decode(output, skip_special_tokens=True))
```

With mtloop, translate files, or fine-tune it on your own sentence pairs:

```bash
python -m mtloop translate FILE -o OUT --model {name}{options}
accelerate launch train.py --model_name_or_path {name} --train_file pairs.jsonl{codes}
```"""


def _adapter(facts: Facts) -> str:
    """Say where the adapter of a LoRA run is, and how peft loads it."""
    if not facts.config.tuning.lora_rank:
        return ""
    name, target = facts.config.model.model_name_or_path, facts.target
    revision = "" if target.revision == MAIN_BRANCH else f', revision="{target.revision}"'
    return (
        f"These are the weights of {_linked(name)} with a LoRA adapter merged into them. The adapter alone is in "
        f'`adapter/`: `PeftModel.from_pretrained(base_model, "{target.repo_id}", subfolder="adapter"{revision})`, '
        "with peft."
    )


def _results(facts: Facts) -> str:
    rows = epoch_rows(facts.lines)
    if not rows:
        return ""
    table = [
        "## Results",
        "",
        "| epoch | updates | training loss | validation loss | BLEU | chrF |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    if facts.part.average_of and facts.scores:
        rows.append(("average", facts.scores, None))
    for label, line, loss in rows:
        training = "" if loss is None else f"{loss:.4f}"
        mark = "**" if line is facts.scores else ""
        table.append(
            f"| {label} | {line['step']:,} | {training} | {_number(line['eval_loss'], 4)} | "
            f"{mark}{_number(line['bleu'], 2)}{mark}{_chance(line, 'bleu')} | "
            f"{_number(line['chrf'], 2)}{_chance(line, 'chrf')} |"
        )
    scores = facts.scores or rows[-1][1]
    table += [
        "",
        "Losses are cross-entropies in nats per target token; in training, of the updates logged in the epoch.",
        *([CHANCE_TEXT] if any("bleu_ci" in line for _, line, _ in rows) else []),
        "Hypotheses are scored against the raw references with sacreBLEU:",
        "",
        f"- BLEU `{scores['bleu_signature']}`",
        f"- chrF `{scores['chrf_signature']}`",
    ]
    return "\n".join(table)


def _chance(line: dict[str, Any], metric: str) -> str:
    """Show what chance makes of a score: ` ± 1.20 (+13.70, p = 0.001)`; nothing where that was not computed."""
    text = f" ± {line[f'{metric}_ci']:.2f}" if f"{metric}_ci" in line else ""
    if f"{metric}_gain" in line:
        text += f" ({line[f'{metric}_gain']:+.2f}, p = {line[f'{metric}_p_value']:.3f})"
    return text


def epoch_rows(lines: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any], float | None]]:
    """List (label, evaluation, mean logged training loss) of each epoch, that before the training first.

    An epoch with several evaluations is shown by its last.
    """

    def epoch_of(line: dict[str, Any]) -> int:
        return -int(-line["epoch"] // 1)  # the epoch that an update is part of, from 1; 0 before the first

    losses: dict[int, float] = {}
    updates = [line for line in lines if line.get("loss") is not None]
    for epoch, logged in groupby(updates, key=epoch_of):
        group = list(logged)
        tokens = sum(line["target_tokens"] for line in group)
        losses[epoch] = sum(line["loss"] * line["target_tokens"] for line in group) / tokens
    last = {epoch_of(line): line for line in lines if "bleu" in line and "split" not in line}
    return [
        ("before training" if epoch == 0 else f"{line['epoch']:g}", line, losses.get(epoch))
        for epoch, line in sorted(last.items())
    ]


def choose(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Pick rows evenly over the data: the same ones for every epoch."""
    step = max(1, len(rows) // NUM_EXAMPLES)
    return rows[::step][:NUM_EXAMPLES]


def _examples(facts: Facts) -> str:
    rows = choose(facts.examples)
    if not rows:
        return ""
    table = ["## Examples", "", "| source | translation | reference |", "|---|---|---|"]
    for row in rows:
        cells = [escape(row[name]) for name in ("source", "hypothesis", "reference")]
        table.append(f"| {' | '.join(cells)} |")
    return "\n".join([*table, "", "From the validation data, evenly picked."])


def _training(facts: Facts) -> str:
    return "\n\n".join(["## How it was trained", _data_text(facts), _settings_text(facts), _surroundings_text(facts)])


def _data_text(facts: Facts) -> str:
    lines = ["| data | loaded | dropped | kept |", "|---|---:|---|---:|"]
    for split, counts in facts.data.get("counts", {}).items():
        dropped = ", ".join(f"{number:,} ({reason})" for reason, number in counts["dropped"].items())
        lines.append(f"| {split} | {counts['loaded']:,} | {dropped or 'none'} | {counts['kept']:,} |")
    return "\n".join([*lines, "", f"Fingerprint of data and tokenizer: `{facts.data.get('fingerprint', '')[:16]}`"])


def _settings_text(facts: Facts) -> str:
    hub = {name for name in flat(facts.config) if name.startswith(("hub_", "push_"))}
    different = {
        name: value
        for name, value in flat(facts.config).items()
        if value != DEFAULTS[name] and name not in UNTOLD | hub
    }
    lines = ["Settings that differ from the defaults, or were derived from the others:", ""]
    lines += ["| setting | value |", "|---|---|"]
    lines += [f"| {name} | {escape(_setting(name, value))} |" for name, value in different.items()]
    return "\n".join(lines)


def _surroundings_text(facts: Facts) -> str:
    record, lines = facts.record, []
    if "hardware" in record:
        lines.append(f"- Hardware: {record['hardware']}")
    if "versions" in record:
        lines.append("- Versions: " + ", ".join(f"{name} {version}" for name, version in record["versions"].items()))
    train_time_s = record.get("state", {}).get("train_time_s")
    if train_time_s is not None:
        eval_time_s = sum(line.get("eval_time_s") or 0.0 for line in facts.lines)
        lines.append(f"- Time: {duration(train_time_s)} of updates, {duration(eval_time_s)} of evaluations")
    if "run_id" in record:
        lines.append(f"- Run: `{record['run_id']}`")
    return "\n".join(lines)


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


def _dataset_text(config: Config) -> str:
    if config.data.dataset_name == "demo":
        return "the demo corpus that comes with it"
    name = dataset_id(config)
    return f"[{name}](https://huggingface.co/datasets/{name})" if name else escape(data_name(config))


def _linked(name: str | None) -> str:
    on_hub = hub_name(name)
    return (
        f"[{on_hub}](https://huggingface.co/{on_hub})" if on_hub else f"the local model {escape(Path(name or '').name)}"
    )


def _setting(name: str, value: Any) -> str:
    if name in FILE_SETTINGS:  # where files lie is nobody's business
        values = value if isinstance(value, (list, tuple)) else [value]
        return " ".join(one if hub_name(one) == split_revision(one)[0] else Path(one).name for one in values)
    return str(value)


def _source_text(facts: Facts, text: str) -> str:
    return (facts.config.data.source_prefix or "") + text


def escape(text: str) -> str:
    """Show a text in a cell of a table as it is: no markup of Markdown or HTML in it takes effect."""
    one_line = " ".join(text.split())
    if len(one_line) > MAX_EXAMPLE_LENGTH:
        one_line = one_line[: MAX_EXAMPLE_LENGTH - 1] + "…"
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", html.escape(one_line, quote=False))


def _number(value: float | None, digits: int) -> str:
    return "not finite" if value is None else f"{value:.{digits}f}"


def duration(seconds: float) -> str:
    """Write seconds as 2 h 5 min, 3 min 20 s or 12 s."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole // 60 % 60} min"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"
