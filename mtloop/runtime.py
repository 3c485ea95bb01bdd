"""The only constructor of Accelerator: devices, ranks, threads, seeds, what ranks tell each other, and stop signals.

Every other module takes a Runtime and never asks accelerate or torch.distributed itself. Must not know data or models.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    broadcast_object_list,
    gather_object,
)
from torch import Tensor
from tqdm.auto import tqdm

from mtloop.config import RunFailed, UserError

if TYPE_CHECKING:
    from mtloop.config import HardwareConfig

T = TypeVar("T")
# Parameters of mallopt(3), from glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
# Asking the ranks whether one was told to stop is a host sync: free on a CPU, not on an accelerator.
STOP_CHECK_EVERY_ON_ACCELERATOR = 10


class Runtime:
    """Where and with whom this process runs.

    Attributes:
        accelerator: The Accelerator of the process.
        rank: This process's rank, from 0.
        num_ranks: How many processes share the run.
        is_main: Whether this is rank 0.
        device: Where tensors go.
        precision: "no", "bf16" or "fp16": what autocast uses.
        num_threads: CPU threads of this process.
    """

    def __init__(
        self, hardware: HardwareConfig, *, project_dir: str | None = None, report_to: str | None = None
    ) -> None:
        """Start the processes' common ground.

        Collective: every rank constructs one, once.

        Raises:
            UserError: for a launch that cannot be what was wanted (process counts that disagree, FSDP on a CPU, ...).
        """
        is_cpu = hardware.use_cpu or not _has_accelerator()
        self.seed = hardware.seed
        self.num_threads = _set_threads(hardware.cpu_threads)
        if is_cpu:
            _keep_freed_memory()
        precision = _choose_precision(hardware.mixed_precision, is_cpu=is_cpu)
        if is_cpu and _flag("ACCELERATE_USE_FSDP"):
            raise UserError(
                "fsdp: there is no accelerator here, and accelerate would silently run plain data parallelism instead; "
                "pick accelerate_configs/multi_cpu.yaml or cpu.yaml"
            )
        try:
            self.accelerator = Accelerator(
                # With cpu=True a multi-GPU launch file gives real gloo ranks; without, each would believe it is alone.
                cpu=is_cpu,
                mixed_precision=precision,
                log_with=report_to,
                project_dir=project_dir,
                # Accumulation is ours: accelerate's would divide the loss a second time and step schedules per rank.
                gradient_accumulation_steps=1,
                step_scheduler_with_optimizer=False,
                kwargs_handlers=[
                    InitProcessGroupKwargs(timeout=timedelta(seconds=hardware.process_timeout)),
                    DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
                ],
            )
        except ValueError as error:
            raise UserError(f"--mixed_precision {precision}: {error}") from error
        self.rank: int = self.accelerator.process_index
        self.num_ranks: int = self.accelerator.num_processes
        self.is_main: bool = self.accelerator.is_main_process
        self.device: torch.device = self.accelerator.device
        self.precision: str = self.accelerator.mixed_precision
        self.is_sharded: bool = self.accelerator.distributed_type == DistributedType.FSDP
        self.stop_signal: int | None = None
        self._check_launch(hardware)

    def _check_launch(self, hardware: HardwareConfig) -> None:
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        if world_size != self.num_ranks:
            raise UserError(
                f"WORLD_SIZE is {world_size} but accelerate runs {self.num_ranks} process(es): every one would train "
                "alone; start with `accelerate launch` and a file of accelerate_configs/, or unset WORLD_SIZE"
            )
        if hardware.expect_processes is not None and hardware.expect_processes != self.num_ranks:
            raise UserError(
                f"--expect_processes {hardware.expect_processes}: the launch started {self.num_ranks}; "
                "give accelerate launch the matching --config_file or --num_processes"
            )

    def describe(self) -> str:
        """Say in one line what the run computes on."""
        text = f"device {self.device.type}"
        if self.device.type == "cuda":
            text += f" ({torch.cuda.get_device_name(self.device)})"
        text += f" · {self.num_ranks} process{'es' if self.num_ranks > 1 else ''}"
        text += f" · {self.num_threads} CPU thread{'s' if self.num_threads > 1 else ''} each"
        text += f" · precision {'fp32' if self.precision == 'no' else self.precision}"
        is_gpu_launch = _flag("ACCELERATE_USE_CUDA") or os.environ.get("ACCELERATE_DISTRIBUTED_TYPE") == "MULTI_GPU"
        if is_gpu_launch and self.device.type == "cpu" and not _flag("ACCELERATE_USE_CPU"):
            text += " · the launch file asks for a GPU, none is here"
        return text

    def say(self, *lines: str) -> None:
        """Print lines once, from the main process, above a progress bar where there is one."""
        if self.is_main:
            for line in lines:
                tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()

    def reseed(self, step: int) -> None:
        """Make all randomness of an update a function of (seed, step, rank), so that a resume need restore none."""
        seed = int(np.random.SeedSequence([self.seed, step, self.rank]).generate_state(1)[0])
        torch.manual_seed(seed)  # all devices
        random.seed(seed)  # layer drop in some models

    def prepare_model(self, model: torch.nn.Module) -> torch.nn.Module:
        """Place the model, and wrap it where there are several ranks. Collective."""
        return self.accelerator.prepare(model)

    def prepare_optimizer(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Attach the gradient scaler of fp16 and the device placement."""
        return self.accelerator.prepare(optimizer)

    def place_batches(self, loader: Any) -> Any:
        """Move a loader's tensors to the device without sharding it: each rank's loader holds its own batches."""
        return prepare_data_loader(loader, self.device, num_processes=1, process_index=0, put_on_device=True)

    @contextlib.contextmanager
    def gradient_sync(self, model: torch.nn.Module, *, enabled: bool) -> Iterator[None]:
        """Let the ranks exchange gradients in this backward only if enabled. Forward and backward both go inside."""
        if enabled:
            yield
        else:
            with self.accelerator.no_sync(model):
                yield

    def sum_over_ranks(self, *values: float | Tensor) -> list[float]:
        """Add numbers over the ranks in float64; the same list on every rank. Collective, and a host sync."""
        stacked = torch.stack([torch.as_tensor(value, dtype=torch.float64).detach().cpu() for value in values])
        if self.num_ranks > 1:
            # XLA and MPS have no float64: the sum travels as objects there, through the device elsewhere.
            if self.device.type in ("cpu", "cuda"):
                stacked = self.accelerator.reduce(stacked.to(self.device), reduction="sum").cpu()
            else:
                stacked = torch.tensor(self.gather_objects([stacked.tolist()]), dtype=torch.float64).sum(dim=0)
        return stacked.tolist()

    def gather_rows(self, rows: Tensor, *, pad_id: int) -> Tensor:
        """Gather rows of unequal width and number from all ranks.

        Collective, and a host sync.

        Args:
            rows: int64 [b, t] on this rank; b and t may differ between ranks, and b may be 0.
            pad_id: Fills what is missing in width and in rows.

        Returns:
            int64 [sum of the padded b, longest t] on every rank; padding rows are all pad_id.
        """
        if self.num_ranks == 1:
            return rows
        padded = self.accelerator.pad_across_processes(rows, dim=1, pad_index=pad_id)
        padded = self.accelerator.pad_across_processes(padded, dim=0, pad_index=pad_id)
        return self.accelerator.gather(padded)

    def gather_objects(self, items: list[T]) -> list[T]:
        """Concatenate the ranks' lists, in rank order, on every rank. Collective."""
        return gather_object(items) if self.num_ranks > 1 else items

    def broadcast(self, value: T) -> T:
        """Hand main's value to every rank. Collective."""
        if self.num_ranks == 1:
            return value
        box = [value]
        broadcast_object_list(box, from_process=0)
        return box[0]

    def wait(self) -> None:
        """Barrier. Collective."""
        self.accelerator.wait_for_everyone()

    def raise_together(self, error: BaseException | None) -> None:
        """Raise on every rank if any rank has an error: a rank that fails alone would leave the others waiting.

        Collective.

        Raises:
            UserError, RunFailed: on the ranks without an error of their own, with the first failing rank's message.
        """
        if self.num_ranks > 1:
            mine = None if error is None else (isinstance(error, UserError), f"{type(error).__name__}: {error}")
            theirs = [verdict for verdict in self.gather_objects([mine]) if verdict is not None]
            if error is None and theirs:
                is_user_error, message = theirs[0]
                if is_user_error:
                    raise UserError(message.split(": ", 1)[1])
                raise RunFailed(f"another rank failed: {message}")
        if error is not None:
            raise error

    def on_main(self, work: Callable[[], T]) -> T:
        """Do work on the main process alone and hand its result, or its error, to every rank. Collective."""
        result, error = attempt(work, when=self.is_main)
        self.raise_together(error)
        return self.broadcast(result)  # type: ignore[return-value]  # None only where work itself returns None

    def one_first(self, work: Callable[[], T]) -> T:
        """Do work on one process of each machine first, so that the others find what it cached. Collective."""
        is_first = self.accelerator.is_local_main_process
        result, error = attempt(work, when=is_first)
        self.raise_together(error)
        if not is_first:
            result, error = attempt(work)
        self.raise_together(error)
        return result  # type: ignore[return-value]

    def listen_for_signals(self) -> None:
        """Note TERM, INT and USR1 in `stop_signal` instead of dying of them; a second INT leaves at once."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            with contextlib.suppress(ValueError):  # a notebook may run us outside the main thread
                signal.signal(number, self._note_signal)

    def _note_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.stop_signal == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        self.stop_signal = number

    def agree_on_signal(self, step: int) -> int | None:
        """Return the signal that any rank got, the same on every rank. Collective at the same steps on all.

        Waits for the other ranks: each step on CPUs, every STOP_CHECK_EVERY_ON_ACCELERATOR steps elsewhere.
        """
        if self.num_ranks == 1:
            return self.stop_signal
        if self.device.type != "cpu" and step % STOP_CHECK_EVERY_ON_ACCELERATOR:
            return None
        numbers = torch.zeros(self.num_ranks, dtype=torch.int64, device=self.device)
        numbers[self.rank] = self.stop_signal or 0
        return int(self.accelerator.reduce(numbers, reduction="sum").max()) or None  # host sync

    def close(self) -> None:
        """End trackers and the process group."""
        self.accelerator.end_training()


def attempt(work: Callable[[], T], *, when: bool = True) -> tuple[T | None, Exception | None]:
    """Run work if `when`; hand back its result or its error, for raise_together."""
    try:
        return (work() if when else None), None
    except Exception as error:  # the ranks must agree before it is raised
        return None, error


def _flag(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes")


def _has_accelerator() -> bool:
    # torch_xla and others register themselves with torch.accelerator; TPUs are seen through PJRT_DEVICE.
    return (
        torch.accelerator.is_available()
        or os.environ.get("ACCELERATE_USE_TPU") == "true"
        or "PJRT_DEVICE" in os.environ
    )


def _set_threads(cpu_threads: int | None) -> int:
    """Give this process its share of the cores; plain `accelerate launch` leaves every process one thread."""
    num_local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    has_affinity = hasattr(os, "sched_getaffinity")  # not on macOS
    num_cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    num_threads = cpu_threads or max(1, num_cores // num_local_ranks)
    torch.set_num_threads(num_threads)
    return num_threads


def _keep_freed_memory() -> None:
    """Tell glibc to keep what is freed: every batch allocates and frees the same hundreds of megabytes.

    Fetching fresh pages from the kernel each time made training 1.3 to 15 times slower, by the machine.
    """
    with contextlib.suppress(OSError, AttributeError):  # no glibc: macOS, Windows, musl
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def _choose_precision(asked: str | None, *, is_cpu: bool) -> str | None:
    """Turn "auto" into what the hardware has; None leaves it to the launch file."""
    if asked != "auto":
        return asked
    if not is_cpu:
        if not torch.cuda.is_available():
            return "bf16" if torch.accelerator.current_accelerator() is None else "no"
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    # Without these instructions a CPU emulates bf16 several times slower than it does fp32.
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return "bf16" if any(getattr(torch.cpu, check, lambda: False)() for check in checks) else "no"
