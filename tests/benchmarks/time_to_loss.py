"""Seconds to a given validation loss per token, from scratch: Seq2SeqTrainer beside mtloop.

    python tests/benchmarks/time_to_loss.py kde_en_fr.jsonl.gz --goal 5.5 [--pairs 12000] [--output curves.png]
    python tests/benchmarks/time_to_loss.py demo --goal 1.5

The same model of random weights, rows, threads, validation rows, peak learning rate, linear schedule and warm-up; an
update holds the same number of target tokens on average (the peer's 32 sentences). Only seconds of training count:
validation is left out on both sides. mtloop runs in bf16 where the processor has it (--precision auto); so does one
of the peers.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.material import (
    MAX_LENGTH,
    choose,
    lengths_of,
    load_pairs,
    model_folder,
    parser_of,
    run_apart,
    run_quietly,
    write_pairs,
)

PEERS: dict[str, dict[str, Any]] = {
    "Seq2SeqTrainer as in the course": {},
    "Seq2SeqTrainer group_by_length": {"train_sampling_strategy": "group_by_length"},
    "Seq2SeqTrainer group_by_length, bf16": {"train_sampling_strategy": "group_by_length", "bf16": True},
}
OURS = "mtloop"
LEARNING_RATE, WARMUP, BETAS = 1e-3, 100, (0.9, 0.98)
NUM_VALID = 300
Points = list[tuple[float, float]]


def follow_ours(
    given: argparse.Namespace, model: Path, files: dict[str, Path], folder: Path, tokens_per_update: int, steps: int
) -> Points:
    """Train with train.py; the points are those of metrics.jsonl."""
    command = [
        sys.executable, "train.py", "--model_name_or_path", str(model), "--train_file", str(files["train"]),
        "--validation_file", str(files["valid"]), "--source_lang", given.source_lang, "--target_lang",
        given.target_lang, "--output_dir", str(folder), "--max_source_length", str(MAX_LENGTH), "--max_target_length",
        str(MAX_LENGTH), "--val_max_target_length", "2", "--eval_on_start", "false", "--num_beams", "1",
        "--cpu_threads", str(given.threads), "--tokens_per_update", str(tokens_per_update), "--learning_rate",
        str(LEARNING_RATE), "--num_warmup_steps", str(WARMUP), "--adam_beta2", str(BETAS[1]), "--max_train_steps",
        str(steps), "--eval_steps", str(given.every), "--mixed_precision", given.precision, "--save_total_limit", "1",
    ]  # fmt: skip
    run_quietly(command, threads=given.threads)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    return [(line["train_time_s"], line["eval_loss"]) for line in lines if "eval_loss" in line]


def reached(points: Points, goal: float) -> float | None:
    """The seconds at the first point that is at the goal."""
    return next((seconds for seconds, loss in points if loss <= goal), None)


def main() -> None:
    """Print the table, and draw the curves where --output is given."""
    parser = parser_of(__doc__)
    parser.add_argument("--pairs", type=int, default=12_000)
    parser.add_argument("--goal", type=float, required=True, help="validation loss, nats per target token")
    parser.add_argument("--every", type=int, default=25, help="updates between validations")
    parser.add_argument("--epochs", type=float, default=2.0, help="length of the schedule, for all")
    parser.add_argument("--precision", default="auto", help="mtloop's --mixed_precision")
    parser.add_argument("--output", help="a PNG of the curves")
    given = parser.parse_args()
    curves: dict[str, Points] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        chosen = choose(load_pairs(given), given.pairs + NUM_VALID)
        model = model_folder(given, chosen, folder)
        files = {
            "train": write_pairs(folder / "train.jsonl", chosen[NUM_VALID:], given),
            "valid": write_pairs(folder / "valid.jsonl", chosen[:NUM_VALID], given),
        }
        _, targets = lengths_of(model, chosen[NUM_VALID:])
        steps = round(given.epochs * -(-len(targets) // 32))
        tokens = round(32 * float(targets.mean()))
        curves[OURS] = follow_ours(given, model, files, folder / "run", tokens, steps)
        for name, arguments in PEERS.items():
            options = {
                "model": str(model), "train": str(files["train"]), "valid": str(files["valid"]),
                "source_lang": given.source_lang, "target_lang": given.target_lang, "goal": given.goal,
                "every": given.every,
                "arguments": {
                    "use_cpu": True, "learning_rate": LEARNING_RATE, "warmup_steps": WARMUP, "weight_decay": 0.0,
                    "adam_beta2": BETAS[1], "max_steps": steps, **arguments,
                },
            }  # fmt: skip
            curves[name] = [
                tuple(point) for point in run_apart("peer_training.py", options, threads=given.threads)["points"]
            ]
    show(curves, given.goal)
    if given.output:
        draw(curves, given.goal, Path(given.output))


def show(curves: dict[str, Points], goal: float) -> None:
    """Print a line a contestant."""
    ours = reached(curves[OURS], goal)
    print(f"{'':40}{'seconds to ' + str(goal):>18}{'mtloop takes':>14}")
    for name, points in curves.items():
        seconds = reached(points, goal)
        best = min(points, key=lambda point: point[1])
        if seconds is None:
            print(f"{name:40}{'not reached':>18}   best {best[1]:.3f} after {best[0]:.0f} s")
        else:
            share = "" if ours is None else f"{ours / seconds:.2f} of it"
            print(f"{name:40}{seconds:>18.1f}{share:>14}")


def draw(curves: dict[str, Points], goal: float, path: Path) -> None:
    """Draw validation loss against seconds of training."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for name, points in curves.items():
        axes.plot([seconds for seconds, _ in points], [loss for _, loss in points], label=name)
    axes.axhline(goal, color="grey", linewidth=0.8)
    axes.set(xlabel="seconds of training", ylabel="validation loss, nats per target token")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
