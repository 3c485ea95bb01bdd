"""Forks of a process that has computed: its threads, its Accelerator, and what ends them."""

import os
import signal
import sys
import threading
import time

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState

from mtloop.errors import UserError
from mtloop.runtime import forks
from mtloop.runtime.launch import set_threads


def test_set_aside_gives_a_state_back(fresh_accelerate):
    state = PartialState(cpu=True)
    with forks.set_aside():
        assert not PartialState._shared_state
        Accelerator(cpu=True)
    assert state.device.type == "cpu" and not AcceleratorState._shared_state


def test_fork_ranks_refuses_a_gpu_that_was_used(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(UserError, match=r"^num_processes: this process has used the GPU already.*\(got 2\)"):
        forks.fork_ranks(lambda: None, 2)


@pytest.mark.slow
@pytest.mark.timeout(120)  # without the new thread it waits for ever
def test_fork_ranks_computes_on_threads_after_its_parent_has(tmp_path):
    def compute():
        """Use more elements than torch gives to one thread (32,768)."""
        torch.set_num_threads(2)
        return float(torch.ones(1_000_000).exp().sum())

    before = torch.get_num_threads()
    try:
        compute()
        error = forks.fork_ranks(lambda: (tmp_path / os.environ["RANK"]).write_text(f"{compute():.0f}"), 2)
    finally:
        torch.set_num_threads(before)
    assert error is None
    assert [float((tmp_path / rank).read_text()) for rank in "01"] == [pytest.approx(2_718_282, rel=1e-4)] * 2


@pytest.mark.slow
def test_fork_ranks_passes_an_interrupt_on(tmp_path, monkeypatch):
    """The kernel alone is interrupted, not its process group."""
    monkeypatch.setattr(forks, "INTERRUPT_S", 0.1)
    main = threading.get_ident()

    def wait():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
        (tmp_path / os.environ["RANK"]).touch()
        time.sleep(60)

    def interrupt():
        while len(list(tmp_path.iterdir())) < 2:
            time.sleep(0.05)
        signal.pthread_kill(main, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    error = forks.fork_ranks(wait, 2)
    assert 7 in [one.exitcode for one in error.failures.values()]


def test_set_threads_uses_one_in_a_fork_of_others(monkeypatch):
    """Test a notebook_launcher of the user: OpenMP may wait for the threads of the kernel."""
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    monkeypatch.setattr("mtloop.runtime.launch.num_usable_cores", lambda: 8)
    assert set_threads(None) == 8
    monkeypatch.setattr("multiprocessing.current_process", lambda: type("Fork", (), {"_start_method": "fork"}))
    assert set_threads(None) == 1
    monkeypatch.setattr(forks, "_may_use_threads", True)
    assert set_threads(None) == 8
