"""The very same updates: Seq2SeqTrainer is given mtloop's order of sentences, 32 an update.

    python tests/benchmarks/same_updates.py kde_en_fr.jsonl.gz [--updates 10] [--size opus] [--dropout 0.1] [--rounds 3]

Prints the losses of both side by side, and the seconds of an update; the first update of each warms up and is not
counted. The same weights, threads, fp32, AdamW, learning rate and schedule, and the peer's sinusoidal positions are
frozen, as mtloop's are. Without dropout the losses must be equal; with it, they are compared over --rounds seeds.
--size opus is a model of random weights of the shape of opus-mt-en-fr: 6 + 6 layers, d = 512, 59,514 tokens.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from mtloop.batching.plan import Budget, plan_epoch
from tests.benchmarks.material import (
    VALID_PAIRS,
    choose,
    lengths_of,
    load_pairs,
    model_folder,
    parser_of,
    run_apart,
    train_with_mtloop,
    write_splits,
)

SENTENCES = 32
RATES = {"from scratch": (1e-3, 0.98), "opus": (2e-5, 0.999)}


def train_ours(
    given: argparse.Namespace, model: Path, files: dict[str, Path], folder: Path, seed: int
) -> tuple[list[float], list[float]]:
    """Train with train.py; return the loss and the seconds of each update."""
    rate, beta2 = RATES["opus" if given.size == "opus" else "from scratch"]
    lines = train_with_mtloop(
        given, model, files, folder, "--max_train_steps", given.updates, "--sentences_per_update", SENTENCES,
        "--learning_rate", rate, "--adam_beta2", beta2, "--num_warmup_steps", given.warmup, "--dropout", given.dropout,
        "--seed", seed, "--logging_steps", 1, "--val_max_target_length", 2,
    )  # fmt: skip
    updates = [line for line in lines if "loss" in line]
    return [one["loss"] for one in updates], [one["target_tokens"] / one["tokens_per_s"] for one in updates]


def train_peer(
    given: argparse.Namespace, model: Path, files: dict[str, Path], order: list[int], seed: int
) -> tuple[list[float], list[float]]:
    """Train with Seq2SeqTrainer on the rows in this order; return the loss and the seconds of each update."""
    rate, beta2 = RATES["opus" if given.size == "opus" else "from scratch"]
    options: dict[str, Any] = {
        "model": str(model), "train": str(files["train"]), "source_lang": given.source_lang,
        "target_lang": given.target_lang, "order": order, "freeze_positions": True, "dropout": given.dropout,
        "arguments": {
            "use_cpu": True, "max_steps": given.updates, "learning_rate": rate, "adam_beta2": beta2,
            "warmup_steps": given.warmup, "weight_decay": 0.0, "seed": seed, "logging_steps": 1_000,
        },
    }  # fmt: skip
    found = run_apart("peer_training.py", options, threads=given.threads)
    starts = found["starts"]
    return found["losses"], [end - start for start, end in zip(starts, starts[1:], strict=False)]


def main() -> None:
    """Print the table."""
    parser = parser_of(__doc__)
    parser.add_argument("--updates", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=0, help="updates of warm-up")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--precision", default="no", help="mtloop's --mixed_precision")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        every = load_pairs(given)
        pairs = choose(every, given.updates * SENTENCES + VALID_PAIRS)
        model = model_folder(given, every, folder)
        files = write_splits(folder, pairs, VALID_PAIRS, given)
        _, targets = lengths_of(model, pairs[VALID_PAIRS:])
        for seed in range(given.rounds):
            order = plan_epoch(targets, Budget(sentences=SENTENCES), seed=seed, epoch=0).order.tolist()
            ours = train_ours(given, model, files, folder / f"run-{seed}", seed)
            theirs = train_peer(given, model, files, order, seed)
            show(seed, ours, theirs)


def show(seed: int, ours: tuple[list[float], list[float]], theirs: tuple[list[float], list[float]]) -> None:
    """Print ten means of the losses of neighbouring updates, and the seconds of an update."""
    losses, times = zip(ours, theirs, strict=True)
    size = max(1, len(losses[0]) // 10)
    print(f"seed {seed}{'update':>12}{'mtloop':>14}{'Seq2SeqTrainer':>16}{'difference':>14}")
    for start in range(0, len(losses[0]), size):
        mine, other = (statistics.fmean(one[start : start + size]) for one in losses)
        print(f"{start + 1:>18}{mine:>14.7f}{other:>16.7f}{mine - other:>14.7f}")
    mine, other = (statistics.fmean(one[1:]) for one in times)
    print(f"seconds an update: mtloop {mine:.3f}, Seq2SeqTrainer {other:.3f}: {other / mine:.1f} times as fast\n")


if __name__ == "__main__":
    main()
