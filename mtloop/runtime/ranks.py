"""Runtime: the only constructor of Accelerator. Launch, precision, placement, seeds.

Every other module takes a Runtime and never asks accelerate or torch.distributed itself. Must not know data or models.
"""

from __future__ import annotations

import contextlib
import os
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
)
from torch import Tensor
from tqdm.auto import tqdm

from mtloop.errors import ProcessFailed, UserError
from mtloop.runtime.asked import asked_sharding, hidden_from_accelerate
from mtloop.runtime.collectives import Collectives
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
from mtloop.runtime.signals import StopSignals
from mtloop.runtime.xla import end_program, keep_weights_in_fp32, num_compilations, seed_device

if TYPE_CHECKING:
    from mtloop.config.training import HardwareConfig

T = TypeVar("T")
# Seconds beyond --process_timeout in which torch's own error, which says more, may come first.
MEETING_MARGIN_S = 5.0


class Runtime(Collectives):
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
