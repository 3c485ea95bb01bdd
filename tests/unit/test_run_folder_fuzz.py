"""Run folders with a mutated file: every command that reads one ends in a status and one line, never in a traceback."""

import random
import shutil

import pytest

from mtloop.cli.main import main
from tests.support.hub_runs import make_run
from tests.support.mutations import of_named

COMMANDS = (
    ("checkpoint", "list"), ("checkpoint", "verify"), ("checkpoint", "prune"), ("push", "--show_card"),
    ("push", "--epoch=1", "--show_card"),
)  # fmt: skip
STRAY = ("step_x", "step_", "step_-1", "step_" + "9" * 200, "step_٣", "step_010", "damaged_step_x", "best", "step_5")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("whole") / "run", is_finished=True).path


def files_of(run):
    """List the files of a run folder by relative path; of the checkpoints and final/ the JSON alone."""
    files = [file.relative_to(run).as_posix() for file in run.rglob("*") if file.is_file()]
    return sorted(name for name in files if "/" not in name or name.endswith((".json", ".jsonl")))


def run_quietly(words, capsys):
    status = main([str(word) for word in words])
    out, err = capsys.readouterr()
    what = f"{words}: {status}\n{out[-500:]}\n{err[-1500:]}"
    assert status in (0, 1, 2) and "Traceback" not in out + err, what
    errors = [line for line in err.splitlines() if "error:" in line]
    assert len(errors) == (status == 2) and all(len(line) < 1000 for line in errors), what
    return status, err


@pytest.mark.parametrize(
    "seeds",
    [
        range(10),
        pytest.param(range(10, 60), marks=pytest.mark.slow),
        pytest.param(range(60, 460), marks=pytest.mark.full),
    ],
    ids=["10", "50", "400"],
)
def test_mutated_file(whole, tmp_path, seeds, capsys):
    names = files_of(whole)
    for seed in seeds:
        choice = random.Random(seed)
        name = names[seed % len(names)] if seed % 2 else choice.choice([name for name in names if "/" not in name])
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(whole, tmp_path / "run")
        file = tmp_path / "run" / name
        file.write_bytes(of_named(choice, file.name, file.read_bytes()))
        action, *flags = choice.choice(COMMANDS)
        words = [action, *flags[:1], tmp_path / "run"] if action == "checkpoint" else [action, tmp_path / "run", *flags]
        try:
            run_quietly(words, capsys)
        except BaseException as error:
            raise AssertionError(f"seed {seed}: {name} of {file}") from error


def test_invalid_lines_are_left_out_with_a_warning(whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "run")
    path = tmp_path / "run" / "metrics.jsonl"
    lines = path.read_text().splitlines()
    lines[3] = '{"step": "x", "epoch": 1.0, "loss": 1.0, "target_tokens": 3}'
    path.write_text("\n".join(lines) + "\n{cut")
    status, err = run_quietly(["push", tmp_path / "run", "--show_card"], capsys)
    expected = f'mtloop: warning: {path}:4: step: expected a whole number of at least 0 (got "x"); the line is left out'
    assert status == 0 and err == expected + "\n"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("run.json", "{\n  3", ":2: invalid JSON ("),
        ("run.json", '{"run_id": 3}', ": run_id: expected text (got 3)."),
        ("data.json", '{"counts": {"train": {"loaded": 1e999}}}', ": counts.train.loaded: expected a whole number"),
        ("data.json", "[" * 100_000, ": cannot be read ("),
    ],
)
def test_corrupt_file_is_named(whole, tmp_path, name, text, message, capsys):
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / name).write_text(text)
    status, err = run_quietly(["push", tmp_path / "run", "--show_card"], capsys)
    assert status == 2 and err.startswith(f"mtloop: error: {tmp_path / 'run' / name}{message}")
    assert err.endswith("Restore the file, or remove it.\n")


@pytest.mark.parametrize("command", COMMANDS[:3])
def test_stray_names_are_left_alone(whole, tmp_path, command, capsys):
    shutil.copytree(whole, tmp_path / "run")
    for name in STRAY:
        (tmp_path / "run" / "checkpoints" / name).mkdir()
        (tmp_path / "run" / "hypotheses" / f"{name}.jsonl").write_text("")
    status, _ = run_quietly([*command, tmp_path / "run"], capsys)
    assert status == (command[1] == "verify")  # the empty step_5 is corrupt
    removed = {*STRAY, "step_30"} - {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert removed == ({"step_5"} if command[1] == "prune" else set())
