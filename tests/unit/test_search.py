"""Test search: its translations and scores equal those of generate(), and finished rows are removed."""

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, StoppingCriteriaList

from mtloop.batching.loader import collate
from mtloop.generation.generate import LengthRatio
from mtloop.generation.search import search

OURS = {"custom_generate": search, "cache_implementation": "dynamic"}
SCORED = {"return_dict_in_generate": True, "output_scores": True}
BEAMS = {"num_beams": 4}


@pytest.fixture
def batch(short_set, marian_tokenizer):
    """Sentences of all lengths, padded."""
    encoded = collate(short_set.encoded, range(len(short_set.rows)), pad_id=marian_tokenizer.pad_token_id)
    return {name: encoded[name] for name in ("input_ids", "attention_mask")}


@pytest.fixture
def sizes(tiny_model, monkeypatch):
    """The rows that the decoder of tiny_model has in each step."""
    found, forward = [], tiny_model.forward

    def counting(*args, **options):
        found.append(len(options["decoder_input_ids"]))
        return forward(*args, **options)

    monkeypatch.setattr(tiny_model, "forward", counting)
    return found


def stripped(sequences, pad_id):
    """Return the tokens after the decoder start, without padding."""
    return [[token for token in row[1:] if token != pad_id] for row in sequences.tolist()]


def by_length(model, batch, options):
    """Return what search() and generate() find where each source limits its own translation."""
    both = []
    for more in (OURS, {}):
        criteria = StoppingCriteriaList([LengthRatio(batch["attention_mask"], -0.5)])  # at most SPARE_TOKENS
        with torch.no_grad():
            answer = model.generate(**batch, **options, **more, stopping_criteria=criteria)
        both.append(stripped(getattr(answer, "sequences", answer), model.generation_config.pad_token_id))
    return both


def sequences_of(model, batch, options):
    with torch.no_grad():
        return model.generate(**batch, **options, **OURS).sequences


@pytest.mark.parametrize(
    "options",
    [
        {},
        BEAMS,
        pytest.param({**BEAMS, "early_stopping": True}, marks=pytest.mark.slow),
        pytest.param({**BEAMS, "early_stopping": "never", "length_penalty": 2.0}, marks=pytest.mark.slow),
        pytest.param({**BEAMS, "length_penalty": -0.5}, marks=pytest.mark.slow),
        pytest.param({**BEAMS, "eos_token_id": [0, 11]}, marks=pytest.mark.slow),
        pytest.param({**BEAMS, "num_return_sequences": 3}, marks=pytest.mark.slow),
        {**BEAMS, "max_length": 6, "forced_bos_token_id": 7},
        {**BEAMS, "no_repeat_ngram_size": 2, "repetition_penalty": 1.3, "renormalize_logits": True},
        pytest.param({**BEAMS, "encoder_no_repeat_ngram_size": 2}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_search_equals_generate(tiny_model, batch, options):
    pad_id = tiny_model.generation_config.pad_token_id
    with torch.no_grad():
        expected = stripped(tiny_model.generate(**batch, **options), pad_id)
    assert len({len(tokens) for tokens in expected}) > 2 or "max_length" in options
    assert stripped(sequences_of(tiny_model, batch, options), pad_id) == expected


@pytest.mark.parametrize("num_beams", [1, 4])
@pytest.mark.parametrize(
    "family",
    ["t5", *(pytest.param(name, marks=pytest.mark.slow) for name in ("marian", "bart", "mbart", "m2m_100", "pegasus"))],
)
def test_search_equals_generate_for_each_family(tiny_configs, batch, family, num_beams):
    torch.manual_seed(1)
    model = AutoModelForSeq2SeqLM.from_config(tiny_configs[family]).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(10)  # fresh weights say nearly the same of every token
    model.generation_config.max_length = 16
    found, expected = by_length(model, batch, {"num_beams": num_beams})
    assert len({len(tokens) for tokens in expected}) > 2 and len({tuple(tokens) for tokens in expected}) > 4
    assert found == expected


@pytest.mark.parametrize("options", [{}, {**BEAMS, "num_return_sequences": 3}], ids=str)
@pytest.mark.slow
def test_search_scores_equal_those_of_generate(tiny_model, batch, options):
    with torch.no_grad():
        expected = tiny_model.generate(**batch, **options, **SCORED)
        found = tiny_model.generate(**batch, **options, **SCORED, **OURS)
    if "num_beams" in options:
        scores = expected.sequences_scores
    else:
        steps = tiny_model.compute_transition_scores(expected.sequences, expected.scores, normalize_logits=True)
        is_real = expected.sequences[:, 1:] != tiny_model.generation_config.pad_token_id
        scores = steps.where(is_real, 0.0).sum(dim=1) / is_real.sum(dim=1)
    torch.testing.assert_close(found.scores, scores, atol=1e-5, rtol=0.0)


@pytest.mark.parametrize("options", [{}, BEAMS], ids=str)
def test_search_removes_finished_rows(tiny_model, batch, sizes, options):
    sequences_of(tiny_model, batch, options)
    beams = options.get("num_beams", 1)
    assert sizes[0] == len(batch["input_ids"]) * beams and sizes == sorted(sizes, reverse=True)
    assert sizes[-1] <= sizes[0] / 2


def test_search_keeps_rows_for_a_stateful_rule(tiny_model, batch, sizes):
    sequences_of(tiny_model, batch, {**BEAMS, "encoder_no_repeat_ngram_size": 2})
    assert set(sizes) == {len(batch["input_ids"]) * 4}


@pytest.mark.parametrize("options", [{}, BEAMS], ids=str)
def test_search_removes_rows_from_a_rule_with_keep_rows(tiny_model, batch, sizes, options):
    found, expected = by_length(tiny_model, batch, options)
    assert found == expected
    assert len({len(tokens) for tokens in found}) > 2
    assert min(sizes) < max(sizes)
