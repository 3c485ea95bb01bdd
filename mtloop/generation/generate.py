"""The only caller of model.generate: a sorted plan in, hypotheses by row index out, over all ranks.

Must not know references, scores or files. Shape letters: B sentences, S source tokens, T generated tokens.
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
from transformers import PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from mtloop.batching.division import MicroBatch
from mtloop.batching.loader import Batch, collate
from mtloop.generation.greedy import greedy_search, rules_of
from mtloop.generation.search import Found, search
from mtloop.runtime.failures import is_out_of_memory
from mtloop.runtime.ranks import Runtime
from mtloop.runtime.sharding import is_sharded

# Fills the gathered table where a rank has fewer rows or shorter ones; no row index and no piece is negative.
NOTHING = -1
# What max_length_ratio always leaves: one word may become several, and a label of one piece a sentence.
SPARE_PIECES = 10
# Of a batch: row indices [B], pieces [B x n_best, T], and scores [B x n_best] where they are wanted.
Answer = tuple[NDArray[np.int64], Tensor, Tensor | None]


T = TypeVar("T")
# Row indices, or those of a batch of given shape.
Planned = NDArray[np.int64] | MicroBatch


def share_batches(batches: Sequence[T], runtime: Runtime, *, filler: T | None = None) -> Iterator[T]:
    """Yield this rank's share of globally formed batches, every num_ranks-th.

    Collective, to the end: between batches the ranks agree whether they were told to stop.

    Args:
        batches: The same on every rank.
        runtime: The ranks.
        filler: What a rank with one batch less ends with, where every rank must get equally many.

    Raises:
        Interrupted: on every rank.
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
    """Yield this rank's share of globally formed batches with the row indices of each; share_batches says more.

    A batch of given shape may have more rows than indices: copies, whose labels count nothing. With in_step, for a
    model whose forward is collective, a rank without a batch gets one of another's rows, and no row indices.

    The batches stay as they were formed: at equal threads every rank count computes the same tensors.
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


@dataclass(frozen=True)
class Hypothesis:
    """One translation of one row.

    Attributes:
        pieces: int64 [T], special tokens included.
        score: Log-probability in nats per generated token, with beam search as it ranks them.
    """

    pieces: NDArray[np.int64]
    score: float


def generate_rows(
    model: PreTrainedModel,
    encoded: Dataset,
    batches: Sequence[Planned],
    runtime: Runtime,
    *,
    pad_id: int,
    n_best: int = 1,
    with_scores: bool = False,
    options: dict[str, Any] | None = None,
    max_length_ratio: float | None = None,
) -> list[list[Hypothesis]]:
    """Translate every row exactly once.

    Collective: every rank calls it with the same batches.

    Args:
        model: Unwrapped, in eval mode; its generation config says how to search.
        encoded: Columns input_ids and labels, N rows.
        batches: Row indices of each batch, from plan_evaluation; together each of the N rows once.
        runtime: The ranks to share the work with.
        pad_id: The tokenizer's padding id.
        n_best: Translations of each row, at most the model's beams; more than one only with scores.
        with_scores: Whether the scores are wanted; without, they are 0.
        options: What differs from the model's generation config.
        max_length_ratio: Ends a translation at this many times its source's tokens and SPARE_PIECES more, the decoder's
            start included; None for the generation config's longest alone.

    Returns:
        N lists of n_best hypotheses, best first, by row index; the same on every rank.

    Raises:
        RuntimeError: when a row came back not exactly once.
    """
    assert with_scores or n_best == 1
    answers = _generate(
        model,
        encoded,
        batches,
        runtime,
        pad_id=pad_id,
        n_best=n_best,
        with_scores=with_scores,
        options=options,
        max_length_ratio=max_length_ratio,
    )
    if with_scores:
        return gather_n_best(answers, len(encoded), runtime, n_best=n_best)
    return [[Hypothesis(row, 0.0)] for row in _by_row_index(_gather(answers, runtime), len(encoded))]


def gather_n_best(answers: Iterable[Answer], num_rows: int, runtime: Runtime, *, n_best: int) -> list[list[Hypothesis]]:
    """Bring together what each rank found for its share of the rows.

    Collective.

    Args:
        answers: This rank's batches: row indices [B], pieces [B x n_best, T] with the translations of a row side by
            side, best first, and scores [B x n_best].
        num_rows: N, of all ranks.
        runtime: The ranks.
        n_best: Translations of each row.

    Returns:
        N lists of n_best hypotheses, by row index; the same on every rank.

    Raises:
        RuntimeError: when a row came back not exactly once.
    """
    rows = _by_row_index(_gather(answers, runtime, n_best=n_best), num_rows * n_best)
    found = [Hypothesis(row[1:], float(row[:1].view(np.float64)[0])) for row in rows]
    return [found[start : start + n_best] for start in range(0, len(found), n_best)]


@torch.no_grad()
def _generate(
    model: PreTrainedModel,
    encoded: Dataset,
    batches: Sequence[Planned],
    runtime: Runtime,
    *,
    pad_id: int,
    n_best: int = 1,
    with_scores: bool = False,
    options: dict[str, Any] | None = None,
    max_length_ratio: float | None = None,
) -> Iterator[Answer]:
    """Translate this rank's share, batch by batch."""
    options = dict(options or {})
    rules = rules_of(model.generation_config, options) if runtime.is_xla and not with_scores else None
    if with_scores:
        options |= {"num_return_sequences": n_best, "return_dict_in_generate": True, "output_scores": True}
    in_step = is_sharded(model)
    if in_step:
        assert not with_scores, "a sharded model is evaluated, not asked for its n best"
        options["synced_gpus"] = True  # a rank whose sentences are done goes on until all ranks' are
    else:
        options |= {"custom_generate": search, "use_cache": True, "cache_implementation": "dynamic"}

    def translate(input_ids: Tensor, attention_mask: Tensor) -> Found:
        if max_length_ratio is not None:
            options["stopping_criteria"] = StoppingCriteriaList([LengthRatio(attention_mask, max_length_ratio)])
        # One autocast around a whole batch: the bf16 copies of the weights are then made once, not once a piece.
        with runtime.autocast():
            if rules is not None:
                pieces = greedy_search(model, input_ids, attention_mask, rules, end_program=runtime.end_program).cpu()
            else:
                pieces = cast(Any, model).generate(input_ids=input_ids, attention_mask=attention_mask, **options)
        return pieces if isinstance(pieces, Found) else Found(pieces, None)

    may_halve = rules is None and not in_step
    for dealt_ids, batch in deal_batches(batches, encoded, runtime, pad_id=pad_id, in_step=in_step):
        inputs = (batch["input_ids"], batch["attention_mask"])
        for row_ids, found in _translate_in_room(translate, dealt_ids, inputs, may_halve=may_halve):
            if len(row_ids):
                yield row_ids, found.sequences[: len(row_ids) * n_best], found.scores if with_scores else None


def _translate_in_room(
    translate: Callable[[Tensor, Tensor], Found],
    row_ids: NDArray[np.int64],
    inputs: tuple[Tensor, Tensor],
    *,
    may_halve: bool,
) -> Iterator[tuple[NDArray[np.int64], Found]]:
    """Translate a batch at once, or by halves where the device has no room for it: the translations are the same."""
    waiting = [(row_ids, inputs)]
    while waiting:
        ids, (input_ids, attention_mask) = waiting.pop()
        try:
            answer = translate(input_ids, attention_mask)
        except RuntimeError as error:
            if not (may_halve and len(ids) > 1 and is_out_of_memory(error)):
                raise
            answer = None
        if answer is None:  # here the error is gone, and with it what it held
            if input_ids.device.type == "cuda":
                torch.cuda.empty_cache()
            half = len(ids) // 2
            waiting.append((ids[half:], (input_ids[half:], attention_mask[half:])))
            waiting.append((ids[:half], (input_ids[:half], attention_mask[:half])))
        else:
            yield ids, answer


class LengthRatio(StoppingCriteria):
    """Ends each translation by the length of its own source."""

    def __init__(self, attention_mask: Tensor, ratio: float) -> None:
        """Set the bounds.

        Args:
            attention_mask: int64 [B, S], 1 at real tokens.
            ratio: Pieces of a translation to a source token, at most; SPARE_PIECES come on top.
        """
        self._bounds = (attention_mask.sum(dim=1) * ratio).ceil() + SPARE_PIECES

    def keep_rows(self, index: Tensor) -> None:
        """Go on with these sources, int64 [A], of the B."""
        self._bounds = self._bounds[index]

    def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Tensor:
        """Say which of the hypotheses [B x k, T], with those of a row side by side, have come to their bound."""
        bounds = self._bounds.repeat_interleave(len(input_ids) // len(self._bounds))
        return input_ids.shape[1] >= bounds


def _gather(answers: Iterable[Answer], runtime: Runtime, *, n_best: int = 1) -> Tensor:
    """Gather a table from all ranks: int64 [rows x n_best, 1 or 2 + T], row number, score's bits, pieces."""
    device = torch.device("cpu") if runtime.is_xla else runtime.device  # tables of any shape are for the host there
    tables = [torch.full((0, 1), NOTHING, dtype=torch.int64, device=device)]
    for row_ids, pieces, scores in answers:
        numbers = (torch.from_numpy(row_ids)[:, None] * n_best + torch.arange(n_best)).flatten().to(device)
        columns = [numbers[:, None], pieces.to(device)]
        if scores is not None:
            columns.insert(1, scores.cpu().double().view(torch.int64).to(device)[:, None])
        tables.append(torch.cat(columns, dim=1))
    return runtime.gather_rows(_stack(tables), pad_id=NOTHING).cpu()


def _stack(tables: list[Tensor]) -> Tensor:
    """Put tables of unequal width under one another, filled with NOTHING."""
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
