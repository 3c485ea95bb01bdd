"""One GPU: training and evaluation of a Marian of opus-mt-en-fr's shape on a corpus, in bf16.

    python tests/benchmarks/gpu_speed.py kde_en_fr.jsonl.gz [--updates 400] [--tokens_per_update 16000]

6 + 6 layers of 512, 59,514 pieces, random weights: the speed does not depend on what they are. Training is train.py's
own, with --max_tokens_per_micro_batch auto; its rate is that of the updates after the first 50. Evaluation is of
--sentences rows with 4 beams and with 1; a model of random weights ends no sentence, so translations end at 1.2 pieces
a source token, about the references' length (--max_length_ratio). Utilisation is the operations of the real tokens (six
a weight and token) over the rate of an 8,192 x 8,192 product in bf16 on the same device. Without a GPU it runs on the
CPU, to try it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from tests.benchmarks.material import (
    MAX_LENGTH,
    SHAPES,
    choose,
    flops_of,
    lengths_of,
    load_pairs,
    make_model,
    matmul_rate,
    parser_of,
    write_pairs,
)

NUM_WARMUP = 50
LENGTH_RATIO = 1.2


def train(given: argparse.Namespace, model: Path, files: dict[str, Path], folder: Path) -> tuple[float, int, float]:
    """Train with train.py's main; return target tokens a second, those of an update, and the peak memory in GiB."""
    from mtloop.cli.commands.train import main

    flags = {
        "model_name_or_path": str(model), "train_file": str(files["train"]), "validation_file": str(files["valid"]),
        "source_lang": given.source_lang, "target_lang": given.target_lang, "output_dir": str(folder),
        "max_train_steps": given.updates, "tokens_per_update": given.tokens_per_update, "logging_steps": 50,
        "max_source_length": MAX_LENGTH, "max_target_length": MAX_LENGTH, "mixed_precision": "bf16",
        "max_tokens_per_micro_batch": "auto", "eval_on_start": False, "num_beams": 1, "val_max_target_length": 8,
        "dataloader_num_workers": given.workers,
    }  # fmt: skip
    if main(flags):
        raise SystemExit("the training failed")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    steady = [line for line in lines if "loss" in line and line["step"] > NUM_WARMUP]
    # Each log covers 50 updates of about as many tokens: the mean rate is the harmonic mean of theirs.
    rate = len(steady) / sum(1 / line["tokens_per_s"] for line in steady)
    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
    return rate, steady[0]["target_tokens"], peak


def evaluate(given: argparse.Namespace, model_path: Path, pairs: list[tuple[str, str]], num_beams: int) -> float:
    """Translate rows as the trainer's evaluation does; return sentences a second."""
    from datasets import Dataset

    from mtloop.config.environment import HardwareConfig
    from mtloop.evaluation.evaluate import default_max_tokens
    from mtloop.evaluation.test_sets import ScoredModel, TestSet
    from mtloop.generation.engine import EngineOptions, TransformersEngine
    from mtloop.runtime.launch import free_memory
    from mtloop.runtime.ranks import Runtime

    runtime = Runtime(HardwareConfig(mixed_precision="bf16"))
    asked = EngineOptions(
        source_lang=given.source_lang, target_lang=given.target_lang, num_beams=num_beams,
        max_source_length=MAX_LENGTH, max_target_length=MAX_LENGTH,
    )  # fmt: skip
    engine = TransformersEngine.load(str(model_path), asked, runtime)
    rows = {"index": list(range(len(pairs))), "source": [pair[0] for pair in pairs], "target": [p[1] for p in pairs]}
    max_tokens = default_max_tokens(engine.network, free_memory(runtime.device), runtime)
    scored = ScoredModel(engine=engine, runtime=runtime, max_tokens=max_tokens, max_length_ratio=LENGTH_RATIO)
    report = scored.evaluate(TestSet(name="rows", rows=Dataset.from_dict(rows), target_lang=given.target_lang))
    runtime.close()
    return report.sentences_per_s


def main() -> None:
    """Print the table."""
    parser = parser_of(__doc__)
    parser.add_argument("--updates", type=int, default=400)
    parser.add_argument("--tokens_per_update", type=int, default=16_000)
    parser.add_argument("--sentences", type=int, default=4_000)
    parser.add_argument("--workers", type=int, default=2, help="loader processes")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        pairs = load_pairs(given)
        model = folder / "model"
        make_model(model, choose(pairs, 20_000), SHAPES["75 M"], vocab_size=10_000)
        files = {
            "train": write_pairs(folder / "train.jsonl", pairs, given),
            "valid": write_pairs(folder / "valid.jsonl", pairs[:16], given),
        }
        sources, targets = (float(lengths.mean()) for lengths in lengths_of(model, choose(pairs, 5_000)))
        tokens_per_s, _, peak = train(given, model, files, folder / "run")
        flops = flops_of(model, source_tokens=1, target_tokens=0) * tokens_per_s * sources / targets
        flops += flops_of(model, source_tokens=0, target_tokens=1) * tokens_per_s
        chosen = choose(pairs, given.sentences, seed=1)
        speeds = {num_beams: evaluate(given, model, chosen, num_beams) for num_beams in (4, 1)}
    rate = matmul_rate("bfloat16", size=8_192 if torch.cuda.is_available() else 2_048)
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"{name}, torch {torch.__version__}, bf16")
    print(f"training: {tokens_per_s / targets:,.0f} pairs/s, {tokens_per_s:,.0f} target tokens/s, peak {peak:.1f} GiB")
    print(f"training: {flops / 1e12:.2f} TFLOP/s of {rate / 1e12:.2f}: {flops / rate:.1%}")
    for num_beams, speed in speeds.items():
        print(f"evaluation, {num_beams} beam(s): {speed:,.1f} sentences/s")


if __name__ == "__main__":
    main()
