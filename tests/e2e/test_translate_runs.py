"""`mtloop translate` on a trained model: the same file from 1 and 2 processes and in any batches; through a pipe."""

import subprocess
import time

import pytest

from mtloop.data.demo.grammar import demo_pairs
from tests.support.launch import PROJECT, PYTHON, environment, launch_command, run

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def file(tmp_path_factory, is_full):
    """250 lines, with --full 10,000; all different but for a blank one."""
    lines = [source for source, _ in demo_pairs("train")[: 9_999 if is_full else 249]]
    path = tmp_path_factory.mktemp("lines") / "in.txt"
    path.write_text("\n".join([*lines[:100], "", *lines[100:]]) + "\n")
    return path


@pytest.fixture(scope="module")
def translated(demo_run, file):
    """Translate into a file; returns its lines."""

    def translate(name, *flags, num_processes=1):
        out = file.with_name(name)
        words = ["mtloop", "translate", file, "-o", out, "--model", demo_run.folder, "--cpu_threads", 1, *flags]
        done = run(launch_command("-m", *words, num_processes=num_processes), timeout_s=900)
        assert done.returncode == 0, done.stderr[-3000:]
        return out.read_bytes()

    return translate


@pytest.fixture(scope="module")
def expected(translated):
    return translated("one.txt")


def test_two_processes_write_the_same_bytes(translated, expected, file):
    lines = expected.decode().split("\n")
    assert len(lines) == len(file.read_text().split("\n")) and lines[100] == "" and lines[-1] == ""
    assert translated("two.txt", num_processes=2) == expected


@pytest.mark.parametrize("budget", [200, 8000])
def test_the_batches_change_at_most_a_tie(translated, expected, budget):
    lines, others = (
        text.split(b"\n") for text in (expected, translated(f"{budget}.txt", "--max_tokens_per_batch", budget))
    )
    num_different = sum(one != other for one, other in zip(lines, others, strict=True))
    assert num_different <= max(1, len(lines) // 1000), num_different


def test_a_mistake_ends_all_processes_with_one_line(demo_run, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"source": "Yes"}\n{"id": 1}\n')
    words = ["mtloop", "translate", tmp_path / "in.jsonl", "--model", demo_run.folder]
    done = run(launch_command("-m", *words, num_processes=2))
    assert done.returncode != 0 and done.stderr.count("mtloop: error: ") == 1
    assert (
        "in.jsonl:2: no column en or source or text. Give --source_lang or --source_column; the columns are id"
        in done.stderr
    )


def test_a_reader_that_leaves_early_is_no_error(demo_run, file):
    command = [PYTHON, "-m", "mtloop", "translate", str(file), "--model", str(demo_run.folder)]
    with subprocess.Popen(
        command, cwd=PROJECT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.close()
        assert process.wait(120) == 0, process.stderr.read()
        assert "Traceback" not in process.stderr.read()


@pytest.mark.full
def test_a_catalogue_is_filled_by_two_processes_and_after_an_interruption(demo_run, tmp_path):
    """The same bytes as by one process; what the interrupted process translated is not translated again."""
    sources = [source.replace('"', "'") for source, _ in demo_pairs("train")[:3000]]
    content = "\n".join(f'msgid "{source}"\nmsgstr ""\n' for source in dict.fromkeys(sources))
    (tmp_path / "app.po").write_text(content)

    def command(name, num_processes=1):
        words = ["mtloop", "translate", tmp_path / "app.po", "-o", tmp_path / name, "--model", demo_run.folder]
        return launch_command("-m", *words, "--cpu_threads", 1, "--num_beams", 1, num_processes=num_processes)

    for name, num_processes in (("one.po", 1), ("two.po", 2)):
        done = run(command(name, num_processes), timeout_s=900)
        assert done.returncode == 0, done.stderr[-3000:]
    expected = (tmp_path / "one.po").read_bytes()
    assert (tmp_path / "two.po").read_bytes() == expected
    assert expected.count(b"#, fuzzy\nmsgid") == content.count("msgid") > 1000
    journal = tmp_path / ".three.po.mtloop-journal"
    with subprocess.Popen(command("three.po"), cwd=PROJECT, env=environment(), stderr=subprocess.PIPE) as process:
        while not journal.exists() or journal.stat().st_size < 1000:  # a block is kept
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        process.terminate()
        process.wait(120)
    assert journal.exists() and not (tmp_path / "three.po").exists()
    done = run(command("three.po"), timeout_s=900)
    assert done.returncode == 0 and "translations were kept from an interrupted run" in done.stdout, done.stderr
    assert (tmp_path / "three.po").read_bytes() == expected and not journal.exists()
