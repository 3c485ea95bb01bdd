"""The card's tables: results by epoch, examples, and how the model was trained."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

from mtloop.config.inputs import split_revision
from mtloop.config.settings import DEFAULTS, flat
from mtloop.evaluation.significance import recorded_text
from mtloop.hub.facts import (
    Facts,
    choose,
    duration,
    escape,
    hub_name,
    number_text,
)
from mtloop.metrics_log import evaluations_of, updates_of

# Where the run stood on one machine, and where it is pushed: nothing that it was trained with.
UNTOLD = {"output_dir", "overwrite_cache", "resume_from_checkpoint", "allow_changed", "preprocessing_num_workers"}
FILE_SETTINGS = {"train_file", "validation_file", "test_file", "model_name_or_path", "tokenizer_name", "config_name"}
CHANCE_TEXT = (
    "± is half of the 95 % confidence interval by bootstrap; in parentheses, where the model was evaluated before "
    "training, the difference from that and the p-value of the paired bootstrap test."
)


def results(facts: Facts) -> str:
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
            f"| {label} | {line['step']:,} | {training} | {number_text(line['eval_loss'], 4)} | "
            f"{mark}{recorded_text(line, 'bleu')}{mark} | {recorded_text(line, 'chrf')} |"
        )
    scores = facts.scores or rows[-1][1]
    if pairs := facts.config.data.pair_names:
        table += [
            "",
            "BLEU and chrF are the mean of the pairs; of each at last:",
            "",
            "| pair | BLEU | chrF |",
            "|---|---:|---:|",
        ]
        table += [
            f"| {pair} | {recorded_text(scores, f'bleu_{pair}')} | {recorded_text(scores, f'chrf_{pair}')} |"
            for pair in pairs
        ]
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


def epoch_rows(lines: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any], float | None]]:
    """List (label, evaluation, mean logged training loss) of each epoch, that before the training first.

    An epoch with several evaluations is shown by its last.
    """

    def epoch_of(line: dict[str, Any]) -> int:
        return -int(-line["epoch"] // 1)  # the epoch that an update is part of, from 1; 0 before the first

    losses: dict[int, float] = {}
    updates = updates_of(lines)
    for epoch, logged in groupby(updates, key=epoch_of):
        group = list(logged)
        tokens = sum(line["target_tokens"] for line in group)
        losses[epoch] = sum(line["loss"] * line["target_tokens"] for line in group) / tokens
    last = {epoch_of(line): line for line in evaluations_of(lines)}
    return [
        ("before training" if epoch == 0 else f"{line['epoch']:g}", line, losses.get(epoch))
        for epoch, line in sorted(last.items())
    ]


def examples(facts: Facts) -> str:
    rows = choose(facts.examples)
    if not rows:
        return ""
    table = ["## Examples", "", "| source | translation | reference |", "|---|---|---|"]
    for row in rows:
        cells = [escape(row[name]) for name in ("source", "hypothesis", "reference")]
        table.append(f"| {' | '.join(cells)} |")
    return "\n".join([*table, "", "From the validation data, evenly picked."])


def training(facts: Facts) -> str:
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


def _setting(name: str, value: Any) -> str:
    if name in FILE_SETTINGS:  # where files lie is nobody's business
        values = value if isinstance(value, (list, tuple)) else [value]
        return " ".join(one if hub_name(one) == split_revision(one)[0] else Path(one).name for one in values)
    return str(value)
