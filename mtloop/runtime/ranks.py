"""Construct the Accelerator and hold the runtime: launch, precision, placement, seeds.

Other modules take a Runtime and do not call accelerate or torch.distributed. Must not know data or models.
"""

from __future__ import annotations

import contextlib
import math
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

from mtloop.errors import ProcessFailed, UserError, without_passwords
from mtloop.runtime.collectives import Collectives
from mtloop.runtime.failures import choose_interface, could_not_meet, explain
from mtloop.runtime.launch import (
    asked_dynamo,
    asked_sharding,
    avoid_planned_attention,
    check_environment,
    check_precision,
    choose_precision,
    complete_fp16,
    flag,
    has_accelerator,
    hidden_from_accelerate,
    keep_freed_memory,
    set_threads,
    use_deterministic_algorithms,
)
from mtloop.runtime.sharding import is_sharded, set_gradient_sync, shard, whole
from mtloop.runtime.signals import StopSignals
from mtloop.runtime.xla import check_generation, end_program, keep_weights_in_fp32, num_compilations, seed_device

if TYPE_CHECKING:
    from mtloop.config.environment import HardwareConfig

T = TypeVar("T")
# Seconds beyond --process_timeout in which torch's own error, which says more, may come first.
MEETING_MARGIN_S = 5.0
# Cost of a forward and backward beyond their padded tokens, in tokens, by the kind of device. CPU: fitted to forwards
# and backwards of 32 to 512 tokens, 284 (9 M parameters, 55 ms) and 210 (1 M, 20 ms). A GPU waits for the host: on an
# H200, 6 + 6 layers, some 200 ms for one of any size, 1.6 us a token. XLA compiles a program a shape, and shapes are
# longer than their rows: 57 % real tokens on KDE pairs, 44 % with 300.
MICRO_BATCH_OVERHEADS = {"cpu": 200, "cuda": 50_000, "xla": 150}


class Runtime(Collectives):
    """Device, precision and ranks of this process.

    Attributes:
        accelerator: The Accelerator of the process.
        rank: This process's rank, from 0.
        num_ranks: How many processes share the run.
        is_main: Whether this is rank 0.
        device: Where tensors go.
        precision: "no", "bf16" or "fp16", for autocast.
        can_choose_precision: Whether the precision is "auto" on a CPU: "no" until the trainer has measured it.
        sharding: How the model is sharded over the ranks, None where each holds a whole one.
        num_threads: CPU threads of this process.
        signals: Stop signals of this process.
    """

    def __init__(
        self,
        hardware: HardwareConfig,
        *,
        project_dir: str | None = None,
        report_to: str | None = None,
    ) -> None:
        """Initialize the process group.

        Collective: every rank constructs one, once.

        Args:
            hardware: The flags.
            project_dir: Where trackers write.
            report_to: Tracker for accelerate's log_with; None for no tracker.

        Raises:
            UserError: for an invalid launch (process counts that disagree, FSDP on a CPU, ...).
            ProcessFailed: if the processes cannot connect.
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
        check_precision(precision)
        check_environment(is_cpu=is_cpu, shard_model=hardware.shard_model)
        sharding = asked_sharding(hardware, precision)
        choose_interface()
        timeout_s = hardware.process_timeout + MEETING_MARGIN_S
        try:
            with self.signals.leaving_with_launcher(timeout_s=timeout_s), hidden_from_accelerate():
                self.accelerator = self._accelerator(hardware, precision, is_cpu, project_dir, report_to)
        except ValueError as error:
            problem = " ".join(str(error).split())
            raise UserError(
                f"--mixed_precision {precision or 'of the launch file'}: {problem}. Give another precision."
            ) from error
        except RuntimeError as error:
            failure = explain(error)
            is_of_network = isinstance(error, getattr(torch.distributed, "DistError", ()))
            if not is_of_network and (failure is None or not failure.is_lost_peer):
                raise
            raise ProcessFailed(could_not_meet(error)) from error
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
            # With cpu=True a multi-GPU launch file gives real gloo ranks; without, each would be a single process.
            cpu=is_cpu,
            mixed_precision=precision,
            log_with=report_to,
            project_dir=project_dir,
            dynamo_backend="no",  # None would be that of the launch file
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
                f"WORLD_SIZE: set to {world_size}, but accelerate runs {self.num_ranks} process(es), each of which "
                "would train alone. Start with `accelerate launch` and a file that `mtloop configs` lists, or unset "
                "WORLD_SIZE."
            )
        if hardware.expect_processes is not None and hardware.expect_processes != self.num_ranks:
            raise UserError(
                f"--expect_processes: the launch started {self.num_ranks} process(es) (expected "
                f"{hardware.expect_processes}). Give accelerate launch the matching --config_file or --num_processes."
            )

    def describe(self) -> str:
        """Describe in one line the hardware of the run."""
        text = f"device {self.device.type}"
        if self.device.type == "cuda":
            text += f" ({torch.cuda.get_device_name(self.device)})"
        text += f" · {self.num_ranks} process{'es' if self.num_ranks > 1 else ''}"
        text += f" · {self.num_threads} CPU thread{'s' if self.num_threads > 1 else ''} each"
        precision = "fp32" if self.precision == "no" else self.precision
        text += f" · precision {'to be measured' if self.can_choose_precision else precision}"
        text += f" · sharded ({self.sharding.name})" if self.sharding is not None else ""
        if self.device.type == "cpu" and self._is_gpu_launch:
            text += " · the launch file asks for a GPU, but none is available"
        if backend := asked_dynamo():
            text += f" · the launch file asks for torch dynamo ({backend}), which is not used"
        return text

    @property
    def _is_gpu_launch(self) -> bool:
        """Guess whether the launch file is for a GPU: the launcher exports neither its name nor distributed_type.

        Of accelerate_configs/ the GPU files alone name GPUs or a half precision.
        """
        is_half = os.environ.get("ACCELERATE_MIXED_PRECISION") in ("bf16", "fp16")
        return not flag("ACCELERATE_USE_CPU") and (is_half or bool(os.environ.get("CUDA_VISIBLE_DEVICES")))

    def say(self, *lines: str) -> None:
        """Print lines once, from the main process, above a progress bar where there is one. Passwords are removed."""
        if not self.is_main or sys.stdout is None:
            return
        # Where a program of the user's uses the library: the commands make the streams safe.
        with contextlib.suppress(OSError, UnicodeEncodeError):
            for line in lines:
                tqdm.write(without_passwords(line), file=sys.stdout)
            sys.stdout.flush()

    def seed_update(self, step: int) -> None:
        """Make all randomness of an update a function of (seed, step, rank), so that a resume need restore none."""
        seed = int(np.random.SeedSequence([self.seed, step, self.rank]).generate_state(1)[0])
        torch.manual_seed(seed)  # all devices but XLA
        if self.is_xla:
            seed_device(seed, self.device)
        random.seed(seed)  # layer drop in some models

    def end_program(self) -> None:
        """Compile and start the traced program on XLA, so that every update consists of the same few programs."""
        if self.is_xla:
            end_program()

    def compilations(self) -> dict[str, int]:
        """Return {"num_compilations": programs that this process has compiled} on XLA, {} elsewhere."""
        return {"num_compilations": num_compilations()} if self.is_xla else {}

    @contextlib.contextmanager
    def reporting_compilations(self) -> Iterator[None]:
        """Print on XLA how many programs an evaluation compiled."""
        before = self.compilations()
        yield
        for name, number in self.compilations().items():
            self.say(f"XLA: {before[name]} programs compiled before this evaluation, {number - before[name]} in it")

    @property
    def has_static_shapes(self) -> bool:
        """Return True if each new shape costs a compilation: batches are padded to few shapes, search is greedy."""
        return self.is_xla

    def check_generation(self, *, num_beams: int, max_length_ratio: float | None, max_length: int) -> None:
        """Check the generation settings for the device, and print advice.

        Raises:
            UserError: for unsupported settings.
        """
        if self.is_xla:
            lines = check_generation(num_beams=num_beams, max_length_ratio=max_length_ratio, max_length=max_length)
            self.say(*lines)

    @property
    def attention(self) -> str | None:
        """The attention to load a model with, None for the library's choice.

        Heads of 64 and short rows: on a CPU plain attention is a fifth faster than the fused one. XLA fuses by itself
        and adds a mask to the scores.
        """
        return "eager" if self.device.type in ("cpu", "xla") else None

    @property
    def micro_batch_overhead(self) -> int:
        """The cost of a forward and backward beyond its padded tokens, in tokens."""
        return MICRO_BATCH_OVERHEADS.get(self.device.type, MICRO_BATCH_OVERHEADS["cuda"])

    def place_batches(self, loader: Any) -> Any:
        """Move a loader's tensors to the device without sharding it: each rank's loader has its own batches."""
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
                model.tie_weights()  # the move gave each name a separate parameter
        else:
            shard(model, self.sharding, units(model), device=self.device, is_bf16=self.precision == "bf16")

    def prepare(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        """Have accelerate wrap a placed model (data parallelism, autocast) and its optimizer. Collective."""
        if self.sharding is None:
            return self.accelerator.prepare(model, optimizer)
        # evaluation_mode: autocast, without data parallelism around the sharded model.
        wrapped = self.accelerator.prepare_model(model, device_placement=False, evaluation_mode=True)
        return wrapped, self.accelerator.prepare_optimizer(optimizer, device_placement=False)

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """Compute in the run's precision; until the outermost of these ends, each weight is cast only once."""
        if self.can_choose_precision:  # accelerate has "no"
            return torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.precision == "bf16")
        return self.accelerator.autocast()

    @contextlib.contextmanager
    def accumulate(self, model: torch.nn.Module, *, is_last: bool) -> Iterator[None]:
        """Run one micro-batch's forward and backward: the ranks exchange gradients in the last of an update alone."""
        if is_sharded(model):
            set_gradient_sync(model, enabled=is_last)
        with contextlib.nullcontext() if is_last or is_sharded(model) else self.accelerator.no_sync(model):
            yield
        self.end_program()

    def clip_gradients(self, model: torch.nn.Module, max_norm: float | None) -> Tensor:
        """Scale the gradients to a global norm of at most max_norm, where one is given. Collective where sharded.

        Returns:
            The norm before, the same on every rank; a scalar on the device.
        """
        norm = self.accelerator.clip_grad_norm_(model.parameters(), max_norm or math.inf)
        return whole(torch.as_tensor(norm))

    def clear_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """End an update. On XLA gradients become 0: a first forward that makes them would be another program."""
        optimizer.zero_grad(set_to_none=not self.is_xla)
        self.end_program()

    def on_device(self, value: float) -> Tensor:
        """Return a number as a tensor on the device: float32 [1].

        Made on the host, and a vector: XLA makes a constant of its program of what the device makes.
        """
        return torch.tensor([value]).to(self.device)

    def close(self) -> None:
        """End trackers and the process group, restore signals and settings: a notebook continues after the run."""
        self.signals.restore()
        use_deterministic_algorithms(False)
        if self.num_ranks > 1:
            # Gloo's thread needs the GIL to drop the tensors of the last collective, and the group's destructor waits
            # for that thread while it holds the GIL (torch 2.13): without this pause one exit in a few hung for ever.
            time.sleep(0.2)
        try:
            self.accelerator.end_training()
        except Exception as error:  # a tracker's service may be unavailable: the run is over and saved
            self.say(f"the tracker could not be closed: {type(error).__name__}: {error}")
            self.accelerator.state.destroy_process_group()
        # accelerate keeps device and precision for the process's life; a notebook may start another run with others.
        AcceleratorState._reset_state(reset_partial_state=True)
