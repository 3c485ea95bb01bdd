"""Search greedily in tensors of fixed shape, for devices that compile a program for every shape (XLA).

generate() extends its tensors by a token a step, so that each step is a new program. Here the tokens are written into
one tensor, and the decoder reads a prefix of it, of one of a few widths. There is no cache, whose shapes differ between
the families: decoding the prefix again in each step costs less than one compilation.

Shape letters: B sentences, S source tokens, T generated tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from mtloop.model.generation_config import as_list
from mtloop.model.static_shapes import static_mask

# Widths of the prefix that the decoder reads, besides the maximum length: half of KDE's translations are below 9.
WIDTHS = (16, 64)
# Steps between checks whether all rows have ended, each a host sync.
CHECK_EVERY = 8
# Settings of a generation config that change a plain greedy search, with the value that has no effect.
NOT_GREEDY = {
    "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0, "min_length": 0, "min_new_tokens": None, "suppress_tokens": None,
    "begin_suppress_tokens": None, "sequence_bias": None, "exponential_decay_length_penalty": None,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The settings of a greedy search: token ids, and the maximum tokens of a translation, the first included."""

    first: int
    forced_second: int | None
    forced_last: int | None
    end: tuple[int, ...]
    pad: int
    forbidden: tuple[int, ...]
    max_length: int


def rules_of(generation: GenerationConfig, overrides: dict[str, Any]) -> Rules | None:
    """Read the rules from a generation config and its overrides; None if they need more than a plain greedy search."""
    asked = {**generation.to_dict(), **overrides}
    forbidden = asked.get("bad_words_ids") or []
    is_plain = all(asked.get(name) in (value, None) for name, value in NOT_GREEDY.items())
    if not is_plain or any(len(words) > 1 for words in forbidden):
        return None
    return Rules(
        first=asked["bos_token_id"] if asked["decoder_start_token_id"] is None else asked["decoder_start_token_id"],
        forced_second=asked.get("forced_bos_token_id"),
        forced_last=asked.get("forced_eos_token_id"),
        end=tuple(as_list(asked["eos_token_id"])),
        pad=asked["pad_token_id"],
        forbidden=tuple(words[0] for words in forbidden),
        max_length=asked["max_length"],
    )


def greedy_search(
    model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, rules: Rules, *, end_program: Callable[[], None]
) -> Tensor:
    """Translate greedily; the tokens are those of generate(num_beams=1).

    Args:
        model: In eval mode.
        input_ids: int64 [B, S].
        attention_mask: int64 [B, S].
        rules: From rules_of.
        end_program: Called where a program may end: after the encoder and after each step.

    Returns:
        int64 [B, T] with T = rules.max_length, padded after the end of a translation, on the device.
    """
    device, num_rows = input_ids.device, len(input_ids)
    attention_mask = static_mask(attention_mask)
    encoded = cast(Any, model).get_encoder()(input_ids=input_ids, attention_mask=attention_mask, return_dict=True)
    memory = BaseModelOutput(last_hidden_state=encoded.last_hidden_state)
    start = torch.full((num_rows, rules.max_length), rules.pad)
    start[:, 0] = rules.first
    # Created on the host, as is each step's number: on XLA a tensor created on the device is a constant of the program.
    tokens, has_ended = start.to(device), torch.zeros(num_rows, dtype=torch.bool).to(device)
    end_program()
    for step in range(rules.max_length - 1):
        width = next((width for width in WIDTHS if step < width < rules.max_length), rules.max_length)
        forced = rules.forced_second if step == 0 else None
        if step == rules.max_length - 2:
            forced = rules.forced_last if forced is None else forced
        at = torch.tensor([step, -1 if forced is None else forced]).to(device)
        logits = model(
            encoder_outputs=memory, attention_mask=attention_mask, decoder_input_ids=tokens[:, :width], use_cache=False
        ).logits
        tokens, has_ended, is_over = _write_step(logits, tokens, has_ended, at, rules)
        end_program()
        if step % CHECK_EVERY == CHECK_EVERY - 1 and bool(is_over):  # host sync
            break
    return tokens


def _write_step(
    logits: Tensor, tokens: Tensor, has_ended: Tensor, at: Tensor, rules: Rules
) -> tuple[Tensor, Tensor, Tensor]:
    """Select and write the next token of each row.

    Args:
        logits: float [B, width, V].
        tokens: int64 [B, T].
        has_ended: bool [B].
        at: int64 [2], the position of the last token, and the token forced next or -1.
        rules: Of the search.

    Returns:
        The new tokens and has_ended, and bool [] whether all rows have ended.
    """
    position, forced = at[:1], at[1:]
    scores = logits.index_select(1, position).squeeze(1).float()
    if rules.forbidden:
        is_forbidden = torch.zeros(scores.shape[-1], dtype=torch.bool)
        is_forbidden[list(rules.forbidden)] = True
        scores = scores.masked_fill(is_forbidden.to(scores.device), -torch.inf)
    chosen = torch.where(forced >= 0, forced, scores.argmax(dim=-1))
    chosen = torch.where(has_ended, rules.pad, chosen)
    is_next = torch.arange(tokens.shape[1]).to(tokens.device) == position + 1
    tokens = torch.where(is_next, chosen[:, None], tokens)
    for end in rules.end:
        has_ended = has_ended | (chosen == end)
    return tokens, has_ended, has_ended.all()
