"""BLEU and survival with and without --protect placeholders: two trainings that differ in nothing else.

    python tests/benchmarks/protection.py kde_en_fr.jsonl.gz [--max_chars 80] [--updates 8000] [--output_dir FOLDER]

A model from scratch on the short texts of a corpus, split by source: no source of the validation rows is one of the
training rows. Both runs, at the same time on one thread each, draw the same sentences in each update. An --output_dir
that holds the runs is continued or only shown.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from mtloop.metrics_log import evaluations_of
from mtloop.placeholders import KINDS
from mtloop.run_folder import RunFolder
from mtloop.tables import aligned
from mtloop.tokenization.protection import PROTECTED
from tests.benchmarks.material import ROOT, load_pairs, write_pairs

ARMS: Mapping[str, list[str]] = {"text": [], "masked": ["--protect", "placeholders"]}


def start(given: argparse.Namespace, corpus: Path, folder: Path, flags: list[str]) -> subprocess.Popen[bytes]:
    """Start a training."""
    words = [
        sys.executable, "train.py", "--train_file", corpus, "--source_lang", given.source_lang,
        "--target_lang", given.target_lang, "--split_by", "source", "--train_tokenizer",
        "--vocab_size", given.vocab_size,
        "--model_size", given.model_size, "--sentences_per_update", given.sentences,
        "--max_train_steps", given.updates, "--eval_steps", given.every, "--cpu_threads", "1",
        "--mixed_precision", "no", "--num_samples", "0", "--output_dir", folder, *flags,
    ]  # fmt: skip
    with folder.with_suffix(".log").open("ab") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(list(map(str, words)), cwd=ROOT, stdout=log, stderr=log, env=environment)


def table(lines: dict[str, dict[str, Any]]) -> list[str]:
    """Format the last evaluations, one column for each training."""
    names = ["step", "num_sentences", "eval_loss", "bleu", "chrf", "survival"]
    names += [f"survival_{kind}" for kind in KINDS if any(f"survival_{kind}" in line for line in lines.values())]
    rows = [["", *lines]]
    for name in names:
        kind = KINDS.get(name.removeprefix("survival_"))
        is_kept = kind is None or kind.name in (*PROTECTED, "edge_space")
        title = name if kind is None else f"survival {kind.title}{'' if is_kept else ' (not masked)'}"
        rows.append([title, *(_number(line.get(name)) for line in lines.values())])
    return aligned(rows)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.2f}" if isinstance(value, float) else f"{value:,}"


def main() -> None:
    """Train twice and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", help="a corpus in any format that train.py reads")
    parser.add_argument("--source_lang", default="en")
    parser.add_argument("--target_lang", default="fr")
    parser.add_argument("--max_chars", type=int, default=80, help="characters of the longest text")
    parser.add_argument("--updates", type=int, default=8_000)
    parser.add_argument("--every", type=int, default=4_000, help="updates between evaluations")
    parser.add_argument("--sentences", type=int, default=64, help="sentences of an update")
    parser.add_argument("--vocab_size", type=int, default=4_000)
    parser.add_argument("--model_size", default="tiny")
    parser.add_argument("--output_dir", type=Path, help="keeps the runs")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.output_dir or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        pairs = [pair for pair in load_pairs(given) if max(map(len, pair)) <= given.max_chars]
        corpus = folder.resolve() / "corpus.jsonl"
        write_pairs(corpus, pairs, given)
        running = [start(given, corpus, folder.resolve() / name, flags) for name, flags in ARMS.items()]
        statuses = [one.wait() for one in running]
        if any(statuses):
            sys.exit(f"a training failed: see {folder}/*.log")
        print(f"{len(pairs):,} pairs of at most {given.max_chars} characters")
        lines = {name: evaluations_of(RunFolder(folder / name).metrics.lines())[-1] for name in ARMS}
        print(*table(lines), sep="\n")


if __name__ == "__main__":
    main()
