"""The only caller of model.generate: a sorted plan in, hypotheses by row index out, over all ranks.

Must not know references, scores or files. Shape letters: B sentences, S source tokens, T generated tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from mtloop.loader import Batch, collate
from mtloop.runtime import Runtime

# Fills the gathered table where a rank has fewer rows or shorter ones; no row index and no piece is negative.
NOTHING = -1


def deal_batches(
    batches: list[NDArray[np.int64]], encoded: Dataset, runtime: Runtime, *, pad_id: int
) -> Iterable[tuple[NDArray[np.int64], Batch]]:
    """Yield this rank's share of globally formed batches, every num_ranks-th, with the row indices of each.

    The batches stay as they were formed: at equal threads every rank count computes the same tensors. Collective, to
    the end: between batches the ranks agree whether they were told to stop.

    Raises:
        Interrupted: on every rank.
    """
    for number in range(0, len(batches), runtime.num_ranks):
        runtime.stop_if_told()
        if number + runtime.rank >= len(batches):
            continue
        row_ids = batches[number + runtime.rank]
        batch = collate(encoded, row_ids, pad_id=pad_id)
        yield row_ids, {name: tensor.to(runtime.device) for name, tensor in batch.items()}


@torch.no_grad()
def generate_hypotheses(
    model: PreTrainedModel, encoded: Dataset, batches: list[NDArray[np.int64]], runtime: Runtime, *, pad_id: int
) -> list[NDArray[np.int64]]:
    """Translate every row exactly once.

    Collective: every rank calls it with the same batches.

    Args:
        model: Unwrapped, in eval mode; its generation config says how to search.
        encoded: Columns input_ids and labels, N rows.
        batches: Row indices of each batch, from plan_evaluation; together each of the N rows once.
        runtime: The ranks to share the work with.
        pad_id: The tokenizer's padding id.

    Returns:
        N arrays of piece ids by row index, special tokens included, the same on every rank.

    Raises:
        RuntimeError: when a row came back not exactly once.
    """
    tables = [torch.full((0, 1), NOTHING, dtype=torch.int64, device=runtime.device)]
    # One autocast around a whole batch: the bf16 copies of the weights are then made once, not once a piece.
    for row_ids, batch in deal_batches(batches, encoded, runtime, pad_id=pad_id):
        with runtime.accelerator.autocast():
            pieces = cast(Any, model).generate(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        tables.append(torch.cat([torch.from_numpy(row_ids).to(pieces.device)[:, None], pieces], dim=1))
    return _by_row_index(runtime.gather_rows(_stack(tables), pad_id=NOTHING).cpu(), len(encoded))


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
