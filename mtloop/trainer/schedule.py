"""Build the loader, the optimizer and the learning-rate schedule from the configuration and the encoded rows."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, cast

import torch
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import PreTrainedTokenizerBase, get_scheduler

from mtloop.batching.loader import TrainLoader
from mtloop.batching.plan import Budget
from mtloop.batching.shapes import MAX_SHAPES, Shape, choose_shapes
from mtloop.config.fields import AUTO
from mtloop.config.settings import Config, changed, is_from_scratch
from mtloop.config.training import MICRO_BATCH_TOKENS, OptimizerConfig
from mtloop.errors import UserError, first_line
from mtloop.runtime.launch import build_adamw
from mtloop.runtime.ranks import Runtime
from mtloop.tokenization.encoding import Encoded

NUM_CHECKED_RATES = 1_000


def build_loader(
    config: Config, train_set: Encoded, tokenizer: PreTrainedTokenizerBase, runtime: Runtime
) -> TrainLoader:
    """Build this rank's loader of the training updates."""
    assert tokenizer.pad_token_id is not None
    budget = Budget(tokens=config.batch.tokens_per_update, sentences=config.batch.sentences_per_update)
    overhead = config.batch.micro_batch_overhead
    if overhead is None:
        overhead = runtime.micro_batch_overhead
    return TrainLoader(
        encoded=train_set.rows,
        source_lengths=train_set.source_lengths,
        target_lengths=train_set.target_lengths,
        budget=budget,
        shapes=choose_padding(config, train_set, budget, overhead=overhead, num_ranks=runtime.num_ranks),
        max_tokens_per_micro_batch=micro_batch_tokens(config),
        micro_batch_overhead=overhead,
        pad_id=tokenizer.pad_token_id,
        seed=config.hardware.seed,
        rank=runtime.rank,
        num_ranks=runtime.num_ranks,
        num_workers=config.batch.dataloader_num_workers,
        worker_timeout=config.hardware.process_timeout,
        place=runtime.place_batches,
    )


def micro_batch_tokens(config: Config) -> int:
    """Return the limit of a micro-batch; under auto the default, until the trainer has measured it."""
    asked = config.batch.max_tokens_per_micro_batch
    return asked if isinstance(asked, int) else MICRO_BATCH_TOKENS


def choose_padding(config: Config, train_set: Encoded, budget: Budget, *, overhead: int, num_ranks: int) -> list[Shape]:
    """Choose the shapes for --pad_to; none if each micro-batch is padded to its longest row."""
    if config.batch.pad_to == "longest":
        return []
    if config.batch.max_tokens_per_micro_batch == AUTO:
        raise UserError(
            f"--max_tokens_per_micro_batch: expected a number with --pad_to {config.batch.pad_to}, whose shapes are "
            f"chosen before anything is computed (got {AUTO!r}). Give a number, for example {MICRO_BATCH_TOKENS}."
        )
    return choose_shapes(
        train_set.source_lengths,
        train_set.target_lengths,
        budget,
        max_tokens=micro_batch_tokens(config),
        overhead=overhead,
        num_ranks=num_ranks,
        longest=(config.data.max_source_length, config.data.max_target_length),
        max_shapes=1 if config.batch.pad_to == "fixed" else MAX_SHAPES,
    )


def resolve_steps(config: Config, loader: TrainLoader) -> tuple[Config, int, int]:
    """Count the updates of the run and those of its warm-up, which goes into the configuration."""
    # A decimal fraction: as a float, 1.1 * 10 is above 11.
    num_epochs = Fraction(str(config.optimizer.num_train_epochs))
    total_steps = config.optimizer.max_train_steps or math.ceil(num_epochs * loader.updates_per_epoch)
    warmup = warmup_steps(config.optimizer, total_steps=total_steps, is_from_scratch=is_from_scratch(config))
    if config.optimizer.num_warmup_steps is None:  # a fraction stays one: it is what a resume is compared with
        config = changed(config, num_warmup_steps=warmup)
    return config, total_steps, warmup


def describe_plan(config: Config, loader: TrainLoader, total_steps: int, warmup: int) -> list[str]:
    """Describe the updates of the run, and the shapes that micro-batches are padded to."""
    batch = config.batch
    size = f"about {batch.tokens_per_update:,} target tokens" if batch.tokens_per_update else ""
    if batch.sentences_per_update:
        size = f"{batch.sentences_per_update:,} sentences"
    num_epochs = config.optimizer.num_train_epochs
    is_fraction = config.optimizer.max_train_steps is None and num_epochs != int(num_epochs)
    rounded = f" ({num_epochs} epochs, rounded up)" if is_fraction else ""
    plan = (
        f"plan: {total_steps:,} updates of {size}, {loader.updates_per_epoch:,} an epoch{rounded}; learning rate "
        f"{config.optimizer.learning_rate:g}, {warmup:,} updates of warm-up, beam size {config.evaluation.num_beams}"
    )
    if not loader.shapes:
        return [plan]
    shapes = ", ".join(map(str, loader.shapes))
    return [
        plan,
        f"padding: {loader.share_of_real_tokens():.0%} of the tokens computed are real; {len(loader.shapes)} shape(s), "
        f"rows x (source + target tokens): {shapes}",
    ]


def build_optimizer(model: torch.nn.Module, config: OptimizerConfig) -> AdamW:
    """Build AdamW without weight decay on biases and norms.

    Args:
        model: Its trainable parameters are optimised.
        config: Resolved: learning_rate and adam_beta2 are set.

    Source: Loshchilov and Hutter 2019, algorithm 2 (AdamW), as torch.optim.AdamW implements it.
    """
    assert config.learning_rate is not None and config.adam_beta2 is not None
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # Biases and the gains of norms are the vectors, and T5's table of position biases, as in TrainingArguments.
    biases = {id(p) for name, p in model.named_parameters() if p.ndim < 2 or "bias" in name}
    groups = [
        {"params": [p for p in trainable if id(p) not in biases], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if id(p) in biases], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    options: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": (config.adam_beta1, config.adam_beta2),
        "eps": config.adam_epsilon,
    }
    return build_adamw(groups, **options)


def warmup_steps(config: OptimizerConfig, *, total_steps: int, is_from_scratch: bool) -> int:
    """Return the updates of warm-up: as asked, else none for fine-tuning and a tenth (at most 4,000) from scratch."""
    asked = config.num_warmup_steps
    if asked is not None:
        # Rounded up as by TrainingArguments; of a decimal fraction, see resolve_steps.
        return math.ceil(Fraction(str(asked)) * total_steps) if asked < 1 else int(asked)
    return min(4_000, total_steps // 10) if is_from_scratch else 0


def build_scheduler(
    optimizer: torch.optim.Optimizer, config: OptimizerConfig, *, num_warmup_steps: int, total_steps: int
) -> LRScheduler:
    """Build the per-update schedule of the learning rate, warm-up included.

    Do not pass it to accelerate's prepare(), which would step it once per process.

    Raises:
        UserError: for unknown, missing or invalid arguments in lr_scheduler_kwargs.
    """
    try:
        scheduler = get_scheduler(
            config.lr_scheduler_type,
            optimizer,
            num_warmup_steps=num_warmup_steps,
            num_training_steps=total_steps,
            scheduler_specific_kwargs=config.schedule_arguments(),
        )
        _check_rates(scheduler, total_steps)
    except Exception as error:  # of its arguments: a type, a name, a division by zero
        raise UserError(
            f"--lr_scheduler_type {config.lr_scheduler_type}: {first_line(error)} (got --num_warmup_steps "
            f"{num_warmup_steps} of {total_steps} and --lr_scheduler_kwargs {config.lr_scheduler_kwargs}). Give its "
            "arguments as a JSON object in --lr_scheduler_kwargs."
        ) from error
    return scheduler


def _check_rates(scheduler: LRScheduler, total_steps: int) -> None:
    """Compute a schedule before it is used, at some thousand steps and at its end.

    Raises:
        ValueError: for a learning rate that is negative or not finite. Other errors are those of the schedule.
    """
    rate = cast(LambdaLR, scheduler).lr_lambdas[0]
    for step in (*range(0, total_steps, max(1, total_steps // NUM_CHECKED_RATES)), total_steps):
        found = rate(step) * scheduler.base_lrs[0]
        if not 0 <= found < math.inf:
            raise ValueError(f"the learning rate of update {step + 1} is {found}")
