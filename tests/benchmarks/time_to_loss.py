"""Validation loss and BLEU against seconds and against updates: Seq2SeqTrainer beside mtloop.

    python tests/benchmarks/time_to_loss.py kde_en_fr.jsonl.gz [--pairs 6400] [--seeds 2]           from scratch
    python tests/benchmarks/time_to_loss.py demo --pairs 11400 --every 50                           from scratch
    python tests/benchmarks/time_to_loss.py kde_en_fr.jsonl.gz --hold_out KDE/rkward                fine-tuning

Both sides: the same starting weights, training and validation rows, threads, 32 sentences an update, AdamW, peak rate,
linear schedule and warm-up; each draws its own batches. Only seconds of training count: validation is left out. BLEU is
of one beam. --hold_out trains a base with mtloop on all rows but those whose `id` begins so, and fine-tunes it on
these, for 3 epochs, BLEU on 500 of them.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.material import (
    MAX_LENGTH,
    choose,
    load_pairs,
    model_folder,
    parser_of,
    run_apart,
    run_quietly,
    train_with_mtloop,
    write_pairs,
    write_splits,
)

OURS, COURSE = "mtloop", "Seq2SeqTrainer as in the course"
PEERS: dict[str, dict[str, Any]] = {
    COURSE: {},
    "Seq2SeqTrainer group_by_length": {"train_sampling_strategy": "group_by_length"},
}
SENTENCES = 32
SCRATCH = {"learning_rate": 1e-3, "warmup": 60, "beta2": 0.98, "epochs": 1, "num_valid": 300}
TUNING = {"learning_rate": 3e-4, "warmup": 0, "beta2": 0.999, "epochs": 3, "num_valid": 500}
# updates, seconds of training, validation loss, BLEU, half of its 95 % confidence interval
Point = tuple[float, float, float, float, float]


def read_held_out(given: argparse.Namespace) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return the pairs of the application that is held out, and all others."""
    parts: tuple[list[tuple[str, str]], list[tuple[str, str]]] = [], []
    with gzip.open(given.corpus, "rt", encoding="utf-8") as file:
        for row in map(json.loads, file):
            pair = row["translation"][given.source_lang], row["translation"][given.target_lang]
            if all(text.strip() for text in pair):
                parts[not row["id"].startswith(given.hold_out)].append(pair)
    return parts


def train_base(given: argparse.Namespace, pairs: list[tuple[str, str]], folder: Path) -> Path:
    """Train a model from scratch with mtloop's defaults, unless --base has it; return its folder."""
    run = Path(given.base).resolve() if given.base else folder / "base"
    if (run / "final").exists():
        return run / "final"
    train = write_pairs(run.parent / f"{run.name}.jsonl", pairs, given)
    command = [
        sys.executable, "train.py", "--train_file", str(train), "--validation_split", "0.005", "--source_lang",
        given.source_lang, "--target_lang", given.target_lang, "--train_tokenizer", "--model_size", "small",
        "--num_train_epochs", str(given.base_epochs), "--num_beams", "1", "--cpu_threads", str(given.threads),
        "--mixed_precision", given.precision, "--output_dir", str(run),
    ]  # fmt: skip
    run_quietly(command, threads=given.threads)
    return run / "final"


def follow_ours(
    given: argparse.Namespace, plan: dict[str, float], model: Path, files: dict[str, Path], folder: Path, seed: int
) -> list[Point]:
    """Train with train.py; the points are those of metrics.jsonl."""
    lines = train_with_mtloop(
        given, model, files, folder, "--val_max_target_length", MAX_LENGTH if given.bleu else 2,
        "--sentences_per_update", SENTENCES, "--learning_rate", plan["learning_rate"], "--num_warmup_steps",
        plan["warmup"], "--adam_beta2", plan["beta2"], "--max_train_steps", plan["steps"], "--eval_steps", given.every,
        "--save_total_limit", 1, "--seed", seed,
    )  # fmt: skip
    names = ("step", "train_time_s", "eval_loss", "bleu", "bleu_ci")
    return [tuple(line[name] for name in names) for line in lines if "eval_loss" in line]


def follow_peer(
    given: argparse.Namespace, plan: dict[str, float], model: Path, files: dict[str, Path], peer: str, seed: int
) -> list[Point]:
    """Train with Seq2SeqTrainer."""
    options = {
        "model": str(model), "train": str(files["train"]), "valid": str(files["valid"]), "bleu": given.bleu,
        "source_lang": given.source_lang, "target_lang": given.target_lang, "every": given.every,
        "freeze_positions": given.freeze_positions,
        "arguments": {
            "use_cpu": True, "learning_rate": plan["learning_rate"], "warmup_steps": plan["warmup"],
            "weight_decay": 0.0, "adam_beta2": plan["beta2"], "max_steps": plan["steps"], "seed": seed, **PEERS[peer],
        },
    }  # fmt: skip
    return [tuple(point) for point in run_apart("peer_training.py", options, threads=given.threads)["points"]]


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = parser_of(__doc__)
    parser.add_argument("--pairs", type=int, default=6_400, help="training pairs, from scratch")
    parser.add_argument("--hold_out", help="fine-tune on the rows whose id begins so")
    parser.add_argument("--base", help="the run folder of the base, trained there and kept (none: a temporary one)")
    parser.add_argument("--base_epochs", type=int, default=2, help="epochs of the base of --hold_out")
    parser.add_argument("--every", type=int, default=25, help="updates between validations")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--precision", default="no", help="mtloop's --mixed_precision; the peers run in fp32")
    parser.add_argument("--bleu", action="store_true", help="BLEU as well; implied by demo and --hold_out")
    parser.add_argument("--course_only", action="store_true", help="leave out the peer that groups by length")
    parser.add_argument("--freeze_positions", action="store_true", help="the peers' positions are not trained either")
    parser.add_argument("--output", help="a PNG of the curves of the first seed")
    given = parser.parse_args()
    given.bleu |= given.corpus == "demo" or bool(given.hold_out)
    return given


def main() -> None:
    """Print the tables, and draw the curves where --output is given."""
    given = parse()
    plan: dict[str, float] = dict(TUNING if given.hold_out else SCRATCH)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        num_valid = int(plan["num_valid"])
        if given.hold_out:
            own, others = read_held_out(given)
            pairs = choose(own, len(own))
            model = train_base(given, others, folder)
        else:
            pairs = choose(load_pairs(given), given.pairs + num_valid)
            model = model_folder(given, pairs, folder)
        files = write_splits(folder, pairs, num_valid, given)
        plan["steps"] = plan["epochs"] * -(-(len(pairs) - num_valid) // SENTENCES)
        peers = [COURSE] if given.course_only else list(PEERS)
        print(f"{len(pairs) - num_valid:,} training pairs, {plan['steps']} updates", flush=True)
        if given.hold_out:
            show_base(given, model, files)
        every: list[dict[str, list[Point]]] = []
        for seed in range(given.seeds):
            curves = {OURS: follow_ours(given, plan, model, files, folder / f"run-{seed}", seed)}
            curves |= {peer: follow_peer(given, plan, model, files, peer, seed) for peer in peers}
            every.append(curves)
            show(curves, seed, given.bleu)
        show_means(every)
    if given.output:
        draw(every[0], Path(given.output), has_bleu=given.bleu)


def show_base(given: argparse.Namespace, model: Path, files: dict[str, Path]) -> None:
    """Print the BLEU of the base on the validation rows of the application that it does not know."""
    command = [
        sys.executable, "-m", "mtloop", "evaluate", "--model", str(model), "--test_set", str(files["valid"]),
        "--source_lang", given.source_lang, "--target_lang", given.target_lang, "--num_beams", "1",
    ]  # fmt: skip
    print(run_quietly(command, threads=given.threads).stdout.strip())


def reached(points: list[Point], goal: float) -> float | None:
    """The seconds at the first point whose loss is at the goal, between two points by a straight line."""
    for before, after in zip([points[0], *points], points, strict=False):
        if after[2] <= goal:
            share = 1.0 if before[2] <= after[2] else (before[2] - goal) / (before[2] - after[2])
            return before[1] + share * (after[1] - before[1])
    return None


def show(curves: dict[str, list[Point]], seed: int, has_bleu: bool) -> None:
    """Print each contestant's end, and the seconds in which mtloop reaches the peer's loss."""
    print(f"\nseed {seed}{'':28}{'updates':>9}{'seconds':>9}{'loss':>8}{'BLEU':>15}{'mtloop is there after':>24}")
    for name, points in curves.items():
        updates, seconds, loss, bleu, interval = points[-1]
        text = f"{name:34}{updates:>9.0f}{seconds:>9.1f}{loss:>8.3f}"
        text += f"{bleu:>9.2f} ±{interval:4.2f}" if has_bleu else f"{'-':>15}"
        if name != OURS:
            ours = reached(curves[OURS], loss)
            text += f"{'not reached':>24}" if ours is None else f"{ours:>11.1f} s, {ours / seconds:.2f} of it"
        print(text, flush=True)
    print(f"{'loss after updates':>22}" + "".join(f"{point[0]:>8.0f}" for point in curves[OURS]))
    for name, points in curves.items():
        print(f"{name[:21]:>22}" + "".join(f"{point[2]:>8.3f}" for point in points))


def show_means(every: list[dict[str, list[Point]]]) -> None:
    """Print the last losses, means of the seeds."""
    print()
    for name in every[0]:
        losses = [curves[name][-1][2] for curves in every]
        print(f"{name:34}last loss {statistics.fmean(losses):.3f}, mean of {len(losses)}")


def draw(curves: dict[str, list[Point]], path: Path, *, has_bleu: bool) -> None:
    """Draw loss, and BLEU where it was computed, against seconds and against updates."""
    from matplotlib.figure import Figure

    measures = {"validation loss, nats per target token": 2, **({"BLEU": 3} if has_bleu else {})}
    figure = Figure(figsize=(11, 4.5 * len(measures)), layout="constrained")
    for row, (label, column) in zip(figure.subplots(len(measures), 2, squeeze=False), measures.items(), strict=True):
        for axes, (title, against) in zip(row, (("seconds of training", 1), ("updates", 0)), strict=True):
            for name, points in curves.items():
                axes.plot([point[against] for point in points], [point[column] for point in points], label=name)
            axes.set(xlabel=title, ylabel=label)
            axes.grid(alpha=0.3)
            axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
