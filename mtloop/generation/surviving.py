"""Search for translations that keep the placeholders of their sources. Shape letter: N texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from mtloop.batching.division import plan_evaluation, plan_static_evaluation
from mtloop.generation.engine import Engine, TransformersEngine
from mtloop.generation.generate import Hypothesis, SearchOptions
from mtloop.placeholders import lost
from mtloop.runtime.ranks import Runtime
from mtloop.runtime.sharding import is_sharded
from mtloop.tokenization.encoding import decode
from mtloop.tokenization.protection import PROTECTED, is_protected, mask_ids


def num_candidates(engine: Engine, runtime: Runtime) -> int:
    """Return how many translations of a text are searched for one that keeps every placeholder."""
    finds_one = runtime.is_xla or (isinstance(engine, TransformersEngine) and is_sharded(engine.network))
    return engine.num_beams if is_protected(engine.tokenizer) and not finds_one else 1


def search_surviving(
    engine: Engine,
    encoded: Dataset,
    lengths: NDArray[np.int32],
    sources: Sequence[str],
    runtime: Runtime,
    options: SearchOptions,
    *,
    max_tokens: int,
) -> list[list[Hypothesis]]:
    """Translate texts, each once; with a protected model again those whose translations all lose a placeholder.

    Collective: every rank passes the same.

    Args:
        engine: Translates.
        encoded: As in Engine.search, N rows.
        lengths: int32 [N], tokens of each.
        sources: N texts, as they were before they were masked.
        runtime: The ranks that share the work.
        options: What to return.
        max_tokens: Padded source tokens of a batch.

    Returns:
        N lists of hypotheses, best first.

    Raises:
        UserError: An option that the engine does not support.
    """
    batches = (
        plan_static_evaluation(lengths, None, max_tokens=max_tokens)
        if runtime.is_xla
        else plan_evaluation(lengths, max_tokens=max_tokens)
    )
    found = engine.search(encoded, batches, runtime, options)
    if runtime.is_xla or not is_protected(engine.tokenizer) or not isinstance(engine, TransformersEngine):
        return found
    best = decode(engine.tokenizer, [first.tokens.tolist() for first, *_ in found], list(sources))
    broken = []
    for row, (source, text, (_, *others)) in enumerate(zip(sources, best, found, strict=True)):
        if lost(source, text, PROTECTED):
            texts = decode(engine.tokenizer, [one.tokens.tolist() for one in others], [source] * len(others))
            if all(lost(source, other, PROTECTED) for other in texts):
                broken.append(row)
    if broken:
        batches = plan_evaluation(lengths[broken], max_tokens=max_tokens)
        options = replace(options, mask_ids=mask_ids(engine.tokenizer))
        again = engine.search(encoded.select(broken), batches, runtime, options)
        for row, candidates in zip(broken, again, strict=True):
            found[row] = [replace(one, is_forced=True) for one in candidates]
    return found
