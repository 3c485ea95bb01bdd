"""Damaged files of every kind: each ends in one line and a documented status, never in a traceback or a hang.

A failure lists its mutations as KIND:SEED. `MTLOOP_FUZZ="KIND:SEED ..." pytest -n 0 tests/unit/test_fuzz.py` makes them
again, and only them; `MTLOOP_FUZZ_BASE=NUMBER` takes other seeds. A crash of Python leaves the folder of its mutation.
"""

import contextlib
import gzip
import json
import os
import random
import re
import shutil
import signal
import subprocess
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtloop.cli.main import main
from tests.support import mutations
from tests.support.launch import PYTHON, run

AGAIN = os.environ.get("MTLOOP_FUZZ", "").split()
BASE = os.environ.get("MTLOOP_FUZZ_BASE", "1")
LIMIT_S = 20  # of CPU, in this process
FORK_LIMIT_S = 120
# In 8 GiB of address space: a fork has 3 before it starts.
FORK = """import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
from mtloop.cli.main import main
sys.exit(main(sys.argv[1:]))"""
NUM_ROWS = 24
ROWS = [{"en": f"The file {number} is open.", "fr": f"Le fichier {number} est ouvert."} for number in range(NUM_ROWS)]
LANGUAGES = ("--source_lang", "en", "--target_lang", "fr")
RECIPE = b"""\
model_name_or_path: absent
train_file: [absent.jsonl]
source_lang: en
target_lang: fr
learning_rate: 1e-3
lr_scheduler_type: polynomial
lr_scheduler_kwargs: {power: 2.0}
num_train_epochs: 1
seed: 3
push_to_hub: false
num_beams: 1
metrics: [bleu, chrf]
metric_for_best_model: absent
"""


@dataclass(frozen=True)
class Kind:
    """A kind of file, and the command that reads it.

    Attributes:
        file: Its path below a folder that `material` fills.
        words: The command.
        change: Makes a mutation of it.
        is_forked: Whether the command runs a model, in a process of its own, which a crash would end.
    """

    file: str
    words: tuple[str, ...]
    change: Callable[[random.Random, bytes], bytes]
    is_forked: bool = False


def packed(chance, content):
    if chance.random() < 0.5:
        return mutations.of_bytes(chance, content)
    return gzip.compress(mutations.of_json_lines(chance, gzip.decompress(content)), mtime=0)


NAMED = ("-o", "b.csv", "--source_column", "en")
NUMBERED = ("--no_header", "--source_column", "1", "--target_column", "2")
QUICK = ("--use_cpu", "--num_beams", "1")
TRANSLATE = ("translate", "--model", "model", "--max_target_length", "4", *QUICK)
EVALUATE = ("evaluate", "--model", "model", "--metrics", "bleu", "chrf", *QUICK, *LANGUAGES)
TRAIN = ("train", "--max_train_steps", "1", "--tokens_per_update", "50", "--val_max_target_length", "4", *QUICK)
TUNE = (*TRAIN, "--model_name_or_path", "model", "--train_file", "a.jsonl", *LANGUAGES)


def corpus(*words):
    return ("corpus", *words, *LANGUAGES)


READERS = {
    "jsonl": Kind("a.jsonl", corpus("a.jsonl"), mutations.of_json_lines),
    "translation": Kind("t.jsonl", corpus("t.jsonl"), mutations.of_json_lines),
    "json": Kind("a.json", corpus("a.json"), mutations.of_json_text),
    "csv": Kind("a.csv", corpus("a.csv"), mutations.of_table),
    "tsv": Kind("a.tsv", corpus("a.tsv", "--quoting", "csv"), mutations.of_table),
    "columns": Kind("a.tsv", ("corpus", "a.tsv", *NUMBERED), mutations.of_table),
    "text": Kind("a.en", corpus("a.en", "a.fr"), mutations.of_bytes),
    "gz": Kind("a.jsonl.gz", corpus("a.jsonl.gz"), packed),
    "parquet": Kind("a.parquet", corpus("a.parquet"), mutations.of_parquet),
    "recipe": Kind("a.yaml", ("train", "a.yaml"), mutations.of_yaml),
}
FOLDERS = {
    "saved": Kind("saved/data-00000-of-00001.arrow", corpus("--dataset_name", "saved"), mutations.of_arrow),
    "saved_state": Kind("saved/state.json", corpus("--dataset_name", "saved"), mutations.of_json_text),
    "saved_info": Kind("saved/dataset_info.json", corpus("--dataset_name", "saved"), mutations.of_json_text),
    "rows": Kind("rows/train.jsonl", corpus("--dataset_name", "rows"), mutations.of_json_lines),
    "table": Kind("table/train.csv", corpus("--dataset_name", "table"), mutations.of_table),
    "typed": Kind("typed/train.parquet", corpus("--dataset_name", "typed"), mutations.of_parquet),
}
WITH_MODEL = {
    "translate_jsonl": Kind("a.jsonl", (*TRANSLATE, "a.jsonl", "-o", "b.jsonl"), mutations.of_json_lines, True),
    "translate_csv": Kind(
        "a.csv", (*TRANSLATE, "a.csv", "-o", "b.csv", "--source_column", "en"), mutations.of_table, True
    ),
    "translate_parquet": Kind("a.parquet", (*TRANSLATE, "a.parquet", "-o", "b.parquet"), mutations.of_parquet, True),
    "translate_text": Kind("a.en", (*TRANSLATE, "a.en"), mutations.of_bytes, True),
    "evaluate": Kind("a.tsv", (*EVALUATE, "--test_set", "a.tsv"), mutations.of_table, True),
    "train": Kind("a.jsonl", TUNE, mutations.of_json_lines, True),
}
MODEL_FILES = {
    "config.json": mutations.of_json_text,
    "generation_config.json": mutations.of_json_text,
    "tokenizer_config.json": mutations.of_json_text,
    "vocab.json": mutations.of_json_text,
    "source.spm": mutations.of_bytes,
    "model.safetensors": mutations.of_safetensors,
}
MODELS = {
    f"{words[0]}/{name}": Kind(f"model/{name}", words, change, True)
    for words in ((*TRANSLATE, "--text", "A file."), TUNE)
    for name, change in MODEL_FILES.items()
}
KINDS = {**READERS, **FOLDERS, **WITH_MODEL, **MODELS}


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """Return a folder with a valid file of each kind; `model` is added to it where a command needs one."""
    from datasets import Dataset

    folder = tmp_path_factory.mktemp("material")
    of_rows = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)
    pairs = [{"translation": row} for row in ROWS]
    cells = [["en", "fr"], *([row["en"], row["fr"]] for row in ROWS)]
    table = pa.Table.from_pylist(pairs)
    for name in ("rows", "table", "typed"):
        (folder / name).mkdir()
    contents = {
        "a.jsonl": of_rows,
        "t.jsonl": b"".join(json.dumps(row).encode() + b"\n" for row in pairs),
        "a.json": json.dumps({"data": ROWS}).encode(),
        "a.csv": "".join(",".join(row) + "\n" for row in cells).encode(),
        "a.tsv": "".join("\t".join(row) + "\n" for row in cells).encode(),
        "a.en": b"A file.\n" * NUM_ROWS,
        "a.fr": b"Un fichier.\n" * NUM_ROWS,
        "a.jsonl.gz": gzip.compress(of_rows, mtime=0),
        "a.yaml": RECIPE,
        "rows/train.jsonl": of_rows,
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    shutil.copy(folder / "a.csv", folder / "table" / "train.csv")
    for name in ("a.parquet", "typed/train.parquet"):
        pq.write_table(table, folder / name)
    Dataset.from_list(pairs).save_to_disk(folder / "saved")
    return folder


class TooLong(BaseException):
    """Raised when a mutation takes more than LIMIT_S."""


def fault_of(mutation, material, folder, capfd):
    """Make a mutation and give it to its command; return what is wrong with the outcome, "" if nothing is."""
    kind = KINDS[mutation.partition(":")[0]]
    top = kind.file.partition("/")[0]
    for path in material.iterdir():
        if path.name == top and path.is_dir():
            shutil.copytree(path, folder / path.name)
        elif path.name != top:
            (folder / path.name).symlink_to(path)
    (folder / kind.file).write_bytes(kind.change(random.Random(mutation), (material / kind.file).read_bytes()))
    status, printed = (in_fork if kind.is_forked else in_process)(kind.words, folder, capfd)
    return "" if is_documented(status, printed, kind) else f"status {status}: {printed}"


def in_process(words, folder, capfd):
    """Run a command here; return its status and what it printed on standard error."""

    def stop(number, frame):
        raise TooLong

    capfd.readouterr()
    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
    try:
        with contextlib.chdir(folder), warnings.catch_warnings(record=True) as warned:
            warnings.resetwarnings()
            status = main(list(words))
        shown = [
            str(one.message) for one in warned if not issubclass(one.category, (DeprecationWarning, ResourceWarning))
        ]
        return status, capfd.readouterr().err + "".join(line + "\n" for line in shown)
    except TooLong:
        return "hang", ""
    except BaseException:
        return "exception", traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def in_fork(words, folder, capfd):
    """Run a command in a fork, with little memory; return its status and what it printed on standard error."""
    try:
        done = run([PYTHON, "-c", FORK, *words], cwd=folder, timeout_s=FORK_LIMIT_S, OMP_NUM_THREADS="1")
    except subprocess.TimeoutExpired:
        return "hang", ""
    return done.returncode, done.stderr


def is_documented(status, printed, kind):
    """Return True for status 0, or 2 with one error line that names a flag or the file."""
    lines = [line for line in printed.splitlines() if not line.startswith("mtloop: warning: ")]
    if status == 0:
        return not lines
    if status != 2 or len(lines) != 1:
        return False
    return bool(re.match(rf"mtloop: error: (--\w+|FILE|\S*{re.escape(kind.file)})", lines[0])) and len(lines[0]) < 5_000


def check(asked, material, tmp_path, capfd):
    """Make mutations; fail with those that are faults, and with the outcome of the first of each kind."""
    found = {}
    for mutation in AGAIN or asked:
        folder = tmp_path / mutation.replace("/", "_")
        folder.mkdir()
        if fault := fault_of(mutation, material, folder, capfd):
            found[mutation] = fault
        if not AGAIN:
            shutil.rmtree(folder)
    first = {mutation.partition(":")[0]: f"{mutation}\n{fault[-3_000:]}" for mutation, fault in reversed(found.items())}
    assert not found, "\n\n".join([f'MTLOOP_FUZZ="{" ".join(found)}"', *first.values()])


def some(kinds, first, last):
    """Return the mutations `first` to `last`, of each kind in turn."""
    names = list(kinds)
    return [f"{names[number % len(names)]}:{BASE}.{number}" for number in range(first, last)]


def blocks(first, last, *marks):
    """Return the parameters of a test that makes 50 mutations at once."""
    return [pytest.param(start, min(start + 50, last), marks=marks) for start in range(first, last, 50)]


def test_readers_refuse_50_damaged_files(material, tmp_path, capfd):
    check(some(READERS, 0, 50), material, tmp_path, capfd)


@pytest.mark.slow
@pytest.mark.parametrize(("first", "last"), [*blocks(50, 485), *blocks(485, 4_500, pytest.mark.full)])
@pytest.mark.skipif(bool(AGAIN), reason="the first test makes what is asked for")
def test_readers_refuse_damaged_files_and_folders(first, last, material, tmp_path, capfd):
    check(some({**READERS, **FOLDERS}, first, last), material, tmp_path, capfd)


@pytest.mark.slow
@pytest.mark.parametrize(("first", "last"), [*blocks(0, 15), *blocks(15, 500, pytest.mark.full)])
@pytest.mark.skipif(bool(AGAIN), reason="the first test makes what is asked for")
def test_commands_with_a_model_refuse_damaged_files(first, last, material, model_path, tmp_path, capfd):
    shutil.copytree(model_path, material / "model", dirs_exist_ok=True)
    check(some(WITH_MODEL, first, last), material, tmp_path, capfd)
