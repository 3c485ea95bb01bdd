"""The environment of these tests: torch_xla with one XLA:CPU device, built once and kept.

    pytest -m xla tests/xla

It takes a download of 1 GB, gcc, and a few minutes the first time; MTLOOP_XLA_ENV names another folder for it than
~/.cache/mtloop-xla. Two XLA:CPU devices deadlock in every collective: ranks are tested over gloo in tests/distributed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.launch import PROJECT, environment

TORCH, TORCH_XLA = "torch==2.9.0", "torch_xla==2.9.0"  # the newest torch_xla, and the torch it was built for
CUDA_RUNTIME = ["nvidia-cuda-runtime-cu12==12.8.90", "nvidia-cuda-cupti-cu12==12.8.90"]
OF_TORCH = ["numpy", "filelock", "sympy", "networkx", "jinja2", "MarkupSafe", "mpmath", "fsspec", "typing-extensions"]
OF_TORCH_XLA = ["absl-py", "pyyaml", "requests", "urllib3", "idna", "certifi", "charset-normalizer"]
# Compiling is what takes the time here, and nothing is computed long enough to make up for it.
QUICK_COMPILER = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


@dataclass(frozen=True)
class XlaEnvironment:
    """A folder with a virtual environment, and stand-ins for the CUDA libraries."""

    folder: Path

    @property
    def python(self) -> str:
        return str(self.folder / "venv" / "bin" / "python")

    def variables(self, **extra: str) -> dict[str, str]:
        return environment(
            LD_LIBRARY_PATH=str(self.folder / "stand_ins"), PJRT_DEVICE="CPU", XLA_FLAGS=QUICK_COMPILER,
            PYTHONWARNINGS="ignore", **extra,
        )  # fmt: skip

    def launch_command(self, *arguments: object) -> list[str]:
        """The command line of the XLA launcher with tpu.yaml, on one device and in fp32."""
        return [
            self.python, "-m", "accelerate.commands.accelerate_cli", "launch",
            "--config_file", str(PROJECT / "accelerate_configs" / "tpu.yaml"), "--num_processes", "1",
            "--mixed_precision", "no", "train.py", *map(str, arguments),
        ]  # fmt: skip

    def launch(self, *arguments: object, timeout_s: float = 900) -> subprocess.CompletedProcess:
        return subprocess.run(
            self.launch_command(*arguments), cwd=PROJECT, env=self.variables(), timeout=timeout_s,
            capture_output=True, text=True, check=False,
        )  # fmt: skip


def build(folder: Path) -> None:
    """Build the environment. The mark of the end is written last: one that was cut short is built anew."""
    venv = folder / "venv"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    python = str(venv / "bin" / "python")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-deps", TORCH, TORCH_XLA, *CUDA_RUNTIME, *OF_TORCH, *OF_TORCH_XLA], check=True)
    # The rest of the requirements, without the torch that stands in them: pip would fetch what the stand-ins replace.
    lines = (PROJECT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    names = [line.split("#")[0].strip() for line in lines]
    direct = [name for name in names if name and not name.startswith(("torch", "accelerate"))]
    subprocess.run([*pip, *direct], check=True)
    accelerate = next(name for name in names if name.startswith("accelerate"))
    subprocess.run([*pip, "--no-deps", accelerate], check=True)
    (libraries,) = venv.glob("lib/python3*/site-packages/torch/lib")
    stand_ins = Path(__file__).with_name("stand_ins.py")
    subprocess.run([sys.executable, str(stand_ins), str(libraries), str(folder / "stand_ins")], check=True)
    (folder / "built").touch()


@pytest.fixture(scope="session")
def xla() -> XlaEnvironment:
    """The environment, built where it is not there yet."""
    folder = Path(os.environ.get("MTLOOP_XLA_ENV", Path.home() / ".cache" / "mtloop-xla")).absolute()
    if not (folder / "built").exists():
        build(folder)
    return XlaEnvironment(folder)
