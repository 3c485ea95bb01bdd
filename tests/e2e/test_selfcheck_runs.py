"""selfcheck passes on the product and fails, naming the row, on a copy of it in which an invariant is broken."""

import gzip
import itertools
import re
import shutil
import subprocess

import pytest

from tests.support.launch import PROJECT, PYTHON, environment, run

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

LAUNCH = ["--config_file", str(PROJECT / "accelerate_configs" / "multi_cpu.yaml")]
QUICK = ["demo", "--vocab_size", "320", "--cpu_threads", "1", "--val_max_target_length", "24", "--num_beams", "1"]


def rows_of(output):
    """Verdict and figures by the name of each row."""
    rows = {}
    for line in output.splitlines():
        if match := re.match(r"(.+?)  +(equal|NOT EQUAL) +(.*)", line):
            rows[match[1]] = (match[2], match[3])
    return rows


def test_the_demo_passes_on_two_processes(tmp_path):
    done = run([PYTHON, "-m", "mtloop", "selfcheck", *LAUNCH, *QUICK], TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    rows = rows_of(done.stdout)
    assert len(rows) == 7 and {verdict for verdict, _ in rows.values()} == {"equal"}
    assert "updates on 1 and 2 processes" in rows and "evaluation on 1 and 2 processes" in rows
    assert "bitwise the same weights" in rows["killed and resumed: weights"][1]
    assert re.search(r"this takes about \d+ (s|min): 3 starts of ", done.stdout)
    assert not re.search(r" 0 hypotheses are not empty", rows["evaluation on 1 and 2 processes"][1])
    assert done.stdout.splitlines()[-1] == "all equal"
    assert not list(tmp_path.glob("mtloop-*"))  # the launcher leaves folders of its own


@pytest.mark.full
def test_real_data_pass(kde_path, tmp_path):
    """As a user would: 3,000 pairs of KDE English-French, a new tokenizer, one process."""
    path = tmp_path / "kde.jsonl"
    with gzip.open(kde_path, "rt", encoding="utf-8") as file:
        path.write_text("".join(itertools.islice(file, 3_000)), encoding="utf-8")
    flags = ["--train_file", path, "--source_lang", "en", "--target_lang", "fr", "--train_tokenizer"]
    flags += ["--vocab_size", "8000", "--model_size", "tiny", "--num_beams", "1", "--val_max_target_length", "24"]
    done = run([PYTHON, "-m", "mtloop", "selfcheck", *map(str, flags)])
    assert done.returncode == 0, done.stdout + done.stderr
    rows = rows_of(done.stdout)
    assert len(rows) == 7 and {verdict for verdict, _ in rows.values()} == {"equal"}
    assert any("the launch starts no more: give --config_file" in name for name in rows)
    assert done.stdout.splitlines()[-1].startswith("all equal; not proven: that several processes give the same (")


BROKEN = {
    "loss divided per rank": (
        "trainer/step.py",
        "batch_loss * runtime.num_ranks / update.target_tokens",
        'batch_loss / (batch["labels"] != -100).sum() / len(update.micro_batches)',
        {"updates on 1 and 2 processes"},
    ),
    "a batch repeated": (
        "batching/loader.py",
        "remaining = range(cursor, plan.num_updates)",
        "remaining = range(max(0, cursor - 1), plan.num_updates)",
        {"every sentence once, resumed", "killed and resumed: updates", "killed and resumed: weights"},
    ),
    "the reseeding removed": (
        "trainer/step.py",
        "    runtime.seed_update(run.state.step)\n",
        "",
        {"killed and resumed: updates", "killed and resumed: weights"},
    ),
}


@pytest.mark.full
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_invariant_is_found(tmp_path, name):
    file, line, instead, expected = BROKEN[name]
    shutil.copytree(PROJECT / "mtloop", tmp_path / "mtloop", ignore=shutil.ignore_patterns("__pycache__"))
    path = tmp_path / "mtloop" / file
    source = path.read_text(encoding="utf-8")
    assert source.count(line) == 1
    path.write_text(source.replace(line, instead), encoding="utf-8")
    done = subprocess.run(
        [PYTHON, "-m", "mtloop", "selfcheck", *LAUNCH, *QUICK],
        cwd=tmp_path,
        env={**environment(), "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    different = {row for row, (verdict, _) in rows_of(done.stdout).items() if verdict == "NOT EQUAL"}
    assert expected <= different, done.stdout
    assert done.stdout.splitlines()[-1].startswith("not equal: ")
