"""Training: real target tokens and pairs a second of the loop alone, Seq2SeqTrainer beside mtloop.

    python tests/benchmarks/train_speed.py kde_en_fr.jsonl.gz [--pairs 3200] [--rounds 3] [--model FOLDER]

The same rows, weights and threads for all, one epoch each; the contestants run in turn, each in a process of its own,
and medians are compared. mtloop's updates hold as many target tokens as the peer's batches of 32 do on average. The
share of real tokens is of source and target together, in all that went through the model. Operations are those of the
real tokens (six a weight and token), over the rate of a 2,048 x 2,048 matrix product in the same precision.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np

from mtloop.batching import Budget, divide_update, plan_epoch
from mtloop.manifest import read_manifest
from tests.benchmarks.material import (
    MAX_LENGTH,
    VALID_PAIRS,
    choose,
    flops_of,
    lengths_of,
    load_pairs,
    matmul_rate,
    model_folder,
    parser_of,
    run_apart,
    run_quietly,
    write_pairs,
)

COURSE = "Seq2SeqTrainer as in the course"
GROUPED = "Seq2SeqTrainer group_by_length"
GROUPED_BF16 = "Seq2SeqTrainer group_by_length, bf16"
PEERS: dict[str, dict[str, Any]] = {
    COURSE: {},
    GROUPED: {"train_sampling_strategy": "group_by_length"},
    GROUPED_BF16: {"train_sampling_strategy": "group_by_length", "bf16": True},
}
OURS = {"mtloop, fp32": "no", "mtloop, bf16": "bf16"}
MAX_TOKENS_PER_MICRO_BATCH = 4_096


def train_ours(given: argparse.Namespace, model: Path, files: dict[str, Path], folder: Path, *more: str) -> float:
    """Train one epoch with train.py and return the seconds of its updates."""
    command = [
        sys.executable, "train.py", "--model_name_or_path", str(model), "--train_file", str(files["train"]),
        "--validation_file", str(files["valid"]), "--source_lang", given.source_lang, "--target_lang",
        given.target_lang, "--output_dir", str(folder), "--num_train_epochs", "1", "--max_source_length",
        str(MAX_LENGTH), "--max_target_length", str(MAX_LENGTH), "--weight_decay", "0.01", "--eval_on_start", "false",
        "--num_beams", "1", "--cpu_threads", str(given.threads), *more,
    ]  # fmt: skip
    run_quietly(command, threads=given.threads)
    (checkpoint,) = (path for path in (folder / "checkpoints").iterdir() if path.name.startswith("step_"))
    return float(read_manifest(checkpoint)["state"]["train_time_s"])


def share_real(sources: np.ndarray, targets: np.ndarray, tokens_per_update: int) -> float:
    """Real tokens in all that an epoch of mtloop's computes, both sides."""
    plan = plan_epoch(sources, targets, Budget(tokens=tokens_per_update), seed=42, epoch=0)
    computed = 0
    for update in range(plan.num_updates):
        ids = plan.sentence_ids(update)
        for part in divide_update(ids, sources, targets, max_tokens=MAX_TOKENS_PER_MICRO_BATCH, rank=0, num_ranks=1):
            rows = part.sentence_ids
            computed += len(rows) * (int(sources[rows].max()) + int(targets[rows].max()))
    return float((sources.sum() + targets.sum()) / computed)


def main() -> None:
    """Print the table."""
    parser = parser_of(__doc__)
    parser.add_argument("--pairs", type=int, default=3_200, help="pairs of the slice that all train on")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        pairs = load_pairs(given)
        model = model_folder(given, pairs, folder)
        chosen = choose(pairs, given.pairs + VALID_PAIRS)
        files = {
            "train": write_pairs(folder / "train.jsonl", chosen[VALID_PAIRS:], given),
            "valid": write_pairs(folder / "valid.jsonl", chosen[:VALID_PAIRS], given),
        }
        sources, targets = lengths_of(model, chosen[VALID_PAIRS:])
        tokens_per_update = round(32 * float(targets.mean()))
        seconds: dict[str, list[float]] = {name: [] for name in (*PEERS, *OURS)}
        shares = dict.fromkeys(OURS, share_real(sources, targets, tokens_per_update))
        for number in range(given.rounds):
            for name, arguments in PEERS.items():
                options = {
                    "model": str(model), "train": str(files["train"]), "source_lang": given.source_lang,
                    "target_lang": given.target_lang, "arguments": {"use_cpu": True, **arguments},
                }  # fmt: skip
                found = run_apart("peer_training.py", options, threads=given.threads)
                seconds[name].append(found["seconds"])
                shares[name] = found["share_real"]
            for name, precision in OURS.items():
                run = folder / f"run-{number}-{precision}"
                more = ["--tokens_per_update", str(tokens_per_update), "--mixed_precision", precision]
                seconds[name].append(train_ours(given, model, files, run, *more))
        flops = flops_of(model, source_tokens=int(sources.sum()), target_tokens=int(targets.sum()))
        whole = share_real(*lengths_of(model, pairs), tokens_per_update)
    show(seconds, shares, flops, num_pairs=given.pairs, num_tokens=int(targets.sum()))
    print(f"real tokens in what mtloop computes over the whole corpus of {len(pairs):,} pairs: {whole:.1%}")


def show(
    seconds: dict[str, list[float]], shares: dict[str, float], flops: float, *, num_pairs: int, num_tokens: int
) -> None:
    """Print a line a contestant, and the ratios that matter."""
    rates = {name: matmul_rate(name) for name in ("float32", "bfloat16")}
    print(f"matrix products: fp32 {rates['float32'] / 1e9:,.0f} GFLOP/s, bf16 {rates['bfloat16'] / 1e9:,.0f} GFLOP/s")
    print(f"{'':40}{'seconds':>9}{'pairs/s':>9}{'tokens/s':>10}{'real tokens':>13}{'of the rate':>13}")
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    for name, time_s in medians.items():
        share = flops / time_s / rates["bfloat16" if "bf16" in name else "float32"]
        print(
            f"{name:40}{time_s:>9.1f}{num_pairs / time_s:>9.0f}{num_tokens / time_s:>10,.0f}"
            f"{shares[name]:>13.1%}{share:>13.1%}   ({min(seconds[name]):.1f} to {max(seconds[name]):.1f} s)"
        )
    best = medians["mtloop, bf16"]
    for name in PEERS:
        fp32 = medians[name] / medians["mtloop, fp32"]
        print(f"{name} / mtloop: fp32 {fp32:.1f} times, bf16 {medians[name] / best:.1f} times")


if __name__ == "__main__":
    main()
