"""What grows with the corpus: planning, start-up, memory; and what a second process gains on the same cores.

    python tests/benchmarks/scaling.py [plan] [start] [processes]

plan: time and peak memory of planning one epoch of 10^5, 10^6 and 10^7 lengths, in a process of its own.
start: train.py on 10^4, 10^5 and 10^6 pairs of the demo's grammar, each told apart by a number: seconds to the first
update with nothing cached and with all cached, and the largest private memory (RssAnon: of what is mapped from files,
as the encoded corpus is, the system may take back every page).
processes: target tokens a second of 2 processes of half the threads against 1 of all, on the same updates.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.material import ROOT, make_standard_model, write_pairs

PLANNED = (10**5, 10**6, 10**7)
STARTED = (10**4, 10**5, 10**6)
SECTIONS = ("plan", "start", "processes")
LANGUAGES = argparse.Namespace(source_lang="en", target_lang="fr")


def plan(num_sentences: int) -> dict[str, float]:
    """Plan one epoch of lengths with the heavy tail of interface strings (median 7 and 9 tokens, cut at 128)."""
    import numpy as np

    from mtloop.batching.plan import Budget, plan_epoch

    rng = np.random.default_rng(0)
    target = np.clip(rng.lognormal(2.2, 1.0, num_sentences), 2, 128).astype(np.int32)
    start = time.perf_counter()
    planned = plan_epoch(target, Budget(tokens=1_000), seed=0, epoch=0)
    time_s = time.perf_counter() - start
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"updates": planned.num_updates, "time_s": time_s, "peak_mib": peak_mib}


def show_plans() -> None:
    """Print a line a size."""
    print(f"{'sentences':>12}{'updates':>12}{'plan time':>12}{'peak memory':>14}")
    for size in PLANNED:
        command = [sys.executable, __file__, str(size)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        found = json.loads(done.stdout)
        print(f"{size:>12,}{found['updates']:>12,}{found['time_s']:>10.2f} s{found['peak_mib']:>10,.0f} MiB")


def pairs_of(number: int) -> Iterator[tuple[str, str]]:
    """So many different pairs."""
    from mtloop.data.demo.grammar import demo_pairs

    pairs = demo_pairs("train")
    for index, (source, target) in enumerate(itertools.islice(itertools.cycle(pairs), number)):
        yield f"{source} ({index})", f"{target} ({index})"


def train_command(folder: Path, train: Path, *flags: object) -> list[str]:
    """The words of a run after the interpreter or the launcher."""
    words = [
        "train.py", "--model_name_or_path", folder / "model", "--train_file", train, "--validation_file",
        folder / "valid.jsonl", "--source_lang", "en", "--target_lang", "fr", "--eval_on_start", "false", "--num_beams",
        "1", "--val_max_target_length", "8", "--mixed_precision", "no", *flags,
    ]  # fmt: skip
    return list(map(str, words))


def first_update(command: list[str], cache: Path) -> tuple[float, float]:
    """Run to the end; return the seconds to the first update's line, and the largest RssAnon in MB."""
    environment = {
        **os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(cache), "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
        first_s = peak_kb = 0.0
        while process.poll() is None:
            time.sleep(0.02)
            peak_kb = max(peak_kb, private_kb(process.pid))
            if not first_s:
                log.seek(0)
                first_s = time.perf_counter() - start if "update 1 of" in log.read() else 0.0
        log.seek(0)
        assert process.returncode == 0 and first_s, log.read()
    return first_s, peak_kb / 1e3


def private_kb(pid: int) -> float:
    """RssAnon of a process; 0 for one that is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    return next((float(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")), 0.0)


def show_starts(folder: Path) -> None:
    """Print a line a size."""
    print(f"{'pairs':>12}{'first update, cold':>20}{'cached':>10}{'private memory, cold':>22}{'cached':>12}")
    for size in STARTED:
        train = write_pairs(folder / f"{size}.jsonl", pairs_of(size), LANGUAGES)
        found = []
        for name in ("cold", "cached"):
            flags = ["--max_train_steps", 20, "--output_dir", folder / f"run-{size}-{name}"]
            command = [sys.executable, *train_command(folder, train, *flags)]
            found.append(first_update(command, folder / f"cache-{size}"))
        (cold_s, cold_mb), (cached_s, cached_mb) = found
        print(f"{size:>12,}{cold_s:>18.1f} s{cached_s:>8.1f} s{cold_mb:>19,.0f} MB{cached_mb:>9,.0f} MB")


def show_processes(folder: Path, *, rounds: int = 3) -> None:
    """Print target tokens a second on all cores, once in one process and once in two."""
    train = write_pairs(folder / "processes.jsonl", pairs_of(10**4), LANGUAGES)
    num_cores = len(os.sched_getaffinity(0))
    rates: dict[int, list[float]] = {1: [], 2: []}
    for number in range(rounds):
        for num_processes in rates:
            out = folder / f"run-{num_processes}-{number}"
            flags = ["--max_train_steps", 60, "--logging_steps", 20, "--tokens_per_update", 2_000, "--output_dir", out]
            launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", num_processes]
            launch += ["--num_machines", 1, "--mixed_precision", "no", "--dynamo_backend", "no"]
            words = train_command(folder, train, *flags, "--cpu_threads", max(1, num_cores // num_processes))
            first_update([*map(str, launch), *words], folder / "cache")
            lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
            rates[num_processes].append([line["tokens_per_s"] for line in lines if "loss" in line][-1])
    one, two = (statistics.median(rates[number]) for number in (1, 2))
    print(f"{num_cores} cores: 1 process {one:,.0f} target tokens/s, 2 processes {two:,.0f}: {two / one:.2f} times")


def main() -> None:
    """Print the sections that are asked for, else all."""
    if len(sys.argv) == 2 and sys.argv[1].isdigit():
        print(json.dumps(plan(int(sys.argv[1]))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], help="none: all")
    sections = parser.parse_args().sections or SECTIONS
    if "plan" in sections:
        show_plans()
    if {"start", "processes"} & set(sections):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            make_standard_model(folder / "model", list(pairs_of(20_000)), LANGUAGES, vocab_size=800)
            write_pairs(folder / "valid.jsonl", pairs_of(8), LANGUAGES)
            if "start" in sections:
                show_starts(folder)
            if "processes" in sections:
                show_processes(folder)


if __name__ == "__main__":
    main()
