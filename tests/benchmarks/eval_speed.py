"""Evaluation: sentences a second of the Hugging Face course's loop beside mtloop's, on a trained model.

    python tests/benchmarks/eval_speed.py kde_en_fr.jsonl.gz --model runs/kde/final [--sentences 1000] [--rounds 3]

The course goes through the file in its order, 8 and 64 sentences at a time, in fp32; mtloop sorts them by length. Same
rows, weights, beams and threads; the contestants run in turn, each in a process of its own, and medians are compared.
Beside the time stand the hypotheses that are equal to those of the course's loop at batch 8, and BLEU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import sacrebleu

from mtloop.evaluation.evaluate import TOKENS_ON_CPU
from tests.benchmarks.material import choose, load_pairs, parser_of, run_apart, write_pairs

CONTESTANTS: dict[str, dict[str, Any]] = {
    "course, batches of 8": {"side": "course", "batch_size": 8},
    "course, batches of 64": {"side": "course", "batch_size": 64},
    "mtloop, fp32": {"side": "mtloop", "engine": "generate", "precision": "no"},
    "mtloop, bf16": {"side": "mtloop", "engine": "generate", "precision": "bf16"},
    "mtloop, ctranslate2": {"side": "mtloop", "engine": "ctranslate2", "precision": "no"},
}


def main() -> None:
    """Print the table."""
    parser = parser_of(__doc__)
    parser.add_argument("--sentences", type=int, default=1_000)
    parser.add_argument("--num_beams", type=int, default=4)
    parser.add_argument("--eval_max_tokens", type=int, default=TOKENS_ON_CPU, help="mtloop's batches, in source tokens")
    given = parser.parse_args()
    if not given.model:
        parser.error("--model: give a model that was trained; one of random weights never ends a sentence")
    seconds: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    hypotheses: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        chosen = choose(load_pairs(given), given.sentences)
        file = write_pairs(folder / "rows.jsonl", chosen, given)
        for _ in range(given.rounds):
            for name, options in CONTESTANTS.items():
                output = folder / "hypotheses.json"
                whole = {
                    **options, "model": str(Path(given.model).resolve()), "file": str(file), "output": str(output),
                    "source_lang": given.source_lang, "target_lang": given.target_lang, "threads": given.threads,
                    "num_beams": given.num_beams, "max_tokens": given.eval_max_tokens,
                }  # fmt: skip
                seconds[name].append(run_apart("peer_evaluation.py", whole, threads=given.threads)["seconds"])
                hypotheses[name] = json.loads(output.read_text("utf-8"))
    show(seconds, hypotheses, [target for _, target in chosen], given)


def show(
    seconds: dict[str, list[float]],
    hypotheses: dict[str, list[str]],
    references: list[str],
    given: argparse.Namespace,
) -> None:
    """Print a line a contestant, and the ratios."""
    print(f"{len(references):,} sentences, {given.num_beams} beams, {given.threads} threads")
    print(f"{'':24}{'seconds':>9}{'sentences/s':>13}{'as batches of 8':>17}{'BLEU':>8}")
    first = next(iter(hypotheses.values()))
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    for name, time_s in medians.items():
        equal = sum(mine == its for mine, its in zip(hypotheses[name], first, strict=True)) / len(first)
        bleu = sacrebleu.corpus_bleu(hypotheses[name], [references]).score
        times = f"({min(seconds[name]):.1f} to {max(seconds[name]):.1f} s)"
        print(f"{name:24}{time_s:>9.1f}{len(first) / time_s:>13.1f}{equal:>17.1%}{bleu:>8.2f}   {times}")
    for peer in ("course, batches of 8", "course, batches of 64"):
        ratios = [f"{name.split()[-1]} {medians[peer] / medians[name]:.1f} times" for name in list(medians)[2:]]
        print(f"{peer} / mtloop: {', '.join(ratios)}")


if __name__ == "__main__":
    main()
