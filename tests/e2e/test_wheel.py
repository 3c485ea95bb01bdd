"""The wheel, installed into an environment outside the clone: every command's help, a run, the launch files.

By default the environment sees the packages of the test's own one; `pytest -m network tests/e2e/test_wheel.py` builds
an empty one and lets pip install what the wheel asks for.
"""

import json
import os
import subprocess
import sys
import sysconfig

import pytest

from tests.support.launch import PROJECT, environment, free_port

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SMALL = [
    "demo", "--max_train_samples", "300", "--max_eval_samples", "20", "--vocab_size", "320", "--max_train_steps", "3",
    "--num_beams", "1", "--val_max_target_length", "12", "--mixed_precision", "no",
]  # fmt: skip
HELP = """
from mtloop.cli.main import command_files, main
for name in command_files():
    assert main([name, "--help"]) == 0
"""
PYTHON_M_PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


class Installed:
    """A virtual environment with the wheel, and a folder outside the clone to work in."""

    def __init__(self, venv, folder):
        self.bin = venv / "bin"
        self.folder = folder
        # Neither the clone nor the test's own environment.
        self.variables = {name: value for name, value in environment().items() if name != "PYTHONPATH"}
        self.variables |= {"PATH": f"{self.bin}:/usr/bin:/bin", "VIRTUAL_ENV": str(venv)}

    def run(self, *words, status=0):
        done = subprocess.run(
            [self.bin / words[0], *map(str, words[1:])],
            cwd=self.folder, env=self.variables, capture_output=True, text=True, timeout=1800, check=False,
        )  # fmt: skip
        assert done.returncode == status, done.stderr[-3000:]
        return done


def pip(*words):
    subprocess.run([*PYTHON_M_PIP, *map(str, words)], check=True, capture_output=True, timeout=1800)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel from a clone: a build leaves files in its folder."""
    folder = tmp_path_factory.mktemp("wheel")
    clone = ["git", "clone", "--quiet", "--depth", "1", f"file://{PROJECT}", str(folder / "source")]
    subprocess.run(clone, check=True, capture_output=True)
    pip("wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, folder / "source")
    (path,) = folder.glob("mtloop-*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    venv = tmp_path_factory.mktemp("environment") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    (site,) = venv.glob("lib/python*/site-packages")
    # Behind its own packages; a .pth file there is not read, so that an editable installation of the clone stays out.
    (site / "others.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    pip("--python", venv / "bin" / "python", "install", "--quiet", "--no-deps", "--no-index", wheel)
    return Installed(venv, tmp_path_factory.mktemp("elsewhere"))


def check_commands(environment):
    """Check that what runs is the wheel's, and every command's help."""
    where = environment.run("python", "-c", "import mtloop; print(mtloop.__file__)").stdout
    assert where.startswith(str(environment.bin.parent))
    helps = environment.run("python", "-c", HELP).stdout
    for name in ("average", "configs", "launch", "train", "translate"):
        assert f"usage: mtloop {name}" in helps or f"usage: python -m mtloop {name}" in helps
    assert "launch " in environment.run("mtloop", "--help").stdout
    path = environment.run("mtloop", "configs", "cpu").stdout.strip()
    assert path.startswith(str(environment.bin.parent)) and os.path.isfile(path)
    assert os.path.isfile(environment.run("mtloop", "configs", "slurm").stdout.strip())
    return path


def check_run(environment, name):
    assert json.loads((environment.folder / name / "status.json").read_text())["status"] == "finished"


def test_wheel_runs_outside_the_clone(installed):
    check_commands(installed)
    done = installed.run("mtloop", "launch", "cpu", "train", *SMALL, "--output_dir", "run")
    assert done.stdout.startswith("device cpu · 1 process ")
    check_run(installed, "run")


@pytest.mark.full
def test_wheel_runs_on_several_processes_and_under_accelerate_launch(installed):
    path = installed.run("mtloop", "configs", "cpu").stdout.strip()
    launch = ["python", "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", path]
    installed.run(*launch, "-m", "mtloop", "train", *SMALL, "--output_dir", "accelerate")
    check_run(installed, "accelerate")
    port = ["--main_process_port", free_port()]
    done = installed.run("mtloop", "launch", "multi_cpu", *port, "train", *SMALL, "--output_dir", "two")
    assert done.stdout.startswith("device cpu · 2 processes ")
    check_run(installed, "two")
    done = installed.run("mtloop", "launch", "multi_cpu", *port, "train", "--no_such_flag", status=2)
    assert [line for line in done.stderr.splitlines() if line] == [done.stderr.splitlines()[0]]


@pytest.mark.network
@pytest.mark.timeout(3600)  # a download of torch
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_wheel_and_sdist_install_into_an_empty_environment(wheel, tmp_path, kind):
    venv, folder = tmp_path / "venv", tmp_path / "elsewhere"
    folder.mkdir()
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    target = wheel
    if kind == "sdist":
        build = f"from setuptools.build_meta import build_sdist; build_sdist({str(tmp_path)!r})"
        subprocess.run([sys.executable, "-c", build], cwd=wheel.parent / "source", check=True, capture_output=True)
        (target,) = tmp_path.glob("mtloop-*.tar.gz")
    empty = Installed(venv, folder)
    empty.run("pip", "install", "--quiet", target)
    path = check_commands(empty)
    empty.run("mtloop", "launch", "cpu", "train", *SMALL, "--output_dir", "run")
    check_run(empty, "run")
    empty.run("accelerate", "launch", "--config_file", path, "-m", "mtloop", "train", *SMALL, "--output_dir", "two")
    check_run(empty, "two")
    error = empty.run("mtloop", "export", "--model", "run", "-o", "x", "--format", "ctranslate2", status=2).stderr
    assert "`pip install 'mtloop[ctranslate2]'`" in error
