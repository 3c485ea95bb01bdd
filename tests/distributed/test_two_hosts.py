"""Two machines: network namespaces joined by a cable, each with caches of its own, and one folder that both see.

Needs root and `ip` (iproute2); skipped elsewhere.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.support.launch import PROJECT, PYTHON, environment, run
from tests.support.lives import wait_for_step

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

FLAGS = [
    "demo", "--mixed_precision", "no", "--dropout", "0", "--cpu_threads", "1", "--max_train_samples", "600",
    "--max_eval_samples", "21", "--vocab_size", "400", "--num_beams", "1", "--val_max_target_length", "16",
    "--logging_steps", "1",
]  # fmt: skip
NUM_UPDATES_PER_EPOCH = 36  # of 600 pairs, by the demo's 450 target tokens
TIMEOUT_S = 10


@dataclass
class Host:
    """One machine: what `ip` calls it, its end of the cable, its address, its home."""

    name: str
    cable: str
    address: str
    home: Path

    def start(self, command, **extra):
        return subprocess.Popen(
            ["ip", "netns", "exec", self.name, *map(str, command)],
            cwd=self.home,
            env=environment(HF_HOME=str(self.home), HF_DATASETS_CACHE=str(self.home / "datasets"), **extra),
            stdout=(self.home / "stdout").open("w"),
            stderr=(self.home / "stderr").open("w"),
            text=True,
        )

    def plug(self, state):
        subprocess.run(["ip", "-n", self.name, "link", "set", self.cable, state], check=True)

    def pids(self):
        """Every process that is on this machine."""
        done = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=True)
        return [int(pid) for pid in done.stdout.split()]

    def errors(self):
        return [line for line in (self.home / "stderr").read_text().splitlines() if line.startswith("mtloop: ")]


@pytest.fixture
def hosts(tmp_path):
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    pair = []
    for number in (1, 2):
        home = tmp_path / f"home{number}"
        home.mkdir()
        pair.append(Host(f"mt{os.getpid()}n{number}", f"mt{os.getpid()}c{number}", f"10.0.0.{number}", home))
    one, two = pair
    made = []
    try:
        for host in pair:
            done = subprocess.run(["ip", "netns", "add", host.name], capture_output=True, text=True, check=False)
            if done.returncode != 0:
                pytest.skip(f"no network namespaces here: {done.stderr.strip()}")
            made.append(host)
        ends = ["type", "veth", "peer", "name", two.cable, "netns", two.name]
        subprocess.run(["ip", "link", "add", one.cable, "netns", one.name, *ends], check=True)
        for host in pair:
            subprocess.run(["ip", "-n", host.name, "addr", "add", f"{host.address}/24", "dev", host.cable], check=True)
            subprocess.run(["ip", "-n", host.name, "link", "set", "lo", "up"], check=True)
            host.plug("up")
        yield pair
    finally:
        for host in made:
            for pid in host.pids():
                psutil.Process(pid).kill()
            subprocess.run(["ip", "netns", "del", host.name], check=True)


def start(hosts, *flags, script="train.py", num_processes=2, **extra):
    """The README's command on both machines."""
    return [
        host.start(
            [
                sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch",
                "--config_file", PROJECT / "accelerate_configs" / "multi_node.yaml", "--machine_rank", rank,
                "--num_machines", 2, "--num_processes", num_processes, "--main_process_ip", hosts[0].address,
                PROJECT / script, *FLAGS, *flags,
            ],
            **extra,
        )
        for rank, host in enumerate(hosts)
    ]  # fmt: skip


def start_with_torchrun(hosts, *flags):
    """Likewise, with torchrun."""
    return [
        host.start(
            [
                sys.executable, "-m", "torch.distributed.run", "--nnodes", 2, "--node_rank", rank,
                "--nproc_per_node", 1, "--master_addr", hosts[0].address, "--master_port", 29500,
                PROJECT / "train.py", *FLAGS, *flags,
            ]
        )
        for rank, host in enumerate(hosts)
    ]  # fmt: skip


def wait_for_end(hosts, processes, timeout_s):
    """Wait for both launchers; none of what they started may outlive them."""
    for process in processes:
        process.wait(timeout=timeout_s)
    assert [host.pids() for host in hosts] == [[], []]
    return [process.returncode for process in processes]


def lines_of(folder, key):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if key in line]


def test_the_same_run_as_on_one_process(hosts, tmp_path):
    flags = ["--max_train_steps", "20", "--output_dir"]
    alone, both = tmp_path / "alone", tmp_path / "both"
    assert run([PYTHON, "train.py", *FLAGS, *flags, str(alone)]).returncode == 0
    assert wait_for_end(hosts, start(hosts, *flags, both), 120) == [0, 0], hosts[0].errors() + hosts[1].errors()
    first = (hosts[0].home / "stdout").read_text().splitlines()[0]
    assert "device cpu · 2 processes" in first and "the launch file asks for a GPU, but none is available" in first
    expected, found = (lines_of(folder, "loss") for folder in (alone, both))
    assert [line["step"] for line in found] == list(range(1, 21))
    for a, b in zip(expected, found, strict=True):
        # Invariant 1: only the order of fp32 sums differs.
        assert b["target_tokens"] == a["target_tokens"]
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-5)
    (scores,), (scores_alone,) = (lines_of(folder, "bleu") for folder in (both, alone))
    assert scores["num_sentences"] == 21  # an odd number on two machines: none stands in for a missing one
    assert scores["eval_loss"] == pytest.approx(scores_alone["eval_loss"], rel=1e-5)
    hypotheses, alone_too = (
        [json.loads(line) for line in (folder / "hypotheses" / "step_20.jsonl").read_text().splitlines()]
        for folder in (both, alone)
    )
    assert [line["index"] for line in hypotheses] == [line["index"] for line in alone_too]
    assert len({line["index"] for line in hypotheses}) == 21


@pytest.mark.full
def test_torchrun_starts_the_same_run(hosts, tmp_path):
    flags = ["--max_train_steps", "2", "--output_dir", tmp_path / "run"]
    assert wait_for_end(hosts, start_with_torchrun(hosts, *flags), 120) == [0, 0], hosts[0].errors()
    assert "device cpu · 2 processes" in (hosts[0].home / "stdout").read_text().splitlines()[0]
    assert [line["step"] for line in lines_of(tmp_path / "run", "loss")] == [1, 2]


@pytest.mark.full
def test_each_machine_tokenises_once_into_its_own_cache(hosts, tmp_path):
    flags = ["--max_train_steps", "2", "--output_dir", tmp_path / "run"]
    processes = start(hosts, *flags, script="tests/distributed/worker_tokenize.py", num_processes=4)
    assert wait_for_end(hosts, processes, 180) == [0, 0], hosts[0].errors() + hosts[1].errors()
    assert "4 processes" in (hosts[0].home / "stdout").read_text().splitlines()[0]
    for host in hosts:
        # Training and validation rows, each one batch of at most 1,000: by the first process, the second finds them.
        assert (host.home / "tokenized").read_text() == "0\n0\n"
        assert len(list((host.home / "datasets" / "mtloop").glob("encoded-*.arrow"))) == 2


@pytest.mark.full
@pytest.mark.parametrize("unplugged", [1, 0])
def test_a_cut_cable_ends_both_machines_and_the_same_command_goes_on(hosts, tmp_path, unplugged):
    folder = tmp_path / "run"
    flags = [
        "--num_train_epochs", "4", "--save_steps", "10", "--process_timeout", TIMEOUT_S, "--output_dir", folder
    ]  # fmt: skip
    processes = start(hosts, *flags)
    wait_for_step(folder, 25)
    assert all(host.pids() for host in hosts)
    hosts[unplugged].plug("down")
    # TIMEOUT_S for the processes to miss one another, the rest for them and their launchers to leave.
    assert wait_for_end(hosts, processes, TIMEOUT_S + 30) == [1, 1]
    for rank, host in enumerate(hosts):
        (error,) = host.errors()
        assert error == (
            f"mtloop: error: process {rank}: another process of the run did not answer within --process_timeout. Run "
            "the same command: it resumes from the newest checkpoint."
        )
    status = json.loads((folder / "status.json").read_text())
    assert (status["status"], status["exit_status"]) == ("failed", 1)
    assert "did not answer within --process_timeout" in status["message"]
    hosts[unplugged].plug("up")
    assert wait_for_end(hosts, start(hosts, *flags), 120) == [0, 0], hosts[0].errors() + hosts[1].errors()
    assert f"resumed from {folder}/checkpoints/step_" in (hosts[0].home / "stdout").read_text()
    assert json.loads((folder / "status.json").read_text())["status"] == "finished"
    assert [line["step"] for line in lines_of(folder, "loss")] == list(range(1, 4 * NUM_UPDATES_PER_EPOCH + 1))


@pytest.mark.full
def test_a_folder_that_is_not_the_same_on_both_is_refused(hosts):
    """A relative name, and homes that the machines do not share."""
    assert wait_for_end(hosts, start(hosts, "--max_train_steps", "2", "--output_dir", "runs/mine"), 90) == [1, 1]
    (error,) = hosts[0].errors()
    assert error.startswith("mtloop: error: --output_dir runs/mine: process 1 on ")
    assert str(hosts[1].home / "runs" / "mine") in error and error.endswith("a folder that all machines share.")
    assert hosts[1].errors() == []
    assert not list((hosts[0].home / "runs" / "mine").glob(".tmp-*"))
    assert not (hosts[1].home / "runs").exists()


@pytest.mark.full
def test_machines_that_cannot_reach_each_other_say_what_to_look_at(hosts, tmp_path):
    flags = ["--process_timeout", TIMEOUT_S, "--output_dir", tmp_path / "run"]
    # The launchers meet, the processes look for one another on loopback.
    processes = start(hosts, *flags, GLOO_SOCKET_IFNAME="lo")
    assert wait_for_end(hosts, processes, TIMEOUT_S + 60) == [1, 1]
    for rank, host in enumerate(hosts):
        (error,) = host.errors()
        assert error.startswith(
            f"mtloop: error: process {rank}: the processes of the run could not connect at 10.0.0.1 port"
        )
        assert error.endswith("network interface lo; GLOO_SOCKET_IFNAME selects another.")
