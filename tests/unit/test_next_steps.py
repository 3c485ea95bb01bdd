"""The last lines of a run: the command that continues it, or those that use its model."""

import os
import shlex
import sys
from types import SimpleNamespace

import psutil
import pytest

from mtloop.atomic import write_json_lines
from mtloop.cli import next_steps as module
from mtloop.cli.next_steps import next_steps, own_command
from mtloop.run_folder import RunFolder

TEXTS = [
    "OK",
    "- a sentence that looks like a flag",
    "Do you want to delete O'Brien's folder?",
    "Another sentence here",
]
PYTHON = os.path.realpath(sys.executable)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/mtloop", "train"])
    folder = RunFolder(tmp_path / "my run")
    folder.hypotheses_dir.mkdir(parents=True)
    return folder


def write_rows(folder, **more):
    rows = [{"index": i, "source": text, "reference": "", "hypothesis": "", **more} for i, text in enumerate(TEXTS)]
    write_json_lines(folder.hypotheses_dir / "step_60.jsonl", rows)


def test_a_finished_run_names_commands_that_a_shell_reads(folder):
    write_rows(folder)
    folder.write_status("finished", exit_status=0, step=60)
    head, *lines = next_steps(folder)
    run = str(folder.path)
    assert head == "next:" and [shlex.split(line) for line in lines] == [
        ["mtloop", "translate", "--model", run, "--text", TEXTS[2]],
        ["mtloop", "evaluate", "--model", run],
        ["mtloop", "push", run],
    ]


def test_a_run_that_is_on_the_hub_is_exported_and_several_pairs_need_languages(folder, monkeypatch):
    write_rows(folder, pair="en-pt_BR")
    folder.push_path.write_text('{"repo_id": "org/name", "part": "final", "commit": "abc"}\n')
    monkeypatch.setattr(RunFolder, "journal", [{}])
    monkeypatch.setattr(module, "find_spec", lambda name: True)
    folder.write_status("finished", exit_status=0, step=60)
    text = "\n".join(next_steps(folder))
    assert "--source_lang en --target_lang pt_BR" in text and "push" not in text
    assert f"mtloop export --model '{folder.path}' --format ctranslate2 -o '{folder.path}-ctranslate2'" in text
    folder.write_status("finished", exit_status=3, step=60)
    assert f"mtloop push '{folder.path}'" in "\n".join(next_steps(folder))  # not all was pushed


def test_a_stopped_run_names_the_command_that_continues_it(folder):
    folder.write_status("stopped", exit_status=130, step=9, command="accelerate launch train.py demo")
    assert next_steps(folder) == ["continue with:", "  accelerate launch train.py demo"]
    folder.write_status("stopped", exit_status=130, step=9)
    assert next_steps(folder) == ["the same call continues it"]
    folder.write_status("failed", exit_status=1, message="no space", command="train.py")
    assert next_steps(folder) == []


@pytest.mark.parametrize(
    ("argv", "processes", "expected"),
    [
        # From the program to its farthest ancestor.
        (["train.py", "demo"], [[PYTHON, "train.py", "demo"], ["bash", "-c", "train.py demo"]],
         "PYTHON train.py demo"),
        (["train.py"], [[PYTHON, "-u", "train.py"], [PYTHON, "/v/bin/accelerate", "launch", "train.py"]],
         "accelerate launch train.py"),
        (["train.py", "--train_file", "my file.tsv"],
         [[PYTHON, "-u", "train.py", "--train_file", "my file.tsv"],
          [PYTHON, "-m", "accelerate.commands.launch", "train.py", "--train_file", "my file.tsv"],
          ["timeout", "9", "accelerate", "launch", "train.py", "--train_file", "my file.tsv"]],
         "PYTHON -m accelerate.commands.launch train.py --train_file 'my file.tsv'"),
        (["/site/mtloop/__main__.py", "train", "demo"],
         [[PYTHON, "-m", "mtloop", "train", "demo"],
          [PYTHON, "/v/bin/accelerate", "launch", "-m", "mtloop", "train", "demo"],
          [PYTHON, "/v/bin/mtloop", "launch", "cpu", "train", "demo"], [PYTHON, "/v/bin/pytest", "train", "demo"]],
         "mtloop launch cpu train demo"),
        (["train.py", "demo"], [[PYTHON, "-c", "fork server"]], "python train.py demo"),
        (["/site/ipykernel_launcher.py", "-f", "kernel.json"], [], ""),
        (["/usr/bin/mtloop", "selfcheck"], [], ""),
    ],
)  # fmt: skip
def test_own_command_begins_with_the_outermost_launcher(monkeypatch, argv, processes, expected):
    own, *others = [SimpleNamespace(cmdline=lambda line=line: line) for line in processes] or [None]
    if own is not None:
        own.parents = lambda: others
    monkeypatch.setattr(psutil, "Process", lambda: own)
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(module.shutil, "which", lambda name: {"python": None}.get(name, f"/v/bin/{name}"))
    own_command.cache_clear()
    try:
        assert own_command() == expected.replace("PYTHON", PYTHON)
    finally:
        own_command.cache_clear()
