"""From the configuration and the encoded rows to the plan of a run: the loader, its shapes, and how many updates."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from mtloop.batching import Budget, Shape, choose_shapes
from mtloop.batching.loader import TrainLoader
from mtloop.batching.shapes import MAX_SHAPES
from mtloop.config.fields import AUTO
from mtloop.config.settings import Config, changed, is_from_scratch
from mtloop.config.training import MICRO_BATCH_TOKENS
from mtloop.errors import UserError
from mtloop.runtime import Runtime
from mtloop.tokenization import Encoded
from mtloop.trainer.optimizer import warmup_steps

# What a forward and backward cost beyond their padded tokens, in tokens, by the kind of device. CPU: fitted to forwards
# and backwards of 32 to 512 tokens, 284 (9 M parameters, 55 ms) and 210 (1 M, 20 ms). A GPU waits for the host: on an
# H200, 6 + 6 layers, some 200 ms for one of any size, 1.6 us a token. XLA compiles a program a shape, and shapes are
# longer than their rows: 57 % real tokens on KDE pairs, 44 % with 300.
MICRO_BATCH_OVERHEADS = {"cpu": 200, "cuda": 50_000, "xla": 150}


def build_loader(
    config: Config, train_set: Encoded, tokenizer: PreTrainedTokenizerBase, runtime: Runtime
) -> TrainLoader:
    """Build this rank's loader of the training updates."""
    assert tokenizer.pad_token_id is not None
    budget = Budget(tokens=config.batch.tokens_per_update, sentences=config.batch.sentences_per_update)
    overhead = config.batch.micro_batch_overhead
    if overhead is None:
        overhead = MICRO_BATCH_OVERHEADS.get(runtime.device.type, MICRO_BATCH_OVERHEADS["cuda"])
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
        place=runtime.place_batches,
    )


def micro_batch_tokens(config: Config) -> int:
    """The budget of a micro-batch; under auto the default, until the trainer has found what there is room for."""
    asked = config.batch.max_tokens_per_micro_batch
    return asked if isinstance(asked, int) else MICRO_BATCH_TOKENS


def choose_padding(config: Config, train_set: Encoded, budget: Budget, *, overhead: int, num_ranks: int) -> list[Shape]:
    """Choose the shapes that --pad_to asks for; none where each micro-batch is padded to its own longest row."""
    if config.batch.pad_to == "longest":
        return []
    if config.batch.max_tokens_per_micro_batch == AUTO:
        raise UserError(
            f"--max_tokens_per_micro_batch {AUTO}: with --pad_to {config.batch.pad_to} the shapes are chosen before "
            "anything is computed; give a number"
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


def settle_steps(config: Config, loader: TrainLoader) -> tuple[Config, int, int]:
    """Count the updates of the run and those of its warm-up, which goes into the configuration."""
    total_steps = config.optimizer.max_train_steps or config.optimizer.num_train_epochs * loader.updates_per_epoch
    warmup = warmup_steps(config.optimizer, total_steps=total_steps, is_from_scratch=is_from_scratch(config))
    return changed(config, num_warmup_steps=warmup), total_steps, warmup


def describe_plan(config: Config, loader: TrainLoader, total_steps: int, warmup: int) -> list[str]:
    """Say what will be trained, and what forwards are padded to where that is not their own longest row."""
    batch = config.batch
    size = f"about {batch.tokens_per_update:,} target tokens" if batch.tokens_per_update else ""
    if batch.sentences_per_update:
        size = f"{batch.sentences_per_update:,} sentences"
    plan = (
        f"plan: {total_steps:,} updates of {size}, {loader.updates_per_epoch:,} an epoch; learning rate "
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
