"""The greedy and the beam search of generate(), without the rows that are finished.

generate() computes a whole batch until its last row is finished, and with the beams it reorders the keys and values of
the source too, though all beams of a row have the same. Here rows whose translations can no longer change leave the
batch, and only the decoder's own cache is reordered. What is found is what generate() finds.

Shape letters: B sentences, A of them still in the batch, K beams, C candidates of a step, S source tokens, T pieces so
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

# The score of a translation that is not there, as generate() has it.
NO_SCORE = -1.0e9
# Rows leave once they are this share of the batch: those that stay are copied then.
LEAVING_SHARE = 1 / 8
# What judges each row by itself and remembers none. With anything else in a search, rows stay to the end.
ROW_BY_ROW = frozenset({
    "EosTokenCriteria", "ExponentialDecayLengthPenalty", "ForcedBOSTokenLogitsProcessor",
    "ForcedEOSTokenLogitsProcessor", "InfNanRemoveLogitsProcessor", "LogitNormalization", "MaxLengthCriteria",
    "MinLengthLogitsProcessor", "MinNewTokensLengthLogitsProcessor", "NoBadWordsLogitsProcessor",
    "NoRepeatNGramLogitsProcessor", "RepetitionPenaltyLogitsProcessor", "SequenceBiasLogitsProcessor",
    "SuppressTokensAtBeginLogitsProcessor", "SuppressTokensLogitsProcessor",
})  # fmt: skip


class Found(NamedTuple):
    """Translations, those of a row side by side, best first.

    Attributes:
        sequences: int64 [B x n, T], padded behind the end.
        scores: float32 [B x n], the beam's own; of a greedy search the mean log-probability of the pieces where the
            generation config wants scores. None where there are none.
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
    """Search as the generation config says; generate() calls it when it is given as custom_generate.

    A criterion that holds something of each row may leave out rows too: it has a method keep_rows(index int64 [A]).

    Args:
        model: An encoder-decoder model that is not sharded.
        input_ids: int64 [B x K, T], what each translation begins with.
        logits_processor: What changes scores.
        stopping_criteria: What ends a translation.
        generation_config: Beams, length penalty, early stopping, translations of a row.
        inputs: What the encoder found, its mask and an empty cache, K times a row.
    """
    holders = [one for one in stopping_criteria if hasattr(one, "keep_rows")]
    judges = [one for one in [*logits_processor, *stopping_criteria] if one not in holders]
    rows_may_leave = input_ids.device.type != "xla" and all(type(one).__name__ in ROW_BY_ROW for one in judges)
    num_beams = generation_config.num_beams

    def leave(is_done: Tensor) -> Tensor | None:
        """The rows that stay, int64 [A], once it pays to let the others go."""
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
    """A model behind its encoder, with what it keeps of each row's beams."""

    def __init__(self, model: PreTrainedModel, inputs: dict[str, Any]) -> None:
        self._model = cast(Any, model)
        # The cache's name in the forward is not the same in every version of transformers.
        self._cache_name, self._cache = next(
            (name, cast(Any, value)) for name, value in inputs.items() if isinstance(value, EncoderDecoderCache)
        )
        self._memory, self._mask = inputs["encoder_outputs"][0], inputs["attention_mask"]

    def next_logits(self, pieces: Tensor) -> Tensor:
        """Return float32 [A x K, V] for the piece behind these, int64 [A x K, T]."""
        return self._model(
            encoder_outputs=BaseModelOutput(last_hidden_state=self._memory),
            attention_mask=self._mask,
            decoder_input_ids=pieces[:, self._cache.get_seq_length() :],
            use_cache=True,
            **{self._cache_name: self._cache},
        ).logits[:, -1].float()  # fmt: skip

    def follow(self, beams: Tensor) -> None:
        """Go on with these beams of the batch, int64 [A x K]: of all its rows."""
        self._cache.self_attention_cache.reorder_cache(beams)

    def keep(self, beams: Tensor) -> None:
        """Keep what belongs to the source of these beams, int64 [A x K]: of the rows that stay."""
        self._cache.cross_attention_cache.batch_select_indices(beams)
        self._memory, self._mask = self._memory[beams], self._mask[beams]


def _search_greedily(
    decoder: _Decoder,
    pieces: Tensor,
    process: Callable[[Any, Any], Tensor],
    ends: Callable[[Any, Any], Tensor],
    config: GenerationConfig,
    leave: Callable[[Tensor], Tensor | None],
) -> Found:
    """Take the likeliest piece each time."""
    pad_id = cast(int, config.pad_token_id)
    answers = _Answers(len(pieces))
    total, count = pieces.new_zeros(2, len(pieces), dtype=torch.float32)
    is_done = pieces.new_zeros(len(pieces), dtype=torch.bool)
    while True:
        scores = process(pieces, decoder.next_logits(pieces))
        chosen = scores.argmax(dim=-1).masked_fill(is_done, pad_id)
        if config.output_scores:
            log_probs = scores.log_softmax(dim=-1).gather(1, chosen[:, None])[:, 0]
            is_counted = log_probs.isfinite() & (chosen != pad_id)
            total, count = total + log_probs.where(is_counted, 0.0), count + is_counted
        pieces = torch.cat([pieces, chosen[:, None]], dim=1)
        is_done = is_done | ends(pieces, None)
        stay = leave(is_done)
        if stay is None:
            continue
        answers.take(is_done, pieces[:, None], (total / count.clamp(min=1))[:, None])
        if not len(stay):
            return answers.all(pad_id)
        decoder.follow(stay)
        decoder.keep(stay)
        pieces, total, count, is_done = pieces[stay], total[stay], count[stay], is_done[stay]


def _search_beams(
    decoder: _Decoder,
    prompt: Tensor,
    process: Callable[[Any, Any], Tensor],
    ends: Callable[[Any, Any], Tensor],
    config: GenerationConfig,
    leave: Callable[[Tensor], Tensor | None],
) -> Found:
    """Keep the K likeliest beginnings of a row, and its K best translations."""
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
    """Hold the beams of A rows and the translations found so far.

    Attributes:
        running: int64 [A, K, T], the beginnings that go on, likeliest first.
        found: int64 [A, K, T], the translations found, best first, padded.
        found_scores: float32 [A, K], NO_SCORE where none is found yet.

    Source: the beam search of transformers 5.24, whose order of steps, scores and ends these are.
    """

    def __init__(self, prompt: Tensor, config: GenerationConfig) -> None:
        num_beams = cast(int, config.num_beams)
        self._prompt_length, self._max_length = prompt.shape[1], cast(int, config.max_length)
        self._penalty, self._early = cast(float, config.length_penalty), config.early_stopping
        self._pad_id = cast(int, config.pad_token_id)
        num_ends = len(config.eos_token_id) if isinstance(config.eos_token_id, list) else 1
        # Enough that K go on though each of the first K may end in every way there is.
        num_candidates = max(2, 1 + num_ends) * num_beams
        self._is_first = torch.arange(num_candidates, device=prompt.device) < num_beams  # [C]
        self.running = self.found = prompt.view(-1, num_beams, self._prompt_length)
        self.found_scores = prompt.new_full(self.found.shape[:2], NO_SCORE, dtype=torch.float32)
        self._running_scores = self.found_scores.clone()
        self._running_scores[:, 0] = 0.0  # at the start all beams are one
        self._is_found = torch.zeros_like(self.found_scores, dtype=torch.bool)
        self._can_improve = self._is_found.new_ones(len(self.found), 1)

    def candidates(self, log_probs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the likeliest continuations int64 [A, C, T + 1], their log-probabilities and parents, [A, C] each.

        Args:
            log_probs: float32 [A x K, V] of the next piece.
        """
        sums = log_probs.view(*self._running_scores.shape, -1) + self._running_scores[:, :, None]
        scores, numbers = sums.flatten(1).topk(len(self._is_first))
        parents, chosen = numbers // sums.shape[-1], numbers % sums.shape[-1]
        return torch.cat([_of_beams(self.running, parents), chosen[:, :, None]], dim=-1), scores, parents

    def enter(self, candidates: Tensor, scores: Tensor, is_end: Tensor) -> None:
        """Take those of the first K candidates that end among the translations found; is_end is bool [A, C]."""
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
        """Go on with the likeliest that do not end; return the beams that they come from, int64 [A, K]."""
        self._running_scores, order = (scores + is_end * NO_SCORE).topk(self.found_scores.shape[1])
        self.running = _of_beams(candidates, order)
        return parents.gather(1, order)

    def is_done(self, is_end: Tensor) -> Tensor:
        """Which rows can find nothing better, bool [A]."""
        length = self._length(self.running)
        if self._early == "never" and self._penalty > 0:
            length = self._max_length - self._prompt_length
        worst = self.found_scores.amin(dim=1, keepdim=True).where(self._is_found, NO_SCORE)
        hope = self._running_scores[:, :1] / length**self._penalty
        self._can_improve = self._can_improve & (hope > worst).any(dim=1, keepdim=True)
        is_done = ~self._can_improve[:, 0] | is_end.all(dim=1)
        return is_done | self._is_found.all(dim=1) if self._early is True else is_done

    def keep(self, stay: Tensor) -> None:
        """Go on with these rows, int64 [A]."""
        self.running, self._running_scores = self.running[stay], self._running_scores[stay]
        self.found, self.found_scores, self._is_found = self.found[stay], self.found_scores[stay], self._is_found[stay]
        self._can_improve = self._can_improve[stay]

    def _length(self, pieces: Tensor) -> int:
        return pieces.shape[-1] - self._prompt_length


def _of_beams(pieces: Tensor, numbers: Tensor) -> Tensor:
    """Choose of pieces, int64 [A, K, T], those of these numbers, int64 [A, C]: int64 [A, C, T]."""
    return pieces.gather(1, numbers[:, :, None].expand(-1, -1, pieces.shape[-1]))


class _Answers:
    """The translations of the rows that have left, by the place that each row had."""

    def __init__(self, num_rows: int) -> None:
        self._places = torch.arange(num_rows)  # [A], of those that have not
        self._taken: list[tuple[Tensor, Tensor, Tensor]] = []

    def take(self, is_done: Tensor, pieces: Tensor, scores: Tensor) -> None:
        """Take the translations, int64 [A, n, T], and the scores [A, n] of the rows that are done, bool [A]."""
        is_done_here = is_done.cpu()
        self._taken.append((self._places[is_done_here], pieces[is_done], scores[is_done]))
        self._places = self._places[~is_done_here]

    def all(self, pad_id: int) -> Found:
        """Return them in the order of the batch."""
        longest = max(pieces.shape[-1] for _, pieces, _ in self._taken)
        order = torch.cat([places for places, _, _ in self._taken]).argsort()
        every = [pad(pieces, (0, longest - pieces.shape[-1]), value=pad_id) for _, pieces, _ in self._taken]
        scores = torch.cat([scores for _, _, scores in self._taken])
        order = order.to(scores.device)
        return Found(torch.cat(every)[order].flatten(0, 1), scores[order].flatten())
