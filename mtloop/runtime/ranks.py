"""Runtime: the only constructor of Accelerator. Ranks, seeds, and what ranks tell each other.

Every other module takes a Runtime and never asks accelerate or torch.distributed itself. Must not know data or models.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.data_loader import prepare_data_loader
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    broadcast_object_list,
    gather_object,
)
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from mtloop.errors import ProcessFailed, RunFailed, UserError
from mtloop.runtime.asked import asked_sharding, hidden_from_accelerate
from mtloop.runtime.failures import explain
from mtloop.runtime.machine import (
    avoid_planned_attention,
    check_environment,
    choose_precision,
    complete_fp16,
    flag,
    has_accelerator,
    keep_freed_memory,
    set_threads,
    use_deterministic_algorithms,
)
from mtloop.runtime.network import choose_interface, could_not_meet
from mtloop.runtime.sharding import is_sharded, set_gradient_sync, shard
from mtloop.runtime.signals import Interrupted, StopSignals
from mtloop.runtime.xla import end_program, keep_weights_in_fp32, num_compilations, seed_device

if TYPE_CHECKING:
    from mtloop.config import HardwareConfig

T = TypeVar("T")
# Asking the ranks whether one was told to stop is a host sync: free on a CPU, not on an accelerator.
STOP_CHECK_EVERY_ON_ACCELERATOR = 10
# Seconds beyond --process_timeout in which torch's own error, which says more, may come first.
MEETING_MARGIN_S = 5.0


class Runtime:
    """Where and with whom this process runs.

    Attributes:
        accelerator: The Accelerator of the process.
        rank: This process's rank, from 0.
        num_ranks: How many processes share the run.
        is_main: Whether this is rank 0.
        device: Where tensors go.
        precision: "no", "bf16" or "fp16": what autocast uses.
        can_choose_precision: Whether it is "auto" on a CPU: "no", until the trainer has measured.
        sharding: How the model is sharded over the ranks, None where each holds a whole one.
        num_threads: CPU threads of this process.
        signals: Whether this process was told to stop.
    """

    def __init__(
        self,
        hardware: HardwareConfig,
        *,
        project_dir: str | None = None,
        report_to: str | None = None,
    ) -> None:
        """Start the processes' common ground.

        Collective: every rank constructs one, once.

        Args:
            hardware: The flags.
            project_dir: Where trackers write.
            report_to: Tracker for accelerate's log_with; None for no tracker.

        Raises:
            UserError: for a launch that cannot be what was wanted (process counts that disagree, FSDP on a CPU, ...).
            ProcessFailed: for processes that do not find one another.
        """
        self.signals = StopSignals()
        is_cpu = hardware.use_cpu or flag("ACCELERATE_USE_CPU") or not has_accelerator()
        self.seed = hardware.seed
        self.num_threads = set_threads(hardware.cpu_threads)
        use_deterministic_algorithms(hardware.deterministic)
        if is_cpu:
            keep_freed_memory()
        else:
            avoid_planned_attention()
        is_auto = hardware.mixed_precision == "auto"
        precision = choose_precision(is_cpu=is_cpu) if is_auto else hardware.mixed_precision
        check_environment(is_cpu=is_cpu, shard_model=hardware.shard_model)
        sharding = asked_sharding(hardware, precision)
        choose_interface()
        timeout_s = hardware.process_timeout + MEETING_MARGIN_S
        try:
            with self.signals.leaving_with_launcher(timeout_s=timeout_s), hidden_from_accelerate():
                self.accelerator = self._accelerator(hardware, precision, is_cpu, project_dir, report_to)
        except ValueError as error:
            problem = " ".join(str(error).split())
            raise UserError(f"--mixed_precision {precision or 'of the launch file'}: {problem}") from error
        except RuntimeError as error:
            failure = explain(error)
            if failure is None or not failure.is_lost_peer:
                raise
            raise ProcessFailed(could_not_meet()) from error
        complete_fp16(self.accelerator)
        self.rank: int = self.accelerator.process_index
        self.num_ranks: int = self.accelerator.num_processes
        self.is_main: bool = self.accelerator.is_main_process
        self.device: torch.device = self.accelerator.device
        self.precision: str = self.accelerator.mixed_precision
        if self.is_xla:
            keep_weights_in_fp32()
        self._check_launch(hardware)
        self.sharding = sharding if self.num_ranks > 1 else None
        self.can_choose_precision = is_auto and is_cpu and self.sharding is None

    @staticmethod
    def _accelerator(
        hardware: HardwareConfig, precision: str | None, is_cpu: bool, project_dir: str | None, report_to: str | None
    ) -> Accelerator:
        return Accelerator(
            # With cpu=True a multi-GPU launch file gives real gloo ranks; without, each would believe it is alone.
            cpu=is_cpu,
            mixed_precision=precision,
            log_with=report_to,
            project_dir=project_dir,
            # Accumulation is ours: accelerate's would divide the loss a second time and step schedules per rank. A
            # plain number would give way to ACCELERATE_GRADIENT_ACCUMULATION_STEPS.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            step_scheduler_with_optimizer=False,
            kwargs_handlers=[
                InitProcessGroupKwargs(timeout=timedelta(seconds=hardware.process_timeout)),
                DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
            ],
        )

    def _check_launch(self, hardware: HardwareConfig) -> None:
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        if world_size != self.num_ranks and not self.is_xla:  # XLA's launcher exports none
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
        precision = "fp32" if self.precision == "no" else self.precision
        text += f" · precision {'to be measured' if self.can_choose_precision else precision}"
        text += f" · sharded ({self.sharding.name})" if self.sharding is not None else ""
        if self.device.type == "cpu" and self._is_gpu_launch:
            text += " · the launch file asks for a GPU, none is here"
        return text

    @property
    def _is_gpu_launch(self) -> bool:
        """Guess whether a GPU was meant: the launcher passes on neither its file's name nor distributed_type.

        Of accelerate_configs/ the GPU files alone name GPUs or a half precision.
        """
        is_half = os.environ.get("ACCELERATE_MIXED_PRECISION") in ("bf16", "fp16")
        return not flag("ACCELERATE_USE_CPU") and (is_half or bool(os.environ.get("CUDA_VISIBLE_DEVICES")))

    @property
    def is_xla(self) -> bool:
        """Whether every new shape costs a compilation, and every number that is read a wait."""
        return self.device.type == "xla"

    def say(self, *lines: str) -> None:
        """Print lines once, from the main process, above a progress bar where there is one."""
        if not self.is_main:
            return
        try:
            for line in lines:
                tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()
        except BrokenPipeError:  # whoever read the output has gone (`| head`): training goes on without a listener
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # for the rest of the process

    def reseed(self, step: int) -> None:
        """Make all randomness of an update a function of (seed, step, rank), so that a resume need restore none."""
        seed = int(np.random.SeedSequence([self.seed, step, self.rank]).generate_state(1)[0])
        torch.manual_seed(seed)  # all devices but XLA
        if self.is_xla:
            seed_device(seed, self.device)
        random.seed(seed)  # layer drop in some models

    def end_program(self) -> None:
        """On XLA compile and start what was traced so far, so that every update is made of the same few programs."""
        if self.is_xla:
            end_program()

    @property
    def num_compilations(self) -> int:
        """How many programs this process has compiled; 0 where none is."""
        return num_compilations() if self.is_xla else 0

    def read(self, scalars: list[Tensor]) -> list[float]:
        """Copy scalars of the device to the host. A host sync."""
        if self.is_xla:  # a stack of another number of them would be another program
            return [scalar.item() for scalar in scalars]
        return torch.stack(scalars).tolist() if scalars else []

    def place_batches(self, loader: Any) -> Any:
        """Move a loader's tensors to the device without sharding it: each rank's loader holds its own batches."""
        return prepare_data_loader(loader, self.device, num_processes=1, process_index=0, put_on_device=True)

    def place_model(self, model: Any, units: Callable[[Any], list[torch.nn.Module]]) -> None:
        """Move a model to the device, or shard it over the devices of all ranks.

        Before AdamW is built, which holds on to the parameters as it finds them and picks its fused form by the device.
        Collective where the model is sharded.

        Args:
            model: The same on every rank; changed in place.
            units: Names the modules that are sharded as one each.
        """
        if self.sharding is None:
            model.to(self.device)
            if self.is_xla:
                model.tie_weights()  # on its way there each name got a parameter of its own
        else:
            shard(model, self.sharding, units(model), device=self.device, is_bf16=self.precision == "bf16")

    def prepare(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        """Have accelerate wrap a placed model (data parallelism, autocast) and its optimizer. Collective."""
        if self.sharding is None:
            return self.accelerator.prepare(model, optimizer)
        # evaluation_mode: autocast, and no data parallelism around what is sharded.
        wrapped = self.accelerator.prepare_model(model, device_placement=False, evaluation_mode=True)
        return wrapped, self.accelerator.prepare_optimizer(optimizer, device_placement=False)

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """Compute in the run's precision; until the outermost of these ends, each weight is cast only once."""
        if self.can_choose_precision:  # accelerate knows of "no"
            return torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.precision == "bf16")
        return self.accelerator.autocast()

    @contextlib.contextmanager
    def gradient_sync(self, model: torch.nn.Module, *, enabled: bool) -> Iterator[None]:
        """Let the ranks exchange gradients in this backward only if enabled. Forward and backward both go inside."""
        if is_sharded(model):
            set_gradient_sync(model, enabled=enabled)
            yield
        elif enabled:
            yield
        else:
            with self.accelerator.no_sync(model):
                yield

    def sum_over_ranks(self, *values: float | Tensor) -> list[float]:
        """Add numbers over the ranks in float64; the same list on every rank. Collective, and a host sync."""
        # To the host first: MPS has no float64 to convert to.
        stacked = torch.tensor([float(value) for value in values], dtype=torch.float64)
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
        if self.is_xla:  # unequal shapes are for the host
            tables = exchange(self.accelerator, rows.cpu())
            width = max(table.shape[1] for table in tables)
            return torch.cat([F.pad(table, (0, width - table.shape[1]), value=pad_id) for table in tables])
        padded = self.accelerator.pad_across_processes(rows, dim=1, pad_index=pad_id)
        padded = self.accelerator.pad_across_processes(padded, dim=0, pad_index=pad_id)
        return self.accelerator.gather(padded)

    def gather_objects(self, items: list[T]) -> list[T]:
        """Concatenate the ranks' lists, in rank order, on every rank. Collective."""
        if self.num_ranks == 1:
            return items
        if self.is_xla:  # accelerate's gather_object is not made for it
            return [item for theirs in exchange(self.accelerator, items) for item in theirs]
        return gather_object(items)

    def broadcast(self, value: T) -> T:
        """Hand main's value to every rank. Collective."""
        if self.num_ranks == 1:
            return value
        if self.is_xla:
            return exchange(self.accelerator, value if self.is_main else None)[0]  # type: ignore[return-value]
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

    def agree_on_signal(self, step: int | None = None) -> int | None:
        """Return the signal that any rank got, the same on every rank.

        Collective, at the same steps on all: waits for the other ranks at each step on CPUs, at every
        STOP_CHECK_EVERY_ON_ACCELERATOR-th elsewhere, and always where no step is given.
        """
        mine = self.signals.check()
        if self.num_ranks == 1:
            return mine
        if step is not None and self.device.type != "cpu" and step % STOP_CHECK_EVERY_ON_ACCELERATOR:
            return None
        numbers = torch.zeros(self.num_ranks, dtype=torch.int64, device=self.device)
        numbers[self.rank] = mine or 0
        return int(self.accelerator.reduce(numbers, reduction="sum").max()) or None  # host sync

    def is_any(self, mine: bool) -> bool:
        """Whether it is so on any rank; the same answer on every one. Collective, and a host sync."""
        if self.num_ranks == 1:
            return mine
        num_ranks = self.accelerator.reduce(torch.tensor(int(mine), device=self.device), reduction="sum")
        return int(num_ranks) > 0

    def stop_if_told(self) -> None:
        """Abandon what is going on if any rank was told to stop. Collective.

        Raises:
            Interrupted: on every rank.
        """
        if (number := self.agree_on_signal()) is not None:
            raise Interrupted(number)

    def close(self) -> None:
        """End trackers and the process group, and give signals and settings back: a notebook goes on after the run."""
        self.signals.restore()
        use_deterministic_algorithms(False)
        if self.num_ranks > 1:
            # Gloo's thread needs the GIL to drop the tensors of the last collective, and the group's destructor waits
            # for that thread while it holds the GIL (torch 2.13): without this pause one exit in a few hung for ever.
            time.sleep(0.2)
        try:
            self.accelerator.end_training()
        except Exception as error:  # a tracker's service may be away: the run itself is over and saved
            self.say(f"tracking did not end well: {type(error).__name__}: {error}")
            self.accelerator.state.destroy_process_group()
        # accelerate keeps device and precision for the process's life; a notebook may start another run with others.
        AcceleratorState._reset_state(reset_partial_state=True)


def exchange(accelerator: Accelerator, value: T) -> list[T]:
    """Hand every rank's value to every rank, pickled into tensors of few shapes. Collective, and a host sync.

    Returns:
        The values in rank order.
    """
    data = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8).to(torch.int32)
    sizes = accelerator.gather(torch.tensor([len(data)]).to(accelerator.device)).tolist()
    width = 1 << (max(*sizes, 1_024) - 1).bit_length()
    padded = F.pad(data, (0, width - len(data))).to(accelerator.device)
    rows = accelerator.gather(padded[None]).cpu().to(torch.uint8)
    return [pickle.loads(row[:size].numpy().tobytes()) for row, size in zip(rows, sizes, strict=True)]


def attempt(work: Callable[[], T], *, when: bool = True) -> tuple[T | None, Exception | None]:
    """Run work if `when`; hand back its result or its error, for raise_together."""
    try:
        return (work() if when else None), None
    except Exception as error:  # the ranks must agree before it is raised
        return None, error
