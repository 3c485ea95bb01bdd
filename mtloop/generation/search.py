"""Search as generate() does, greedily or with beams, but remove finished rows from the batch.

generate() computes a whole batch until its last row is finished, and it reorders the keys and values of the source with
the beams, although they are equal for all beams of a row. Here rows whose translations can no longer change are removed
from the batch, and only the decoder's self-attention cache is reordered. The results are those of generate().

Shape letters: B sentences, A of them still in the batch, K beams, C candidates of a step, S source tokens, T tokens so
far, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import (
    EncoderDecoderCache,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteriaList,
)
from transformers.modeling_outputs import BaseModelOutput

from mtloop.model.static_shapes import needs_static_shapes

# The score of a missing translation, as in generate().
NO_SCORE = -1.0e9
# Finished rows are removed once they are this share of the batch, because the others must be copied.
LEAVING_SHARE = 1 / 8
# Processors and criteria that treat each row alone and keep no state. With any other, no row is removed.
ROW_BY_ROW = frozenset({
    "EosTokenCriteria", "ExponentialDecayLengthPenalty", "ForcedBOSTokenLogitsProcessor",
    "ForcedEOSTokenLogitsProcessor", "InfNanRemoveLogitsProcessor", "LogitNormalization", "MaxLengthCriteria",
    "MinLengthLogitsProcessor", "MinNewTokensLengthLogitsProcessor", "NoBadWordsLogitsProcessor",
    "NoRepeatNGramLogitsProcessor", "RepetitionPenaltyLogitsProcessor", "SequenceBiasLogitsProcessor",
    "SuppressTokensAtBeginLogitsProcessor", "SuppressTokensLogitsProcessor",
})  # fmt: skip


class Found(NamedTuple):
    """Translations, n of each row in order, best first.

    Attributes:
        sequences: int64 [B x n, T], padded after the end.
        scores: float32 [B x n], of the beam search; of a greedy search the mean log-probability of the tokens if the
            generation config asks for scores. None if there are none.
    """

    sequences: Tensor
    scores: Tensor | None


def search(
    model: PreTrainedModel,
    input_ids: Tensor,
    *,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    **inputs: Any,
) -> Found:
    """Search with the settings of the generation config; generate() calls it when given as custom_generate.

    A processor or criterion with a state of each row allows rows to be removed if it has keep_rows(index int64 [A]).

    Args:
        model: An encoder-decoder model that is not sharded.
        input_ids: int64 [B x K, T], the first tokens of each translation.
        logits_processor: Changes scores.
        stopping_criteria: End translations.
        generation_config: Beams, length penalty, early stopping, translations of a row.
        inputs: The encoder's output, its mask and an empty cache, K times a row.
    """
    holders = [one for one in [*logits_processor, *stopping_criteria] if hasattr(one, "keep_rows")]
    judges = [one for one in [*logits_processor, *stopping_criteria] if one not in holders]
    rows_may_leave = not needs_static_shapes(input_ids.device) and all(
        type(one).__name__ in ROW_BY_ROW for one in judges
    )
    num_beams = generation_config.num_beams

    def leave(is_done: Tensor) -> Tensor | None:
        """Return the rows to keep, int64 [A], if enough of the others are done; else None."""
        num_done = int(is_done.sum())  # host sync
        if num_done < len(is_done) and not (rows_may_leave and num_done >= LEAVING_SHARE * len(is_done)):
            return None
        stay = (~is_done).nonzero().flatten()
        for holder in holders:
            cast(Any, holder).keep_rows(stay)
        return stay

    decoder = _Decoder(model, inputs)
    if num_beams == 1:
        return _search_greedily(decoder, input_ids, logits_processor, stopping_criteria, generation_config, leave)
    return _search_beams(decoder, input_ids, logits_processor, stopping_criteria, generation_config, leave)


class _Decoder:
    """The decoder of a model, with the encoder's output and the cache of each row's beams."""

    def __init__(self, model: PreTrainedModel, inputs: dict[str, Any]) -> None:
        self._model = cast(Any, model)
        # The name of the cache's argument depends on the version of transformers.
        self._cache_name, self._cache = next(
            (name, cast(Any, value)) for name, value in inputs.items() if isinstance(value, EncoderDecoderCache)
        )
        self._memory, self._mask = inputs["encoder_outputs"][0], inputs["attention_mask"]

    def next_logits(self, tokens: Tensor) -> Tensor:
        """Return float32 [A x K, V], the logits of the token after these, int64 [A x K, T]."""
        return self._model(
            encoder_outputs=BaseModelOutput(last_hidden_state=self._memory),
            attention_mask=self._mask,
            decoder_input_ids=tokens[:, self._cache.get_seq_length() :],
            use_cache=True,
            **{self._cache_name: self._cache},
        ).logits[:, -1].float()  # fmt: skip

    def follow(self, beams: Tensor) -> None:
        """Continue with these beams of the batch, int64 [A x K], of all its rows."""
        self._cache.self_attention_cache.reorder_cache(beams)

    def keep(self, beams: Tensor) -> None:
        """Keep the encoder's output of these beams, int64 [A x K], of the remaining rows."""
        self._cache.cross_attention_cache.batch_select_indices(beams)
        self._memory, self._mask = self._memory[beams], self._mask[beams]


def _search_greedily(
    decoder: _Decoder,
    tokens: Tensor,
    process: Callable[[Any, Any], Tensor],
    ends: Callable[[Any, Any], Tensor],
    config: GenerationConfig,
    leave: Callable[[Tensor], Tensor | None],
) -> Found:
    """Append the most likely token in each step."""
    pad_id = cast(int, config.pad_token_id)
    answers = _Answers(len(tokens))
    total, count = tokens.new_zeros(2, len(tokens), dtype=torch.float32)
    is_done = tokens.new_zeros(len(tokens), dtype=torch.bool)
    while True:
        scores = process(tokens, decoder.next_logits(tokens))
        chosen = scores.argmax(dim=-1).masked_fill(is_done, pad_id)
        if config.output_scores:
            log_probs = scores.log_softmax(dim=-1).gather(1, chosen[:, None])[:, 0]
            is_counted = log_probs.isfinite() & (chosen != pad_id)
            total, count = total + log_probs.where(is_counted, 0.0), count + is_counted
        tokens = torch.cat([tokens, chosen[:, None]], dim=1)
        is_done = is_done | ends(tokens, None)
        stay = leave(is_done)
        if stay is None:
            continue
        answers.take(is_done, tokens[:, None], (total / count.clamp(min=1))[:, None])
        if not len(stay):
            return answers.all(pad_id)
        decoder.follow(stay)
        decoder.keep(stay)
        tokens, total, count, is_done = tokens[stay], total[stay], count[stay], is_done[stay]


def _search_beams(
    decoder: _Decoder,
    prompt: Tensor,
    process: Callable[[Any, Any], Tensor],
    ends: Callable[[Any, Any], Tensor],
    config: GenerationConfig,
    leave: Callable[[Tensor], Tensor | None],
) -> Found:
    """Keep the K most likely prefixes of each row, and its K best translations."""
    num_beams, num_wanted = cast(int, config.num_beams), config.num_return_sequences or 1
    beams = _Beams(prompt, config)
    answers = _Answers(len(prompt) // num_beams)
    while True:
        flat = beams.running.flatten(0, 1)
        log_probs = process(flat, decoder.next_logits(flat).log_softmax(dim=-1))
        candidates, scores, parents = beams.candidates(log_probs)
        is_end = ends(candidates.flatten(0, 1), None).view(scores.shape)
        beams.enter(candidates, scores, is_end)
        parents = beams.go_on(candidates, scores, parents, is_end)
        is_done = beams.is_done(is_end)
        parents = parents + torch.arange(len(parents), device=parents.device)[:, None] * num_beams
        stay = leave(is_done)
        if stay is None:
            decoder.follow(parents.flatten())
            continue
        answers.take(is_done, beams.found[:, :num_wanted], beams.found_scores[:, :num_wanted])
        if not len(stay):
            return answers.all(cast(int, config.pad_token_id))
        decoder.follow(parents[stay].flatten())
        decoder.keep((stay[:, None] * num_beams + torch.arange(num_beams, device=stay.device)).flatten())
        beams.keep(stay)


class _Beams:
    """The beams of A rows and the translations found so far.

    Attributes:
        running: int64 [A, K, T], the open prefixes, most likely first.
        found: int64 [A, K, T], the translations found, best first, padded.
        found_scores: float32 [A, K], NO_SCORE where none is found yet.

    Source: the beam search of transformers 5.24, with the same order of steps, scores and ends.
    """

    def __init__(self, prompt: Tensor, config: GenerationConfig) -> None:
        num_beams = cast(int, config.num_beams)
        self._prompt_length, self._max_length = prompt.shape[1], cast(int, config.max_length)
        self._penalty, self._early = cast(float, config.length_penalty), config.early_stopping
        self._pad_id = cast(int, config.pad_token_id)
        num_ends = len(config.eos_token_id) if isinstance(config.eos_token_id, list) else 1
        # Enough that K stay open if each of the first K ends with every end token.
        num_candidates = max(2, 1 + num_ends) * num_beams
        self._is_first = torch.arange(num_candidates, device=prompt.device) < num_beams  # [C]
        self.running = self.found = prompt.view(-1, num_beams, self._prompt_length)
        self.found_scores = prompt.new_full(self.found.shape[:2], NO_SCORE, dtype=torch.float32)
        self._running_scores = self.found_scores.clone()
        self._running_scores[:, 0] = 0.0  # at the start all beams are equal
        self._is_found = torch.zeros_like(self.found_scores, dtype=torch.bool)
        self._can_improve = self._is_found.new_ones(len(self.found), 1)

    def candidates(self, log_probs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the most likely continuations int64 [A, C, T + 1], their log-probabilities and parents, [A, C] each.

        Args:
            log_probs: float32 [A x K, V] of the next token.
        """
        sums = log_probs.view(*self._running_scores.shape, -1) + self._running_scores[:, :, None]
        scores, numbers = sums.flatten(1).topk(len(self._is_first))
        parents, chosen = numbers // sums.shape[-1], numbers % sums.shape[-1]
        return torch.cat([_of_beams(self.running, parents), chosen[:, :, None]], dim=-1), scores, parents

    def enter(self, candidates: Tensor, scores: Tensor, is_end: Tensor) -> None:
        """Add those of the first K candidates that end to the translations found; is_end is bool [A, C]."""
        is_open = self._can_improve
        if self._early is True:
            is_open = is_open & ~self._is_found.all(dim=1, keepdim=True)
        enters = is_end & self._is_first & is_open
        scores = (scores / self._length(candidates) ** self._penalty).where(enters, NO_SCORE)
        self.found_scores, order = torch.cat([self.found_scores, scores], dim=1).topk(self.found_scores.shape[1])
        longer = pad(self.found, (0, 1), value=self._pad_id)
        self.found = _of_beams(torch.cat([longer, candidates], dim=1), order)
        self._is_found = torch.cat([self._is_found, enters], dim=1).gather(1, order)

    def go_on(self, candidates: Tensor, scores: Tensor, parents: Tensor, is_end: Tensor) -> Tensor:
        """Continue with the most likely that do not end; return their parent beams, int64 [A, K]."""
        self._running_scores, order = (scores + is_end * NO_SCORE).topk(self.found_scores.shape[1])
        self.running = _of_beams(candidates, order)
        return parents.gather(1, order)

    def is_done(self, is_end: Tensor) -> Tensor:
        """Return which rows can find nothing better, bool [A]."""
        length = self._length(self.running)
        if self._early == "never" and self._penalty > 0:
            length = self._max_length - self._prompt_length
        worst = self.found_scores.amin(dim=1, keepdim=True).where(self._is_found, NO_SCORE)
        hope = self._running_scores[:, :1] / length**self._penalty
        self._can_improve = self._can_improve & (hope > worst).any(dim=1, keepdim=True)
        is_done = ~self._can_improve[:, 0] | is_end.all(dim=1)
        return is_done | self._is_found.all(dim=1) if self._early is True else is_done

    def keep(self, stay: Tensor) -> None:
        """Continue with these rows, int64 [A]."""
        self.running, self._running_scores = self.running[stay], self._running_scores[stay]
        self.found, self.found_scores, self._is_found = self.found[stay], self.found_scores[stay], self._is_found[stay]
        self._can_improve = self._can_improve[stay]

    def _length(self, tokens: Tensor) -> int:
        return tokens.shape[-1] - self._prompt_length


def _of_beams(tokens: Tensor, numbers: Tensor) -> Tensor:
    """Select from tokens, int64 [A, K, T], the beams of these numbers, int64 [A, C]; return int64 [A, C, T]."""
    return tokens.gather(1, numbers[:, :, None].expand(-1, -1, tokens.shape[-1]))


class _Answers:
    """The translations of the rows that were removed, by their original position."""

    def __init__(self, num_rows: int) -> None:
        self._places = torch.arange(num_rows)  # [A], of the remaining rows
        self._taken: list[tuple[Tensor, Tensor, Tensor]] = []

    def take(self, is_done: Tensor, tokens: Tensor, scores: Tensor) -> None:
        """Store the translations, int64 [A, n, T], and the scores [A, n] of the rows that are done, bool [A]."""
        is_done_here = is_done.cpu()
        self._taken.append((self._places[is_done_here], tokens[is_done], scores[is_done]))
        self._places = self._places[~is_done_here]

    def all(self, pad_id: int) -> Found:
        """Return them in the order of the batch."""
        longest = max(tokens.shape[-1] for _, tokens, _ in self._taken)
        order = torch.cat([places for places, _, _ in self._taken]).argsort()
        every = [pad(tokens, (0, longest - tokens.shape[-1]), value=pad_id) for _, tokens, _ in self._taken]
        scores = torch.cat([scores for _, _, scores in self._taken])
        order = order.to(scores.device)
        return Found(torch.cat(every)[order].flatten(0, 1), scores[order].flatten())
