"""What one process promises: threads, precision, refusals, seeds, errors that are agreed on, signals. No launcher."""

import errno
import math
import os
import random
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest
import torch
from accelerate.tracking import GeneralTracker
from accelerate.utils import DynamoBackend
from torch.utils.data import DataLoader

from mtloop.config.environment import HardwareConfig
from mtloop.errors import ProcessFailed, RunFailed, UserError
from mtloop.runtime.collectives import attempt
from mtloop.runtime.failures import choose_interface, explain
from mtloop.runtime.launch import asked_precision, avoid_planned_attention, cpu_quota, num_usable_cores
from mtloop.runtime.ranks import Runtime
from mtloop.runtime.signals import Interrupted

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def start(**flags):
    return Runtime(HardwareConfig(**{"use_cpu": True, "cpu_threads": 1, **flags}))


def autocast_dtype(runtime):
    """What a matrix product computes in."""
    with runtime.autocast():
        return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype


# threads


def test_threads_are_as_asked(fresh_accelerate):
    runtime = start(cpu_threads=1)
    assert runtime.num_threads == torch.get_num_threads() == 1


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity on this system")
@pytest.mark.parametrize("num_local_ranks", [1, 2, 4096])
def test_threads_are_the_cores_shared_by_the_processes_of_the_machine(fresh_accelerate, monkeypatch, num_local_ranks):
    torch.set_num_threads(7)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(num_local_ranks))
    start(cpu_threads=None)
    assert torch.get_num_threads() == max(1, num_usable_cores() // num_local_ranks)


def test_num_usable_cores_is_bounded_by_quota(monkeypatch):
    monkeypatch.setattr("mtloop.runtime.launch.os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    for quota, expected in ((math.inf, 8), (16.0, 8), (2.0, 2), (1.5, 1), (0.2, 1)):
        monkeypatch.setattr("mtloop.runtime.launch.cpu_quota", lambda quota=quota: quota)
        assert num_usable_cores() == expected


@pytest.mark.parametrize(
    ("own", "limits", "expected"),
    [
        ("0::/\n", {}, math.inf),
        ("0::/\n", {"cpu.max": "max 100000"}, math.inf),
        ("0::/\n", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/a/b\n", {"a/b/cpu.max": "400000 100000", "a/cpu.max": "200000 100000"}, 2.0),  # the group above
        ("0::/docker/of/the/host\n", {"cpu.max": "50000 100000"}, 0.5),  # a path that the container does not have
        ("1:cpu:/a\n0::/\n", {"cpu/a/cpu.cfs_quota_us": "100000", "cpu/a/cpu.cfs_period_us": "50000"}, 2.0),
        ("4:cpu,cpuacct:/\n", {"cpu,cpuacct/cpu.cfs_quota_us": "-1", "cpu,cpuacct/cpu.cfs_period_us": "9"}, math.inf),
        ("3:memory:/\n", {"memory/cpu.cfs_quota_us": "1", "memory/cpu.cfs_period_us": "1"}, math.inf),
        ("not a line", {}, math.inf),
    ],
)
def test_cpu_quota_reads_control_groups(tmp_path, own, limits, expected):
    (tmp_path / "own").write_text(own)
    for name, text in limits.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    assert cpu_quota(tmp_path, tmp_path / "own") == expected


def test_cpu_quota_without_control_groups_is_infinite(tmp_path):
    assert cpu_quota(tmp_path, tmp_path / "missing") == math.inf


# precision


@pytest.mark.parametrize(
    ("of_the_launch_file", "asked", "expected"),
    [
        (None, None, torch.float32),
        ("no", None, torch.float32),
        ("bf16", None, torch.bfloat16),
        ("bf16", "no", torch.float32),
        ("no", "bf16", torch.bfloat16),
        ("fp16", None, torch.float16),
        ("no", "fp16", torch.float16),
        ("fp16", "no", torch.float32),
    ],
)
def test_a_flag_wins_over_the_launch_file_and_none_means_the_file(
    fresh_accelerate, monkeypatch, of_the_launch_file, asked, expected
):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    if of_the_launch_file:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", of_the_launch_file)
    runtime = start(mixed_precision=asked)
    assert runtime.precision == {torch.float32: "no", torch.bfloat16: "bf16", torch.float16: "fp16"}[expected]
    assert autocast_dtype(runtime) == expected
    assert (runtime.accelerator.scaler is not None) == (expected == torch.float16)


@pytest.mark.parametrize(
    ("of_the_launch_file", "by_flag", "expected"),
    [
        (None, None, "auto"),
        ("no", None, "auto"),
        ("bf16", None, "bf16"),
        ("bf16", "auto", "auto"),
        ("fp16", "no", "no"),
    ],
)
def test_training_is_in_the_faster_precision_where_nobody_insists(monkeypatch, of_the_launch_file, by_flag, expected):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    if of_the_launch_file:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", of_the_launch_file)
    assert asked_precision(by_flag) == expected


def test_auto_on_a_processor_is_fp32_until_the_trainer_has_measured(fresh_accelerate, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")  # auto wins over the file
    runtime = start(mixed_precision="auto")
    assert runtime.can_choose_precision and not start(mixed_precision="no").can_choose_precision
    assert runtime.precision == "no" and autocast_dtype(runtime) == torch.float32
    runtime.precision = "bf16"
    assert autocast_dtype(runtime) == torch.bfloat16


# what is refused


@pytest.mark.parametrize(
    ("environment", "flags", "words"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, {}, ["fsdp", "multi_cpu.yaml", "--shard_model"]),
        (
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"},
            {"shard_model": True},
            ["fsdp_version 1", "Set it to 2"],
        ),
        ({}, {"shard_model": True, "mixed_precision": "fp16"}, ["--mixed_precision: ", "(got fp16)", "bf16"]),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, {}, ["deepspeed", "multi_cpu.yaml", "--shard_model"]),
        ({"ACCELERATE_MIXED_PRECISION": "fp8"}, {}, ["--mixed_precision: ", "launch file", "(got fp8)", "bf16"]),
        ({"WORLD_SIZE": "2"}, {}, ["WORLD_SIZE: set to 2", "accelerate launch"]),
        ({}, {"expect_processes": 2}, ["--expect_processes: the launch started 1", "(expected 2)", "--num_processes"]),
    ],
)
def test_a_launch_that_cannot_be_meant_is_refused_in_one_line(fresh_accelerate, monkeypatch, environment, flags, words):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as caught:
        start(**flags)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_one_process_has_nobody_to_share_a_model_with(fresh_accelerate):
    runtime = start(shard_model=True)
    assert runtime.sharding is None and "sharded" not in runtime.describe()


def test_a_world_that_accelerate_does_not_see_is_refused(runtime, monkeypatch):
    # As in the launches where every process believes it is alone: accelerate's state says 1, the environment 2.
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(UserError, match=r"^WORLD_SIZE: set to 2, but accelerate runs 1 process"):
        start()


def test_another_precision_in_the_same_process_is_refused_in_one_line(runtime):
    with pytest.raises(UserError, match=r"^--mixed_precision bf16: .*already been initialized") as caught:
        start(mixed_precision="bf16")
    assert "\n" not in str(caught.value)


def test_the_environment_cannot_divide_the_loss(fresh_accelerate, monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    runtime = start()
    weight = torch.ones((), requires_grad=True)
    runtime.accelerator.backward(weight * 3)
    assert weight.grad.item() == 3


def test_the_expected_number_of_processes_starts(fresh_accelerate):
    runtime = start(expect_processes=1)
    assert (runtime.rank, runtime.num_ranks, runtime.is_main, runtime.device.type) == (0, 1, True, "cpu")


def test_description_is_one_line_and_says_what_the_launch_file_could_not_have(fresh_accelerate, monkeypatch):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    text = "device cpu · 1 process · 1 CPU thread each · precision"
    assert start(mixed_precision="no").describe() == f"{text} fp32"
    assert start(mixed_precision="auto").describe() == f"{text} to be measured"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")  # what single_gpu.yaml comes to
    assert (
        start(mixed_precision="no").describe() == f"{text} fp32 · the launch file asks for a GPU, but none is available"
    )


def test_dynamo_of_launch_file_is_not_used_and_said(fresh_accelerate, monkeypatch):
    assert "dynamo" not in start().describe()
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    runtime = start()
    assert runtime.accelerator.state.dynamo_plugin.backend == DynamoBackend.NO
    assert "the launch file asks for torch dynamo (inductor), which is not used" in runtime.describe()
    network = torch.nn.Linear(1, 1)
    wrapped, _ = runtime.prepare(network, torch.optim.SGD(network.parameters()))
    assert wrapped is network


def test_deterministic_algorithms_are_asked_for_until_the_end_of_the_run(fresh_accelerate, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")  # what the user chose stays
    assert not torch.are_deterministic_algorithms_enabled()
    runtime = start(deterministic=True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    with pytest.raises(RuntimeError) as caught:
        torch.empty(3).put_(torch.tensor([0]), torch.ones(1))
    failure = explain(caught.value)
    assert (
        str(failure) == "--deterministic: put_ does not have a deterministic implementation. Leave out --deterministic."
    )
    runtime.close()
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that"), "worker died"),
        (RuntimeError("DataLoader worker did not answer within 5 s"), "did not answer within --process_timeout"),
        (RuntimeError("DataLoader worker could not be started (No space left on device)"), "/dev/shm (--shm-size"),
        (
            MemoryError("Caught MemoryError in DataLoader worker process 0.\nOriginal Traceback\nMemoryError: no room"),
            "(MemoryError: no room)",
        ),
    ],
)
def test_explain_names_the_flag_of_a_loader_worker(error, message):
    failure = str(explain(error))
    assert failure.startswith("--dataloader_num_workers: ") and message in failure
    assert "Give --dataloader_num_workers 0" in failure and "\n" not in failure


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.EMFILE, "Too many open files", "x.json"), "x.json: too many open files"),
        (RuntimeError("can't start new thread"), "ulimit -u"),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "ulimit -u"),
        (MemoryError(), "no more memory"),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "ulimit -v"),
        (RuntimeError("I/O error: File too large (os error 27)"), "ulimit -f"),
        (OSError(errno.EROFS, "Read-only file system", "/cache"), "/cache: read-only file system"),
        (OSError(errno.ENOSPC, "No space left on device"), "Free disk space"),
    ],
)
def test_explain_names_the_limit_of_the_system(error, message):
    wrapped = RuntimeError("of a library")
    wrapped.__cause__ = error
    for one in (error, wrapped):
        assert message in str(explain(one)) and "\n" not in str(explain(one))


def test_explain_leaves_what_it_does_not_know():
    assert explain(KeyError("x")) is None and explain(OSError(errno.ENOENT, "No such file or directory")) is None


# several machines


def interfaces():
    """Each network interface with an IPv4 address beyond loopback, and that address."""
    return [
        (name, address.address)
        for name, addresses in psutil.net_if_addrs().items()
        for address in addresses
        if address.family == socket.AF_INET and not address.address.startswith("127.")
    ]


def test_gloo_takes_the_interface_that_leads_to_the_first_machine(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")  # so that the test's end takes back what choose_interface sets
    for name, address in interfaces():
        monkeypatch.delenv("GLOO_SOCKET_IFNAME")
        monkeypatch.setenv("MASTER_ADDR", address)
        choose_interface()
        assert os.environ["GLOO_SOCKET_IFNAME"] == name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("is_taken", "message"), [(False, "the processes of the run could not connect"), (True, "--main_process_port: ")]
)
def test_the_first_process_alone_or_on_a_taken_port(fresh_accelerate, monkeypatch, is_taken, message):
    with socket.socket() as taken:
        taken.bind(("", 0))
        port = taken.getsockname()[1]
        if is_taken:
            taken.listen()
        else:
            taken.close()
        launch = {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        launch["OMP_NUM_THREADS"] = 1  # accelerate would set it
        for name, value in launch.items():
            monkeypatch.setenv(name, str(value))
        with pytest.raises(ProcessFailed) as caught:
            start(process_timeout=1.0)
    assert str(caught.value).startswith(message) and str(port) in str(caught.value)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "no-such-host.invalid", ""])
def test_gloo_is_left_alone_on_one_machine_and_where_nothing_is_known(monkeypatch, address):
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setenv("MASTER_ADDR", address)
    choose_interface()
    assert "GLOO_SOCKET_IFNAME" not in os.environ


def test_a_chosen_interface_stays(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "mine")
    for _, address in interfaces():
        monkeypatch.setenv("MASTER_ADDR", address)
        choose_interface()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "mine"


# randomness


def dropped(runtime, *, seed, step, rank):
    """Which of 64 values dropout keeps, and a draw of Python's own generator."""
    runtime.seed, runtime.rank = seed, rank
    runtime.seed_update(step)
    return tuple(torch.nn.functional.dropout(torch.ones(64), 0.5).tolist()), random.random()


def test_dropout_is_a_function_of_seed_step_and_rank(runtime):
    first = dropped(runtime, seed=1, step=5, rank=0)
    others = [{"seed": 2, "step": 5, "rank": 0}, {"seed": 1, "step": 6, "rank": 0}, {"seed": 1, "step": 5, "rank": 1}]
    draws = [dropped(runtime, **other) for other in others]
    # Swapped numbers must not collide either: (seed 5, step 1) is not (seed 1, step 5).
    draws.append(dropped(runtime, seed=5, step=1, rank=0))
    assert len({mask for mask, _ in [first, *draws]}) == len({number for _, number in [first, *draws]}) == 5
    torch.rand(1_000)
    assert dropped(runtime, seed=1, step=5, rank=0) == first


# what ranks tell each other, with one rank


def test_sums_keep_double_precision(runtime):
    large = torch.tensor(2.0**24 + 1, dtype=torch.float64)  # fp32 would round the 1 away
    assert runtime.sum_over_ranks(large, 0.1, torch.tensor(3.0)) == [2.0**24 + 1, 0.1, 3.0]


def test_one_rank_hands_back_what_it_has(runtime):
    rows = torch.tensor([[1, 2]])
    assert runtime.gather_rows(rows, pad_id=-1) is rows
    assert runtime.gather_objects([1, "a"]) == [1, "a"]
    assert runtime.broadcast({"a": 1}) == {"a": 1}


def test_batches_are_placed_and_not_shared_out(runtime):
    loader = DataLoader(list(range(10)), batch_size=3, collate_fn=lambda items: [{"ids": torch.tensor(items)}])
    placed = [batch[0]["ids"].tolist() for batch in runtime.place_batches(loader)]
    assert placed == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]


def test_attempt_hands_back_the_result_or_the_error():
    assert attempt(lambda: 3) == (3, None)
    assert attempt(lambda: 1 / 0, when=False) == (None, None)
    result, error = attempt(lambda: 1 / 0)
    assert result is None and isinstance(error, ZeroDivisionError)


def test_attempt_lets_an_interrupt_through():
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attempt(interrupted)


@pytest.mark.parametrize("name", ["on_main", "one_first"])
def test_work_gives_its_result_or_raises_its_own_error_and_is_done_once(runtime, name):
    do = getattr(runtime, name)
    calls = []
    assert do(lambda: calls.append(1) or "done") == "done"
    assert calls == [1]
    error = RunFailed("disk")

    def fail():
        calls.append(2)
        raise error

    with pytest.raises(RunFailed) as caught:
        do(fail)
    assert caught.value is error and calls == [1, 2]


def test_raise_together_raises_only_an_error(runtime):
    runtime.raise_together(None)
    error = UserError("mistake")
    with pytest.raises(UserError) as caught:
        runtime.raise_together(error)
    assert caught.value is error


# signals


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_sets_the_flag_and_the_process_goes_on(runtime, number):
    runtime.signals.listen(raises=False)
    assert runtime.agree_on_signal(1) is None
    os.kill(os.getpid(), number)
    assert runtime.signals.number == runtime.agree_on_signal(1) == number
    with pytest.raises(Interrupted) as caught:
        runtime.stop_if_told()
    assert caught.value.number == number


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_before_the_training_ends_it_where_it_is(runtime, number):
    runtime.signals.listen(raises=True)
    with pytest.raises(KeyboardInterrupt) as caught:
        os.kill(os.getpid(), number)
        time.sleep(5)  # an interrupted sleep, not a delay
    assert caught.value.number == number


def test_a_signal_that_was_ignored_stays_ignored(runtime):
    """As under nohup."""
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        runtime.signals.listen(raises=True)
        os.kill(os.getpid(), signal.SIGHUP)
        assert runtime.agree_on_signal(1) is None and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, old)


def test_a_launcher_that_is_gone_counts_as_term(runtime):
    assert runtime.signals.launcher is None  # pytest's parent is no `accelerate launch`
    assert runtime.agree_on_signal(1) is None
    runtime.signals.launcher = os.getppid()
    assert runtime.agree_on_signal(1) is None
    runtime.signals.launcher = os.getpid()  # some process that is not the parent
    assert runtime.agree_on_signal(1) == signal.SIGTERM


ORPHAN = """
import os, time
parent = os.getpid()
if os.fork():
    os._exit(0)
while os.getppid() == parent:
    time.sleep(0.01)
from mtloop.runtime.signals import StopSignals
print(StopSignals().check(), flush=True)
"""


@pytest.mark.slow  # two processes that import torch
@pytest.mark.parametrize(("variables", "found"), [({"TORCHELASTIC_RUN_ID": "none"}, "15"), ({}, "None")])
def test_a_launcher_that_died_before_its_trainer_looked_counts_too(variables, found):
    """A trainer that outlives its parent from the start: one that a launcher started, and one under nohup."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE", "TORCHELASTIC"))}
    done = subprocess.run(
        [sys.executable, "-c", ORPHAN], env={**clean, **variables}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == found, done.stderr


def test_the_end_of_a_run_gives_the_signals_back(runtime):
    before = [signal.getsignal(number) for number in SIGNALS]
    runtime.signals.listen(raises=False)
    runtime.signals.listen(raises=False)
    assert [signal.getsignal(number) for number in SIGNALS] != before
    runtime.close()
    assert [signal.getsignal(number) for number in SIGNALS] == before


def status_after(runtime, *numbers):
    """The wait status of a child that gets these signals and would exit with 9 if it lived on."""
    child = os.fork()
    if child == 0:
        try:
            runtime.signals.listen(raises=False)
            for number in numbers:
                os.kill(os.getpid(), number)
            time.sleep(0.05)
        finally:
            os._exit(9)
    return os.waitpid(child, 0)[1]


@pytest.mark.parametrize("raises", [True, False])
@pytest.mark.parametrize("number", SIGNALS)
def test_a_forked_process_dies_of_a_signal(runtime, number, raises):
    """A process that tokenizes and outlives SIGTERM would be waited for without end."""
    runtime.signals.listen(raises=raises)
    child = os.fork()
    if child == 0:
        try:
            os.kill(os.getpid(), number)
        except BaseException:  # what Python does with one while it forks
            time.sleep(0.05)
        finally:
            os._exit(9)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == number


@pytest.mark.slow
def test_a_second_interrupt_leaves_at_once_and_other_pairs_do_not(runtime):
    status = status_after(runtime, signal.SIGINT, signal.SIGINT)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGINT
    status = status_after(runtime, signal.SIGTERM, signal.SIGINT, signal.SIGINT)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGINT
    for pair in [(signal.SIGTERM, signal.SIGTERM), (signal.SIGUSR1, signal.SIGINT), (signal.SIGTERM, signal.SIGINT)]:
        assert os.waitstatus_to_exitcode(status_after(runtime, *pair)) == 9


# the end


class BrokenTracker(GeneralTracker):
    """A tracker whose service is away when the run ends."""

    name = "broken"
    requires_logging_directory = False
    tracker = None
    main_process_only = True

    def store_init_configuration(self, values):
        pass

    def log(self, values, step=None, **kwargs):
        pass

    def finish(self):
        raise ConnectionError("the service is away")


def test_a_tracker_that_cannot_be_closed_does_not_fail_a_run_that_is_over(runtime, capsys):
    runtime.accelerator.trackers = [BrokenTracker()]
    runtime.close()
    runtime.accelerator.trackers = []
    assert "the tracker could not be closed: ConnectionError: the service is away" in capsys.readouterr().out


def test_avoid_planned_attention_leaves_the_other_kernels():
    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        avoid_planned_attention()
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert torch.backends.cuda.flash_sdp_enabled() and torch.backends.cuda.mem_efficient_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
