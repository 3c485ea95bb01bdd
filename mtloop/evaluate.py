"""Validation loss and scores of a model on rows: the same numbers on every rank.

Must not know the trainer, files or trackers. Every row counts once and is scored against its raw reference text.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mtloop.batching import plan_evaluation
from mtloop.generation import deal_batches, generate_hypotheses
from mtloop.loss import token_loss_sum
from mtloop.metrics import Scores, Tally, scores_of, tally
from mtloop.model import shift_right
from mtloop.runtime import Runtime

NUM_SAMPLES = 10


@dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """Rows to evaluate on.

    Attributes:
        name: "valid" or "test".
        rows: Raw texts: columns index, source, target; N rows.
        encoded: Columns input_ids and labels, aligned with rows.
        source_lengths: int32 [N].
        target_lengths: int32 [N].
    """

    name: str
    rows: Dataset
    encoded: Dataset
    source_lengths: NDArray[np.int32]
    target_lengths: NDArray[np.int32]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What an evaluation found.

    Attributes:
        loss_per_token: Cross-entropy in nats per target token, unsmoothed.
        perplexity: exp of it.
        scores: BLEU, chrF and their signatures.
        num_sentences: Rows translated, each once.
        time_s: Seconds of the whole evaluation.
        sentences_per_s: Rows over the seconds spent translating.
        hypotheses: By row; on the main process only, empty elsewhere.
        counted: What the scores are made of, to be resampled; on the main process only, None elsewhere.
    """

    loss_per_token: float
    perplexity: float
    scores: Scores
    num_sentences: int
    time_s: float
    sentences_per_s: float
    hypotheses: list[str]
    counted: Tally | None = None

    def metrics(self) -> dict[str, Any]:
        """The entries of a metrics line."""
        return {
            "eval_loss": self.loss_per_token,
            "perplexity": self.perplexity,
            "bleu": self.scores.bleu,
            "bleu_signature": self.scores.bleu_signature,
            "chrf": self.scores.chrf,
            "chrf_signature": self.scores.chrf_signature,
            "num_sentences": self.num_sentences,
            "eval_time_s": self.time_s,
            "sentences_per_s": self.sentences_per_s,
        }

    def score_of(self, metric: str) -> float:
        """The number that `--metric_for_best_model` names."""
        return float(self.metrics()[metric])


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: EvaluationSet,
    runtime: Runtime,
    *,
    max_tokens: int,
    target_lang: str | None,
) -> Report:
    """Compute the validation loss and translate and score every row.

    Collective: every rank calls it and gets the same numbers. Leaves the model in the mode it was in.

    Args:
        model: Unwrapped; its generation config is used as it is.
        tokenizer: Turns pieces into text.
        data: The rows.
        runtime: The ranks to share the work with.
        max_tokens: Padded source tokens of a batch at most.
        target_lang: Chooses sacreBLEU's tokenizer for languages without spaces.
    """
    was_training = model.training
    model.eval()
    start = time.perf_counter()
    loss = loss_per_token(model, tokenizer, data, runtime, max_tokens=max_tokens)
    translation_start = time.perf_counter()
    batches = plan_evaluation(data.source_lengths, max_tokens=max_tokens)
    assert tokenizer.pad_token_id is not None
    pieces = generate_hypotheses(model, data.encoded, batches, runtime, pad_id=tokenizer.pad_token_id)
    end = time.perf_counter()
    model.train(was_training)

    def count_all() -> tuple[list[str], Tally]:
        hypotheses = tokenizer.batch_decode([row.tolist() for row in pieces], skip_special_tokens=True)
        return hypotheses, tally(hypotheses, data.rows["target"][:], target_lang)

    hypotheses: list[str] = []
    error = None
    scores: Any = None
    counted: Tally | None = None
    if runtime.is_main:
        try:
            hypotheses, counted = count_all()
            scores = scores_of(counted)
        except Exception as caught:  # the other ranks must not be left waiting for the scores
            error = caught
    runtime.raise_together(error)
    scores = runtime.broadcast(scores)
    # Every rank gets main's clock: what is derived from a report must not differ between ranks.
    time_s, translation_s = runtime.broadcast((time.perf_counter() - start, end - translation_start))
    return Report(
        loss_per_token=loss,
        perplexity=math.exp(min(loss, 700.0)),  # exp overflows above 709
        scores=scores,
        num_sentences=len(data.rows),
        time_s=time_s,
        sentences_per_s=len(data.rows) / translation_s,
        hypotheses=hypotheses,
        counted=counted,
    )


@torch.no_grad()
def loss_per_token(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: EvaluationSet,
    runtime: Runtime,
    *,
    max_tokens: int,
) -> float:
    """Compute the cross-entropy per target token over all rows, in nats: one sum by one count, no mean of means.

    Collective.
    """
    # Both sides are in memory here: neither may pass the cap, were a target of two tokens paired with a long source.
    batches = plan_evaluation(np.maximum(data.source_lengths, data.target_lengths), max_tokens=max_tokens)
    assert tokenizer.pad_token_id is not None
    sums = []
    for _, batch in deal_batches(batches, data.encoded, runtime, pad_id=tokenizer.pad_token_id):
        with runtime.accelerator.autocast():
            logits = model(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                decoder_input_ids=shift_right(model, batch["labels"]),
                use_cache=False,
            ).logits
        sums.append(token_loss_sum(logits, batch["labels"]))
    local_sum = torch.stack(sums).cpu().double().sum() if sums else 0.0
    (total,) = runtime.sum_over_ranks(local_sum)
    return total / int(data.target_lengths.sum(dtype=np.int64))


def choose_samples(num_rows: int, *, seed: int) -> list[int]:
    """Choose up to NUM_SAMPLES row numbers, ascending: the same at every evaluation of a run."""
    rng = np.random.default_rng(seed)
    return sorted(rng.choice(num_rows, size=min(NUM_SAMPLES, num_rows), replace=False).tolist())
