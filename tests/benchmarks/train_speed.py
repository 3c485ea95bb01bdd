"""Training: real target tokens and pairs a second of the loop alone, Seq2SeqTrainer beside mtloop.

    python tests/benchmarks/train_speed.py kde_en_fr.jsonl.gz [--updates 150] [--rounds 3] [--model FOLDER]

The whole corpus, the same weights and threads for all, each its own choice of batches and its first updates; the
contestants run in turn, each in a process of its own, and medians are compared. mtloop's updates hold as many target
tokens as the peer's batches of 32 do on average, and it makes --updates of them, the peer a third: batches are drawn at
random, so either is a sample of the corpus. The share of real tokens is of source and target together, in all that went
through the model. Operations are those of the real tokens (six a weight and token), over the rate of a 2,048 x 2,048
matrix product in the same precision.
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

from mtloop.batching import Budget, EpochPlan, divide_update, plan_epoch
from mtloop.config import MICRO_BATCH_TOKENS
from mtloop.manifest import read_manifest
from tests.benchmarks.material import (
    MAX_LENGTH,
    VALID_PAIRS,
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
Lengths = tuple[np.ndarray, np.ndarray]


def train_ours(
    given: argparse.Namespace, model: Path, files: dict[str, Path], folder: Path, lengths: Lengths, *more: str
) -> dict[str, float]:
    """Train with train.py and return the seconds of its updates and what went into them."""
    command = [
        sys.executable, "train.py", "--model_name_or_path", str(model), "--train_file", str(files["train"]),
        "--validation_file", str(files["valid"]), "--source_lang", given.source_lang, "--target_lang",
        given.target_lang, "--output_dir", str(folder), "--max_train_steps", str(given.updates), "--max_source_length",
        str(MAX_LENGTH), "--max_target_length", str(MAX_LENGTH), "--weight_decay", "0.01", "--eval_on_start", "false",
        "--num_beams", "1", "--val_max_target_length", "8", "--cpu_threads", str(given.threads), *more,
    ]  # fmt: skip
    run_quietly(command, threads=given.threads)
    (checkpoint,) = (path for path in (folder / "checkpoints").iterdir() if path.name.startswith("step_"))
    manifest = read_manifest(checkpoint)
    sources, targets = lengths
    plan = plan_epoch(sources, targets, Budget(tokens=manifest["tokens_per_update"]), seed=42, epoch=0)
    ids = np.concatenate([plan.sentence_ids(update) for update in range(given.updates)])
    assert int(targets[ids].sum()) == manifest["state"]["target_tokens"]  # it trained on what is counted here
    return {
        "seconds": manifest["state"]["train_time_s"], "pairs": len(ids), "source_tokens": int(sources[ids].sum()),
        "target_tokens": int(targets[ids].sum()), "share_real": share_real(sources, targets, plan, given.updates),
    }  # fmt: skip


def share_real(sources: np.ndarray, targets: np.ndarray, plan: EpochPlan, num_updates: int) -> float:
    """Real tokens in all that the first updates of an epoch of mtloop's compute, both sides."""
    real = computed = 0
    for update in range(num_updates):
        ids = plan.sentence_ids(update)
        real += int(sources[ids].sum()) + int(targets[ids].sum())
        parts = divide_update(ids, sources, targets, max_tokens=MICRO_BATCH_TOKENS, rank=0, num_ranks=1)
        rows = [part.sentence_ids for part in parts]
        computed += sum(len(ids) * (int(sources[ids].max()) + int(targets[ids].max())) for ids in rows)
    return real / computed


def main() -> None:
    """Print the table."""
    parser = parser_of(__doc__)
    parser.add_argument("--updates", type=int, default=150, help="mtloop's updates; the peer makes a third of them")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        pairs = load_pairs(given)
        model = model_folder(given, pairs, folder)
        files = {
            "train": write_pairs(folder / "train.jsonl", pairs, given),
            "valid": write_pairs(folder / "valid.jsonl", pairs[:VALID_PAIRS], given),
        }
        lengths = lengths_of(model, pairs)
        tokens_per_update = round(32 * float(lengths[1].mean()))
        found: dict[str, list[dict[str, float]]] = {name: [] for name in (*PEERS, *OURS)}
        for number in range(given.rounds):
            for name, arguments in PEERS.items():
                options = {
                    "model": str(model), "train": str(files["train"]), "source_lang": given.source_lang,
                    "target_lang": given.target_lang,
                    "arguments": {"use_cpu": True, "max_steps": max(1, given.updates // 3), **arguments},
                }  # fmt: skip
                found[name].append(run_apart("peer_training.py", options, threads=given.threads))
            for name, precision in OURS.items():
                more = ["--tokens_per_update", str(tokens_per_update), "--mixed_precision", precision]
                run = folder / f"run-{number}-{precision}"
                found[name].append(train_ours(given, model, files, run, lengths, *more))
        show(found, model)
        plan = plan_epoch(*lengths, Budget(tokens=tokens_per_update), seed=42, epoch=0)
        whole = share_real(*lengths, plan, plan.num_updates)
    print(f"real tokens in what mtloop computes over the whole corpus of {len(pairs):,} pairs: {whole:.1%}")


def show(found: dict[str, list[dict[str, float]]], model: Path) -> None:
    """Print a line a contestant, and the ratios that matter."""
    rates = {name: matmul_rate(name) for name in ("float32", "bfloat16")}
    print(f"matrix products: fp32 {rates['float32'] / 1e9:,.0f} GFLOP/s, bf16 {rates['bfloat16'] / 1e9:,.0f} GFLOP/s")
    print(
        f"{'target tokens a second':40}{'median':>8}{'lowest':>8}{'highest':>9}{'pairs/s':>9}{'real':>8}{'of rate':>9}"
    )
    medians = {}
    for name, runs in found.items():
        speeds = [run["target_tokens"] / run["seconds"] for run in runs]
        medians[name] = statistics.median(speeds)
        run = runs[speeds.index(sorted(speeds)[len(speeds) // 2])]
        flops = flops_of(model, source_tokens=int(run["source_tokens"]), target_tokens=int(run["target_tokens"]))
        share = flops / run["seconds"] / rates["bfloat16" if "bf16" in name else "float32"]
        print(
            f"{name:40}{medians[name]:>8,.0f}{min(speeds):>8,.0f}{max(speeds):>9,.0f}"
            f"{run['pairs'] / run['seconds']:>9.0f}{run['share_real']:>8.1%}{share:>9.1%}"
        )
    for name in PEERS:
        ratios = [medians[ours] / medians[name] for ours in OURS]
        print(f"mtloop / {name}: fp32 {ratios[0]:.1f} times, bf16 {ratios[1]:.1f} times")


if __name__ == "__main__":
    main()
