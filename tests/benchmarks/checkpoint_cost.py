"""Checkpoints: seconds that training stands still for one, Seq2SeqTrainer beside mtloop, and what the writing costs.

    python tests/benchmarks/checkpoint_cost.py [--updates 24] [--save_steps 6]

A Marian of about 10 M and one of 75 M parameters (that of opus-mt-en-fr: 6 + 6 layers of 512, 59,514 pieces), weights
and moments of AdamW in fp32, on pairs of the demo. Still is how long no update is computed: for mtloop the copy that is
taken (the first one also asks for the memory) and, to compare, the whole of a save in the foreground. Writing behind
the loop takes time from the updates beside it: "slower beside it" is what they took longer than others, over one save.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.material import ROOT, SHAPES, make_model, run_apart, run_quietly, write_pairs

TOKENS_PER_UPDATE = 300


def ours(given: dict[str, Any]) -> dict[str, list[float]]:
    """Run train.py's main with clocks around its saves and updates."""
    from mtloop.checkpoint.save import Checkpointer
    from mtloop.cli.commands.train import main
    from mtloop.trainer import loop

    found: dict[str, list[float]] = {"still": [], "quiet": [], "beside": []}
    save, train_step = Checkpointer.save, loop.train_step

    def timed_save(self: Any, *, in_background: bool = False, **options: Any) -> None:
        self.finish()
        start = time.perf_counter()
        save(self, in_background=in_background and given["in_background"], **options)
        found["still"].append(time.perf_counter() - start)

    def timed_step(run: Any, update: Any) -> Any:
        thread = run.checkpointer._writer._thread
        is_beside = thread is not None and thread.is_alive()
        start = time.perf_counter()
        stats = train_step(run, update)
        found["beside" if is_beside else "quiet"].append(time.perf_counter() - start)
        return stats

    Checkpointer.save, loop.train_step = timed_save, timed_step  # type: ignore[method-assign]
    assert main(given["flags"]) == 0
    found["quiet"] = found["quiet"][1:]  # the first update warms up
    return found


def main() -> None:
    """Print the table; with an argument in JSON be the contestant that it describes."""
    if len(sys.argv) > 1 and sys.argv[1].startswith("{"):
        print("\n" + json.dumps(ours(json.loads(sys.argv[1]))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=24)
    parser.add_argument("--save_steps", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    from mtloop.data.demo.grammar import demo_pairs

    pairs = demo_pairs("train")
    print(f"{'parameters':>12}  {'':32}{'still':>9}{'the first':>11}{'an update':>11}{'slower beside it':>18}")
    for name, shape in SHAPES.items():
        with tempfile.TemporaryDirectory(dir=ROOT.parent) as temporary:  # a disk: /tmp may be memory
            show(name, shape, pairs, Path(temporary), given)


def show(
    name: str, shape: dict[str, int], pairs: list[tuple[str, str]], folder: Path, given: argparse.Namespace
) -> None:
    """Run the contestants on one model, and print a line for each."""
    num_parameters = make_model(folder / "model", pairs, shape)
    languages = argparse.Namespace(source_lang="en", target_lang="fr")
    train = write_pairs(folder / "train.jsonl", pairs, languages)
    valid = write_pairs(folder / "valid.jsonl", pairs[:4], languages)
    peer = {
        "model": str(folder / "model"), "train": str(train), "source_lang": "en", "target_lang": "fr",
        "arguments": {
            "use_cpu": True, "max_steps": given.updates, "save_strategy": "steps", "save_steps": given.save_steps,
            "per_device_train_batch_size": 16, "save_total_limit": 2,
        },
    }  # fmt: skip
    lines = {"Seq2SeqTrainer": run_apart("peer_training.py", peer, threads=given.threads)}
    flags = [
        "--model_name_or_path", folder / "model", "--train_file", train, "--validation_file", valid, "--source_lang",
        "en", "--target_lang", "fr", "--max_train_steps", given.updates, "--save_steps", given.save_steps,
        "--tokens_per_update", TOKENS_PER_UPDATE, "--mixed_precision", "no", "--eval_on_start", "false", "--num_beams",
        "1", "--val_max_target_length", "8", "--save_total_limit", "2", "--cpu_threads", given.threads,
    ]  # fmt: skip
    for title, in_background in (("mtloop, in the foreground", False), ("mtloop", True)):
        out = folder / f"run-{in_background}"
        options = {"flags": [*map(str, flags), "--output_dir", str(out)], "in_background": in_background}
        command = [sys.executable, __file__, json.dumps(options)]
        lines[title] = json.loads(run_quietly(command, threads=given.threads).stdout.strip().splitlines()[-1])
    for title, found in lines.items():
        still = statistics.median(found["still"][1:])
        text = f"{num_parameters / 1e6:>10.1f} M  {title:32}{still:>7.2f} s{found['still'][0]:>9.2f} s"
        if "quiet" in found:
            usual = statistics.median(found["quiet"])
            lost = sum(one - usual for one in found["beside"]) / len(found["still"])
            text += f"{usual:>9.2f} s{lost:>16.2f} s"
        print(text)


if __name__ == "__main__":
    main()
