"""Translate rows with model.generate over all ranks: planned batches in, hypotheses by row index out.

The only caller of model.generate. Must not know references, scores or files. Shape letters: B sentences, S source
tokens, T generated tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from mtloop.batching.division import MicroBatch
from mtloop.batching.loader import Batch, collate
from mtloop.generation.greedy import greedy_search, rules_of
from mtloop.generation.search import Found, search
from mtloop.runtime.failures import is_out_of_memory
from mtloop.runtime.ranks import Runtime
from mtloop.runtime.sharding import is_sharded

# Pads the gathered table where a rank has fewer or shorter rows; no row index and no token id is negative.
NOTHING = -1
# Tokens that max_length_ratio always allows: one word may become several, and a one-token label a sentence.
SPARE_TOKENS = 10
# Nats that a mask costs where the model would have ended: beams that place it themselves come before.
COST_OF_MISSING = 1.0
# Of a batch: row indices [B], token ids [B x n_best, T], and scores [B x n_best] if asked for.
Answer = tuple[NDArray[np.int64], Tensor, Tensor | None]

T = TypeVar("T")
# Row indices, or those of a batch of a given shape.
Planned = NDArray[np.int64] | MicroBatch


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """Options of a search that are not in the model's generation config.

    Attributes:
        n_best: Translations of each row, at most the model's beams; more than one needs scores.
        with_scores: Whether to return scores; otherwise they may be 0.
        mask_ids: Tokens that a translation has as often as its source, see KeepMasks; not on XLA.
        max_length_ratio: Ends a translation at this many times the tokens of its source plus SPARE_TOKENS, the decoder
            start included; None applies only the maximum length of the generation config.
    """

    n_best: int = 1
    with_scores: bool = False
    mask_ids: Sequence[int] = ()
    max_length_ratio: float | None = None


@dataclass(frozen=True)
class Hypothesis:
    """One translation of one row.

    Attributes:
        tokens: int64 [T], special tokens included.
        score: Log-probability in nats per generated token, with beam search as it ranks them.
        is_forced: Whether the search had to keep the masks: their places are doubtful.
    """

    tokens: NDArray[np.int64]
    score: float
    is_forced: bool = False


def share_batches(batches: Sequence[T], runtime: Runtime, *, filler: T | None = None) -> Iterator[T]:
    """Yield this rank's share of the global batches, every num_ranks-th.

    Collective, to the end: between batches the ranks agree whether a signal asked them to stop.

    Args:
        batches: The same on every rank.
        runtime: The ranks.
        filler: Yielded last on a rank with one batch fewer, if all ranks must get the same number.

    Raises:
        Interrupted: On every rank.
    """
    for number in range(0, len(batches), runtime.num_ranks):
        runtime.stop_if_told()
        if number + runtime.rank < len(batches):
            yield batches[number + runtime.rank]
        elif filler is not None:
            yield filler


def deal_batches(
    batches: Sequence[Planned], encoded: Dataset, runtime: Runtime, *, pad_id: int, in_step: bool = False
) -> Iterable[tuple[NDArray[np.int64], Batch]]:
    """Yield this rank's share of the global batches with the row indices of each; see share_batches.

    A batch of a given shape may have more rows than indices: copies, whose labels do not count. With in_step, for a
    model whose forward is collective, a rank without a batch gets a batch of one row, and no row indices.

    The batches are the same for any number of ranks: with equal threads all compute the same tensors.
    """
    nothing: Planned | None = np.empty(0, dtype=np.int64) if in_step else None
    for planned in share_batches(batches, runtime, filler=nothing):
        if isinstance(planned, MicroBatch):
            row_ids = planned.sentence_ids[: planned.num_real]
            ids, shape, num_real = planned.sentence_ids, planned.shape, planned.num_real
            batch = collate(encoded, ids, pad_id=pad_id, shape=shape, num_real=num_real)
        else:
            row_ids = planned
            batch = collate(encoded, row_ids if len(row_ids) else [0], pad_id=pad_id)
        yield row_ids, {name: tensor.to(runtime.device) for name, tensor in batch.items()}


def generate_rows(
    model: PreTrainedModel,
    encoded: Dataset,
    batches: Sequence[Planned],
    runtime: Runtime,
    options: SearchOptions,
    *,
    pad_id: int,
    overrides: dict[str, Any] | None = None,
) -> list[list[Hypothesis]]:
    """Translate every row exactly once. Collective: every rank passes the same batches.

    Args:
        model: Unwrapped, in eval mode, with a configured generation config.
        encoded: Columns input_ids and labels, N rows.
        batches: Row indices of each batch, from plan_evaluation; together each of the N rows once.
        runtime: The ranks that share the work.
        options: What to return.
        pad_id: The tokenizer's padding id.
        overrides: Settings that replace those of the generation config.

    Returns:
        N lists of n_best hypotheses, best first, by row index; the same on every rank.

    Raises:
        RuntimeError: A row was not translated exactly once.
    """
    assert options.with_scores or options.n_best == 1
    dealt = deal_batches(batches, encoded, runtime, pad_id=pad_id, in_step=is_sharded(model))
    answers = generate_batches(model, dealt, runtime, options, overrides or {})
    if options.with_scores:
        return gather_n_best(answers, len(encoded), runtime, n_best=options.n_best)
    return [[Hypothesis(row, 0.0)] for row in _by_row_index(_gather(answers, runtime), len(encoded))]


def gather_n_best(answers: Iterable[Answer], num_rows: int, runtime: Runtime, *, n_best: int) -> list[list[Hypothesis]]:
    """Gather the hypotheses of all ranks. Collective.

    Args:
        answers: This rank's batches: row indices [B], token ids [B x n_best, T] with the translations of a row in
            order, best first, and scores [B x n_best].
        num_rows: N, of all ranks.
        runtime: The ranks.
        n_best: Translations of each row.

    Returns:
        N lists of n_best hypotheses, by row index; the same on every rank.

    Raises:
        RuntimeError: A row was not translated exactly once.
    """
    rows = _by_row_index(_gather(answers, runtime, n_best=n_best), num_rows * n_best)
    found = [Hypothesis(row[1:], float(row[:1].view(np.float64)[0])) for row in rows]
    return [found[start : start + n_best] for start in range(0, len(found), n_best)]


@torch.no_grad()
def generate_batches(
    model: PreTrainedModel,
    dealt: Iterable[tuple[NDArray[np.int64], Batch]],
    runtime: Runtime,
    options: SearchOptions,
    overrides: dict[str, Any],
) -> Iterator[Answer]:
    """Translate this rank's share, batch by batch."""
    settings, n_best = dict(overrides), options.n_best
    rules = rules_of(model.generation_config, settings) if runtime.is_xla and not options.with_scores else None
    if options.with_scores:
        settings |= {"num_return_sequences": n_best, "return_dict_in_generate": True, "output_scores": True}
    in_step = is_sharded(model)
    if in_step:
        assert not options.with_scores, "a sharded model is evaluated, never asked for scores"
        settings["synced_gpus"] = True  # a rank that is done continues until all ranks are
    else:
        settings |= {"custom_generate": search, "use_cache": True, "cache_implementation": "dynamic"}

    def translate(input_ids: Tensor, attention_mask: Tensor) -> Found:
        if options.max_length_ratio is not None:
            criterion = LengthRatio(attention_mask, options.max_length_ratio)
            settings["stopping_criteria"] = StoppingCriteriaList([criterion])
        if options.mask_ids:
            settings["logits_processor"] = LogitsProcessorList(
                [KeepMasks(input_ids, options.mask_ids, model.generation_config)]
            )
        # One autocast for a whole batch: the weights are then cast to bf16 once, not once a token.
        with runtime.autocast():
            if rules is not None:
                tokens = greedy_search(model, input_ids, attention_mask, rules, end_program=runtime.end_program).cpu()
            else:
                tokens = cast(Any, model).generate(input_ids=input_ids, attention_mask=attention_mask, **settings)
        return tokens if isinstance(tokens, Found) else Found(tokens, None)

    may_halve = rules is None and not in_step
    for dealt_ids, batch in dealt:
        inputs = (batch["input_ids"], batch["attention_mask"])
        for row_ids, found in _translate_in_parts(translate, dealt_ids, inputs, may_halve=may_halve):
            if len(row_ids):
                scores = found.scores if options.with_scores else None
                yield row_ids, found.sequences[: len(row_ids) * n_best], scores


def _translate_in_parts(
    translate: Callable[[Tensor, Tensor], Found],
    row_ids: NDArray[np.int64],
    inputs: tuple[Tensor, Tensor],
    *,
    may_halve: bool,
) -> Iterator[tuple[NDArray[np.int64], Found]]:
    """Translate a batch at once, or by halves if it does not fit into memory; the translations are the same."""
    waiting = [(row_ids, inputs)]
    while waiting:
        ids, (input_ids, attention_mask) = waiting.pop()
        try:
            answer = translate(input_ids, attention_mask)
        except RuntimeError as error:
            if not (may_halve and len(ids) > 1 and is_out_of_memory(error)):
                raise
            answer = None
        if answer is None:  # outside of the handler: the error, which holds the tensors, is freed
            if input_ids.device.type == "cuda":
                torch.cuda.empty_cache()
            half = len(ids) // 2
            waiting.append((ids[half:], (input_ids[half:], attention_mask[half:])))
            waiting.append((ids[:half], (input_ids[:half], attention_mask[:half])))
        else:
            yield ids, answer


class LengthRatio(StoppingCriteria):
    """Ends each translation at a multiple of the length of its source."""

    def __init__(self, attention_mask: Tensor, ratio: float) -> None:
        """Set the bounds.

        Args:
            attention_mask: int64 [B, S], 1 at real tokens.
            ratio: Maximum tokens of a translation per source token; SPARE_TOKENS are added.
        """
        self._bounds = (attention_mask.sum(dim=1) * ratio).ceil() + SPARE_TOKENS

    def keep_rows(self, index: Tensor) -> None:
        """Continue with these sources, int64 [A], of the B."""
        self._bounds = self._bounds[index]

    def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Tensor:
        """Return which of the hypotheses [B x k, T], those of a row in order, have reached their bound."""
        bounds = self._bounds.repeat_interleave(len(input_ids) // len(self._bounds))
        return input_ids.shape[1] >= bounds


class KeepMasks(LogitsProcessor):
    """Lets a translation have each mask as often as its source, and end only when it has them all.

    Where the model would end too early, its next missing mask takes the place of the end, for COST_OF_MISSING; at the
    longest translation the last tokens are the missing masks.
    """

    def __init__(self, input_ids: Tensor, mask_ids: Sequence[int], config: GenerationConfig) -> None:
        """Count the masks of the sources.

        Args:
            input_ids: int64 [B, S].
            mask_ids: M tokens.
            config: Has the end of a translation, its longest, and the beams.
        """
        self._mask_ids = torch.tensor(list(mask_ids), device=input_ids.device)
        self._end_ids = torch.tensor(config.eos_token_id, device=input_ids.device).view(-1)
        self._last = cast(int, config.max_length) - 1
        self._cost = COST_OF_MISSING if cast(int, config.num_beams) > 1 else 0.0  # a greedy search has no other beams
        self._wanted = self._count(input_ids)  # [B, M]

    def _count(self, tokens: Tensor) -> Tensor:
        return (tokens[:, :, None] == self._mask_ids).sum(dim=1)

    def keep_rows(self, index: Tensor) -> None:
        """Continue with these sources, int64 [A], of the B."""
        self._wanted = self._wanted[index]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores [B x k, V] of the tokens behind [B x k, T], the hypotheses of a row in order."""
        wanted = self._wanted.repeat_interleave(len(input_ids) // len(self._wanted), dim=0)
        missing = wanted - self._count(input_ids)
        of_masks = scores[:, self._mask_ids].masked_fill(missing <= 0, -torch.inf)
        of_ends = scores[:, self._end_ids]
        if input_ids.shape[1] < self._last:  # the last token is the end, whatever is missing
            is_missing = (missing > 0).any(dim=1, keepdim=True)
            first = (missing > 0).int().argmax(dim=1, keepdim=True)
            instead = torch.maximum(of_masks.gather(1, first), of_ends.amax(dim=1, keepdim=True) - self._cost)
            of_masks = of_masks.where(~is_missing, of_masks.scatter(1, first, instead))
            of_ends = of_ends.masked_fill(is_missing, -torch.inf)
            is_due = missing.clamp(min=0).sum(dim=1, keepdim=True) >= self._last - input_ids.shape[1]
            scores = scores.masked_fill(is_due & is_missing, -torch.inf)  # there is room for nothing else
        return scores.index_copy(1, self._mask_ids, of_masks).index_copy(1, self._end_ids, of_ends)


def _gather(answers: Iterable[Answer], runtime: Runtime, *, n_best: int = 1) -> Tensor:
    """Gather a table from all ranks: int64 [rows x n_best, 1 or 2 + T], row number, score's bits, token ids."""
    device = torch.device("cpu") if runtime.is_xla else runtime.device  # on XLA each shape would be a program
    tables = [torch.full((0, 1), NOTHING, dtype=torch.int64, device=device)]
    for row_ids, tokens, scores in answers:
        numbers = (torch.from_numpy(row_ids)[:, None] * n_best + torch.arange(n_best)).flatten().to(device)
        columns = [numbers[:, None], tokens.to(device)]
        if scores is not None:
            columns.insert(1, scores.cpu().double().view(torch.int64).to(device)[:, None])
        tables.append(torch.cat(columns, dim=1))
    return runtime.gather_rows(_stack(tables), pad_id=NOTHING).cpu()


def _stack(tables: list[Tensor]) -> Tensor:
    """Concatenate the rows of tables of different widths, padded with NOTHING."""
    width = max(table.shape[1] for table in tables)
    return torch.cat([torch.nn.functional.pad(t, (0, width - t.shape[1]), value=NOTHING) for t in tables])


def _by_row_index(table: Tensor, num_rows: int) -> list[NDArray[np.int64]]:
    rows = table.numpy()
    rows = rows[rows[:, 0] != NOTHING]
    counts = np.bincount(rows[:, 0], minlength=num_rows)
    if len(counts) != num_rows or (counts != 1).any():
        raise RuntimeError(f"{int((counts != 1).sum())} of {num_rows} rows were not translated exactly once")
    by_index = rows[np.argsort(rows[:, 0]), 1:]
    return [row[row != NOTHING] for row in by_index]
