"""Try a loaded model on two short texts, so that one that cannot be trained or searched is refused before the data."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mtloop.batching.loader import IGNORE_INDEX, Batch
from mtloop.errors import described, refused
from mtloop.generation.generate import SearchOptions, generate_batches
from mtloop.model.loss import batch_loss_sum
from mtloop.runtime.ranks import Runtime

TEXTS, TARGETS = ("a", "a b c"), ("a b", "a")
# Generated tokens behind the least that the generation config asks for.
NUM_TOKENS = 3


@torch.no_grad()
def try_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, runtime: Runtime, *, flag: str) -> None:
    """Compute the loss of two rows and translate them; random states and the model stay as they are.

    Nothing is tried on XLA, which would compile more programs, and with attention that the CPU cannot compute before
    the model is on its device.

    Args:
        model: With a configured generation config, on any device.
        tokenizer: Set to its languages.
        runtime: Its precision is used.
        flag: The flag that named the model, and its value.

    Raises:
        UserError: The model's own code fails.
    """
    device = next(model.parameters()).device
    needs_device = device != runtime.device and model.config._attn_implementation not in ("eager", "sdpa", None)
    if runtime.is_xla or needs_device:
        return
    was_training, generation, stage = model.training, model.generation_config, "computing the loss"
    kind = type(model).__name__

    def describe(error: BaseException) -> str:
        remedy = "Correct its config.json or generation_config.json, or give another model."
        return f"{flag}: a {kind} that fails when {stage} of two rows ({described(error)}). {remedy}"

    try:
        with refused(describe), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            batch = _two_rows(tokenizer, device)
            batch_loss_sum(model.train(), batch)  # with dropout, whose rate may be invalid
            stage = "generating translations"
            model.eval()
            least: Any = max(generation.min_length or 0, generation.min_new_tokens or 0)
            settings = {"max_length": min(generation.max_length or NUM_TOKENS, 1 + least + NUM_TOKENS)}
            for _ in generate_batches(model, [(np.arange(len(TEXTS)), batch)], runtime, SearchOptions(), settings):
                pass
    finally:
        model.train(was_training)


def _two_rows(tokenizer: PreTrainedTokenizerBase, device: torch.device) -> Batch:
    def padded(ids: list[list[int]], value: int) -> torch.Tensor:
        return pad_sequence([torch.tensor(row) for row in ids], batch_first=True, padding_value=value)

    input_ids = padded(tokenizer(list(TEXTS))["input_ids"], -1)
    labels = padded(tokenizer(text_target=list(TARGETS))["input_ids"], IGNORE_INDEX)
    batch = {
        "input_ids": input_ids.masked_fill(input_ids < 0, tokenizer.pad_token_id),
        "attention_mask": (input_ids >= 0).long(),
        "labels": labels,
        "target_positions": (labels.flatten() != IGNORE_INDEX).nonzero().flatten(),
    }
    return {name: tensor.to(device) for name, tensor in batch.items()}
