"""Runs whose standard streams are closed, full, broken or of another encoding: they end as if they were not."""

import json
import subprocess
import sys

import pytest

from tests.support.launch import PROJECT, environment

pytestmark = pytest.mark.e2e

FLAGS = [
    "--source_lang", "en", "--target_lang", "ar", "--train_tokenizer", "--vocab_size", "64", "--model_size", "tiny",
    "--max_train_steps", "2", "--logging_steps", "1", "--eval_steps", "1", "--num_beams", "1", "--cpu_threads", "1",
    "--val_max_target_length", "8",
]  # fmt: skip


def in_shell(redirection, *words, **extra):
    """Run Python with words in a shell that redirects its streams; return its status and what was printed."""
    done = subprocess.run(
        ["bash", "-c", f'"$@" {redirection}; exit ${{PIPESTATUS[0]}}', "bash", sys.executable, *map(str, words)],
        cwd=PROJECT,
        env=environment(**extra),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=300,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr.decode()


@pytest.fixture(scope="module")
def arabic_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "pairs.jsonl"
    rows = [{"en": f"· file {number} of {number + 1}", "ar": f"الملف {number} من {number + 1}"} for number in range(40)]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("redirection", "extra"),
    [
        ("", {"PYTHONIOENCODING": "ascii"}),
        pytest.param("<&- >&- 2>&-", {}, marks=pytest.mark.full),
        pytest.param("", {"PYTHONIOENCODING": "latin-1"}, marks=pytest.mark.full),
        pytest.param("", {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, marks=pytest.mark.full),
        pytest.param(">/dev/full", {}, marks=pytest.mark.full),
        pytest.param(">/dev/full 2>/dev/full", {}, marks=pytest.mark.full),
        pytest.param("| head -c 1", {}, marks=pytest.mark.full),
        pytest.param("2>&1 | head -c 1", {}, marks=pytest.mark.full),
        pytest.param("<&-", {}, marks=pytest.mark.full),
        pytest.param(">&-", {}, marks=pytest.mark.full),
        pytest.param("2>&-", {}, marks=pytest.mark.full),
    ],
)
def test_printing_never_ends_a_run(arabic_path, tmp_path, redirection, extra):
    folder = tmp_path / "run"
    words = ["train.py", *FLAGS, "--train_file", arabic_path, "--validation_file", arabic_path, "--output_dir", folder]
    status, out, err = in_shell(redirection, *words, **extra)
    assert (status, "Traceback" in err) == (0, False), err[-3000:]
    assert json.loads((folder / "status.json").read_text())["status"] == "finished"
    assert (folder / "final" / "model.safetensors").is_file() and (folder / "checkpoints" / "step_2").is_dir()
    if extra:
        assert rb"reference   \u0627\u0644\u0645\u0644\u0641" in out
        assert out.isascii() == ("latin-1" not in extra.values())
    if redirection == ">/dev/full":
        assert err.count("standard output cannot be written (No space left on device)") == 1


@pytest.mark.parametrize(
    ("redirection", "status"),
    [
        ("", 0),
        (">/dev/full", 0),
        *(pytest.param(one, 0, marks=pytest.mark.full) for one in (">&-", "| head -c 1", "2>/dev/full")),
    ],
)
def test_corpus_prints_or_ends_quietly(arabic_path, redirection, status):
    words = ["-m", "mtloop", "corpus", arabic_path, "--source_lang", "en", "--target_lang", "ar", "--grep", "file 3"]
    found, out, err = in_shell(redirection, *words, PYTHONIOENCODING="ascii")
    assert (found, "Traceback" in err) == (status, False)
    assert redirection or rb"\xb7 file 3 of 4" in out


@pytest.mark.parametrize(
    ("redirection", "status", "line"),
    [
        (">/dev/full", 2, "-o (standard output): cannot be written (No space left on device). Give another place.\n"),
        (">&-", 2, "-o: missing, and standard output is closed. Give -o OUT.\n"),
        pytest.param(
            "<&-",
            2,
            "FILE: standard input is closed (got -). Name a file, or open standard input.\n",
            marks=pytest.mark.full,
        ),
    ],
)
def test_translations_are_not_lost_in_silence(demo_run, redirection, status, line):
    words = ["-m", "mtloop", "translate", "-", "--model", demo_run.folder]
    found, _, err = in_shell(f"{'' if '<' in redirection else '<<<Yes'} {redirection}", *words)
    assert (found, err) == (status, f"mtloop: error: {line}")
