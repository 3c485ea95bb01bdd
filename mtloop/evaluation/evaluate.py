"""Validation loss and scores of a model on rows: the same numbers on every rank.

Must not know the trainer, files or trackers. Every row counts once and is scored against its raw reference text.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mtloop.batching.division import MicroBatch, plan_evaluation, plan_static_evaluation
from mtloop.evaluation.metrics import (
    DEFAULT_METRICS,
    LOSS,
    METRICS,
    Counted,
    Metric,
    Score,
    mean_scores,
    scores_of,
    tally,
)
from mtloop.evaluation.selection import check_best_metric, recorded_name
from mtloop.evaluation.statistics import Texts
from mtloop.evaluation.survival import SURVIVAL
from mtloop.generation.engine import Engine
from mtloop.generation.generate import SearchOptions, deal_batches
from mtloop.generation.surviving import num_candidates, search_surviving
from mtloop.model.loss import batch_loss_sum
from mtloop.runtime.collectives import attempt
from mtloop.runtime.launch import free_memory
from mtloop.runtime.ranks import Runtime
from mtloop.runtime.sharding import is_sharded
from mtloop.tokenization.encoding import decode_best

# Source tokens of an evaluation batch: sentences/s hardly grow beyond 1,000 on a CPU (generate, 4 beams),
# and the more rows there are, the more wait for one that repeats itself. Elsewhere a batch is to fill the device.
TOKENS_ON_CPU, MIN_TOKENS, MAX_TOKENS = 1_000, 2_000, 16_000
# Tokens of a short source, end included, and what beam search holds of the scores at once, in fp32.
SHORT_SOURCE, COPIES_OF_SCORES = 4, 4


@dataclass(frozen=True, kw_only=True)
class PairRows:
    """The rows of one pair of languages among several.

    Attributes:
        name: As en-fr.
        rows: Which of the set's rows.
        target_lang: Chooses sacreBLEU's tokenizer.
        tokenizer: Set to the pair: gives the first tokens of a translation.
    """

    name: str
    rows: slice
    target_lang: str | None
    tokenizer: PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """Rows to evaluate on.

    Attributes:
        name: "valid", "test", or "average": the validation rows for an averaged model.
        rows: Raw texts: columns index, source, target; N rows.
        encoded: Columns input_ids and labels, aligned with rows.
        source_lengths: int32 [N].
        target_lengths: int32 [N].
        parts: The rows of each of several pairs, one after the other; () for one pair.
        is_unseen: bool [N], the source is not in the training rows, as in Overlap; None if these are not known.
    """

    name: str
    rows: Dataset
    encoded: Dataset
    source_lengths: NDArray[np.int32]
    target_lengths: NDArray[np.int32]
    parts: tuple[PairRows, ...] = ()
    is_unseen: NDArray[np.bool_] | None = None

    def first(self, few: int) -> EvaluationSet:
        """Return the first rows of each pair."""
        starts = [(part.rows.start, part.rows.stop) for part in self.parts] or [(0, len(self.rows))]
        kept = np.concatenate([np.arange(start, min(stop, start + few)) for start, stop in starts])
        ends = np.cumsum([min(stop - start, few) for start, stop in starts]).tolist()
        return replace(
            self,
            rows=self.rows.select(kept),
            encoded=self.encoded.select(kept),
            source_lengths=self.source_lengths[kept],
            target_lengths=self.target_lengths[kept],
            is_unseen=None if self.is_unseen is None else self.is_unseen[kept],
            parts=tuple(
                replace(part, rows=slice(start, end))
                for part, start, end in zip(self.parts, [0, *ends], ends, strict=False)
            ),
        )


@dataclass(frozen=True, kw_only=True)
class Report:
    """Results of an evaluation.

    Attributes:
        loss_per_token: Cross-entropy in nats per target token, unsmoothed; None if it was not computed.
        perplexity: exp of the loss; None without it.
        scores: By the metric's name; of several pairs the mean over those that have it.
        pair_scores: The scores of each pair, by the pair's name; {} if there is one pair.
        num_sentences: Rows translated, each once.
        time_s: Seconds of the whole evaluation.
        sentences_per_s: Rows over the seconds spent translating.
        hypotheses: By row; on the main process only, empty elsewhere.
        num_unseen: Rows whose source is not in the training rows; None if these are not known.
        counted: Scores with their statistics, to be resampled: by the pair's name, "" if there is one pair, and the
            metric's; on the main process only, {} elsewhere.
    """

    loss_per_token: float | None
    perplexity: float | None
    scores: dict[str, Score]
    num_sentences: int
    time_s: float
    sentences_per_s: float
    hypotheses: list[str]
    pair_scores: dict[str, dict[str, Score]] = field(default_factory=dict)
    num_unseen: int | None = None
    counted: dict[str, dict[str, Counted]] = field(default_factory=dict)

    def metrics(self) -> dict[str, Any]:
        """Return the entries of a metrics line; `user_metrics` holds the direction of each metric of the user's."""
        scores: dict[str, Any] = {}
        for name, score in self.scores.items():
            scores[name] = score.value
            if score.signature:
                scores[f"{name}_signature"] = score.signature
        own = {name: score.greater_is_better for name, score in self.scores.items() if name not in METRICS}
        return {
            "eval_loss": self.loss_per_token,
            "perplexity": self.perplexity,
            **scores,
            "num_sentences": self.num_sentences,
            **({} if self.num_unseen is None else {"num_unseen": self.num_unseen}),
            "eval_time_s": self.time_s,
            "sentences_per_s": self.sentences_per_s,
            **{
                f"{name}_{pair}": of_pair[name].value
                for name in self.scores
                for pair, of_pair in self.pair_scores.items()
                if name in of_pair
            },
            **({"user_metrics": own} if own else {}),
        }

    def best_score(self, metric: str) -> tuple[float, bool]:
        """Return the value of `--metric_for_best_model`, and whether a greater one is better.

        Raises:
            UserError: naming the metrics that were computed.
        """
        if metric == LOSS and self.loss_per_token is not None:
            return self.loss_per_token, False
        metric = recorded_name(metric, self.scores)
        check_best_metric(metric, list(self.scores))
        return self.scores[metric].value, self.scores[metric].greater_is_better

    def has_survival(self, minimum: float | None) -> bool:
        """Return True if `survival` is at least this; None for no minimum."""
        return minimum is None or self.scores[SURVIVAL].value >= minimum


def evaluate(
    engine: Engine,
    data: EvaluationSet,
    runtime: Runtime,
    *,
    model: PreTrainedModel | None = None,
    max_tokens: int | None = None,
    target_lang: str | None,
    max_length_ratio: float | None = None,
    metrics: Sequence[Metric] = DEFAULT_METRICS,
) -> Report:
    """Translate and score every row; compute the loss of a model on them too.

    The only way to a score: training, `mtloop evaluate`, average and export call it. Collective: every rank calls it
    and gets the same numbers. Leaves the model in the mode it was in.

    Args:
        engine: Translates.
        data: The rows.
        runtime: The ranks to share the work with.
        model: Unwrapped; its loss is computed; None for no loss.
        max_tokens: Padded source tokens of a batch at most; None for what default_max_tokens finds.
        target_lang: Chooses sacreBLEU's tokenizer for languages without spaces.
        max_length_ratio: As in SearchOptions.
        metrics: Applied to the translations.
    """
    network = model if model is not None else getattr(engine, "network", None)
    was_training = network is not None and network.training
    if network is not None:
        network.eval()
    if max_tokens is None:
        max_tokens = min(runtime.gather_objects([default_max_tokens(network, free_memory(runtime.device), runtime)]))
    tokenizer = engine.tokenizer
    start = time.perf_counter()
    loss = None if model is None else loss_per_token(model, tokenizer, data, runtime, max_tokens=max_tokens)
    translation_start = time.perf_counter()
    tokens = _translate(engine, data, runtime, max_tokens=max_tokens, max_length_ratio=max_length_ratio)
    end = time.perf_counter()
    if network is not None:
        network.train(was_training)

    def count_all() -> tuple[list[str], dict[str, dict[str, Counted]], dict[str, dict[str, Score]]]:
        hypotheses = decode_best(tokenizer, tokens, data.rows["source"][:])
        counted = count_pairs(data, hypotheses, target_lang, metrics=metrics)
        return hypotheses, counted, {name: scores_of(of_pair) for name, of_pair in counted.items()}

    found, error = attempt(count_all, when=runtime.is_main)
    runtime.raise_together(error)
    hypotheses, counted, scores = found or ([], {}, {})
    scores = runtime.broadcast(scores)
    # Every rank gets main's clock: decisions made from a report must not differ between ranks.
    time_s, translation_s = runtime.broadcast((time.perf_counter() - start, end - translation_start))
    return Report(
        loss_per_token=loss,
        perplexity=None if loss is None else math.exp(min(loss, 700.0)),  # exp overflows above 709
        scores=mean_scores(list(scores.values())) if data.parts else scores[""],
        pair_scores=scores if data.parts else {},
        num_sentences=len(data.rows),
        num_unseen=None if data.is_unseen is None else int(data.is_unseen.sum()),
        time_s=time_s,
        sentences_per_s=len(data.rows) / translation_s,
        hypotheses=hypotheses,
        counted=counted,
    )


def default_max_tokens(model: PreTrainedModel | None, num_bytes: int, runtime: Runtime) -> int:
    """Choose the source tokens of an evaluation batch by the memory of an accelerator; on a CPU more gains nothing.

    Short sources make the most rows, and a row holds for each beam the keys and values of its translation and a few
    copies of its scores over the vocabulary. Half of the memory may be taken by the shortest; what is too much
    nevertheless is halved batch by batch.

    Args:
        model: Determines the memory of a row; None for an engine of another library.
        num_bytes: Free on the device.
        runtime: Has the device.
    """
    if runtime.device.type == "cpu":
        return TOKENS_ON_CPU
    if runtime.device.type == "xla" or model is None:
        return MIN_TOKENS
    config, generation = model.config.get_text_config(decoder=True), model.generation_config
    width = int(getattr(config, "d_model", None) or config.hidden_size)
    layers = int(getattr(config, "decoder_layers", None) or config.num_hidden_layers)
    length = int(generation.max_length or 128)
    a_beam = COPIES_OF_SCORES * 4 * config.vocab_size + 2 * 4 * layers * width * length
    rows = num_bytes / 2 / (a_beam * int(generation.num_beams or 1))
    return int(min(MAX_TOKENS, max(MIN_TOKENS, SHORT_SOURCE * rows)))


def count_pairs(
    data: EvaluationSet,
    hypotheses: list[str],
    target_lang: str | None,
    *,
    metrics: Sequence[Metric] = DEFAULT_METRICS,
) -> dict[str, dict[str, Counted]]:
    """Apply the metrics to N hypotheses: by the pair's name, "" if there is one pair, and the metric's."""
    columns: dict[str, Any] = {"sources": data.rows["source"][:], "references": data.rows["target"][:]}
    columns["hypotheses"] = hypotheses
    if data.is_unseen is not None and not data.is_unseen.all():  # otherwise it would be the score of all rows again
        columns["is_unseen"] = data.is_unseen

    def count(rows: slice, language: str | None) -> dict[str, Counted]:
        return tally(Texts(**{name: column[rows] for name, column in columns.items()}, target_lang=language), metrics)

    if not data.parts:
        return {"": count(slice(None), target_lang)}
    return {part.name: count(part.rows, part.target_lang) for part in data.parts}


def _translate(
    engine: Engine,
    data: EvaluationSet,
    runtime: Runtime,
    *,
    max_tokens: int,
    max_length_ratio: float | None,
) -> list[list[list[int]]]:
    """Translate all rows, pair by pair: the first tokens of a translation are the same in a batch. Collective.

    Returns:
        For each row its translations, best first: all that the beams find for a protected model, otherwise one.
    """
    tokens = []
    n_best = num_candidates(engine, runtime)
    for part in data.parts or (None,):
        rows = np.arange(len(data.rows))[part.rows if part is not None else slice(None)]
        found = search_surviving(
            engine if part is None else engine.for_tokenizer(part.tokenizer),
            data.encoded.select(rows) if part is not None else data.encoded,
            data.source_lengths[rows],
            data.rows["source"][rows],
            runtime,
            SearchOptions(n_best=n_best, with_scores=n_best > 1, max_length_ratio=max_length_ratio),
            max_tokens=max_tokens,
        )
        tokens += [[candidate.tokens.tolist() for candidate in candidates] for candidates in found]
    return tokens


@torch.no_grad()
def loss_per_token(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: EvaluationSet,
    runtime: Runtime,
    *,
    max_tokens: int,
) -> float:
    """Compute the cross-entropy per target token over all rows, in nats: one sum over one count, not a mean of means.

    Collective.
    """
    batches: Sequence[NDArray[np.int64] | MicroBatch]
    if runtime.is_xla:
        batches = plan_static_evaluation(data.source_lengths, data.target_lengths, max_tokens=2 * max_tokens)
    else:
        # Both sides are in memory: neither may pass the cap, also if a target of two tokens has a long source.
        batches = plan_evaluation(np.maximum(data.source_lengths, data.target_lengths), max_tokens=max_tokens)
    assert tokenizer.pad_token_id is not None
    sums = []
    pad_id, in_step = tokenizer.pad_token_id, is_sharded(model)
    for row_ids, batch in deal_batches(batches, data.encoded, runtime, pad_id=pad_id, in_step=in_step):
        with runtime.autocast():
            loss_sum = batch_loss_sum(model, batch)
        if len(row_ids):
            sums.append(loss_sum)
        runtime.end_program()
    (total,) = runtime.sum_over_ranks(math.fsum(runtime.read(sums)))
    return total / int(data.target_lengths.sum(dtype=np.int64))
