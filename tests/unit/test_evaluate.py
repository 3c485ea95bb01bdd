"""The loss is the brute-force one, the scores are those of the raw references, and nothing is left changed."""

import copy
import math
from dataclasses import fields
from types import SimpleNamespace

import pytest
import torch

from mtloop.config.evaluation import EvaluationConfig
from mtloop.errors import UserError
from mtloop.evaluation.evaluate import (
    MAX_TOKENS,
    MIN_TOKENS,
    TOKENS_ON_CPU,
    EvaluationSet,
    default_max_tokens,
    evaluate,
    loss_per_token,
)
from mtloop.generation.engine import EngineOptions, TransformersEngine
from mtloop.trainer.report import choose_samples
from tests.support.scores import score


def evaluate_model(model, tokenizer, data, runtime, *, max_tokens):
    engine = TransformersEngine(model, tokenizer, asked=EngineOptions(), max_source_length=512)
    return evaluate(engine, data, runtime, model=model, max_tokens=max_tokens, target_lang="fr")


def loss_by_brute_force(model, data):
    """Every row alone, through the model's own loss: a mean over the row's tokens, made a sum again."""
    total, num_tokens = 0.0, 0
    for row in data.encoded:
        with torch.no_grad():
            mean = model(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss
        total += mean.double().item() * len(row["labels"])
        num_tokens += len(row["labels"])
    return total / num_tokens


def with_raw_targets(data, change):
    """The same rows and tokens, other raw reference texts."""
    rows = data.rows.map(lambda row: {"target": change(row["target"])}, load_from_cache_file=False)
    return EvaluationSet(
        name=data.name,
        rows=rows,
        encoded=data.encoded,
        source_lengths=data.source_lengths,
        target_lengths=data.target_lengths,
    )


@pytest.mark.parametrize("max_tokens", [pytest.param(1, marks=pytest.mark.slow), 70, 10_000])
@pytest.mark.slow
def test_loss_does_not_depend_on_batches(tiny_model, short_set, runtime, marian_tokenizer, max_tokens):
    expected = loss_by_brute_force(tiny_model, short_set)
    assert 0.1 < expected < 10  # 16 rows known by heart, 8 never seen: neither 0 nor noise
    found = loss_per_token(tiny_model, marian_tokenizer, short_set, runtime, max_tokens=max_tokens)
    assert found == pytest.approx(expected, abs=1e-6)


def test_loss_batches_stay_below_cap_on_both_sides(tiny_model, encoded_sample, runtime, marian_tokenizer):
    # Short targets with the longest sources: counted by targets alone, one batch would hold them all.
    longest = encoded_sample.source_lengths.argsort()[-20:]
    encoded = encoded_sample.rows.select(longest)
    encoded = encoded.map(lambda row: {"labels": row["labels"][-2:]}, load_from_cache_file=False)
    lengths = encoded_sample.source_lengths[longest]
    data = EvaluationSet(
        name="valid", rows=encoded, encoded=encoded, source_lengths=lengths, target_lengths=lengths * 0 + 2
    )
    sizes = []
    hook = tiny_model.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    loss_per_token(tiny_model, marian_tokenizer, data, runtime, max_tokens=200)
    hook.remove()
    assert len(sizes) > 1 and max(sizes) <= 200


def test_evaluate_scores_translations_against_raw_references(
    tiny_model, plain_tokens, short_set, runtime, marian_tokenizer
):
    # A double space and a character that no piece has do not survive the tokenizer; the raw text keeps them.
    data = with_raw_targets(short_set, lambda text: text.replace(" ", "  ", 1) + " \u65e5\u672c")
    report = evaluate_model(tiny_model, marian_tokenizer, data, runtime, max_tokens=100)
    hypotheses = [marian_tokenizer.decode(row, skip_special_tokens=True) for row in plain_tokens]
    assert report.hypotheses == hypotheses
    scores = {name: report.scores[name] for name in ("bleu", "chrf")}
    assert scores == score(hypotheses, data.rows["target"][:], "fr")
    round_trip = [
        marian_tokenizer.decode(ids, skip_special_tokens=True)
        for ids in marian_tokenizer(text_target=data.rows["target"][:])["input_ids"]
    ]
    bleu = report.scores["bleu"]
    assert bleu.value > 10  # 16 rows are known by heart
    assert bleu.value < score(hypotheses, round_trip, "fr")["bleu"].value
    assert report.num_sentences == len(hypotheses) == 24
    assert report.loss_per_token == pytest.approx(loss_by_brute_force(tiny_model, data), abs=1e-6)
    assert report.perplexity == pytest.approx(math.exp(report.loss_per_token))
    assert report.time_s > 0 and report.sentences_per_s >= 24 / report.time_s  # translating is a part of it
    metrics = report.metrics()
    assert [report.best_score(name) for name in ("bleu", "chrf", "eval_loss")] == [
        (bleu.value, True),
        (report.scores["chrf"].value, True),
        (report.loss_per_token, False),
    ]
    with pytest.raises(
        UserError, match=r"^--metric_for_best_model: .*\(got 'ter'\)\. .*--metrics, .* bleu, chrf, .*eval_loss\.$"
    ):
        report.best_score("ter")
    assert metrics["bleu_signature"] == bleu.signature and "user_metrics" not in metrics


@pytest.mark.parametrize("is_training", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_evaluate_leaves_model_unchanged(tiny_model, short_set, runtime, marian_tokenizer, is_training):
    model = copy.deepcopy(tiny_model).train(is_training)
    for module in model.modules():
        if hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.5  # would change the loss if evaluation were made in training mode
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    report = evaluate_model(model, marian_tokenizer, short_set, runtime, max_tokens=500)
    assert report.loss_per_token == pytest.approx(loss_by_brute_force(tiny_model, short_set), abs=1e-6)
    assert {module.training for module in model.modules()} == {is_training}
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_evaluate_raises_error_of_scoring(tiny_model, short_set, runtime, marian_tokenizer):
    data = with_raw_targets(short_set, lambda text: None)
    with pytest.raises(TypeError):
        evaluate_model(tiny_model, marian_tokenizer, data, runtime, max_tokens=500)


def test_choose_samples_is_deterministic():
    chosen = choose_samples(1_000, 10, seed=42)
    assert chosen == choose_samples(1_000, 10, seed=42) == sorted(set(chosen))
    assert len(chosen) == 10 and chosen[0] >= 0 and chosen[-1] < 1_000
    assert chosen != choose_samples(1_000, 10, seed=43)
    assert choose_samples(3, 10, seed=42) == [0, 1, 2] and choose_samples(3, 0, seed=42) == []


def test_default_max_tokens_by_device_and_memory(tiny_model):
    def found(device_type, num_bytes):
        return default_max_tokens(tiny_model, num_bytes, SimpleNamespace(device=SimpleNamespace(type=device_type)))

    assert found("cpu", 2**40) == 1_000
    assert found("xla", 2**40) == found("cuda", 0) == 2_000
    assert found("cuda", 2**40) == 16_000
    somewhere = next(tokens for power in range(20, 40) if (tokens := found("cuda", 2**power)) > 2_000)
    assert somewhere < 16_000


def test_default_max_tokens_equals_help():
    (field,) = (one for one in fields(EvaluationConfig) if one.name == "eval_max_tokens")
    text = field.metadata["unset"]
    assert f"{TOKENS_ON_CPU} on a CPU, {MIN_TOKENS} on XLA, otherwise {MIN_TOKENS} to {MAX_TOKENS}" in text
