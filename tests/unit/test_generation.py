"""Test generate: every row is translated once, as generate() would alone, whatever the batches."""

import collections
import copy

import numpy as np
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from mtloop.batching.division import plan_evaluation, plan_static_evaluation
from mtloop.batching.loader import collate
from mtloop.generation import generate as generate_module
from mtloop.generation.generate import NOTHING, SearchOptions, _by_row_index, _stack, deal_batches, generate_rows
from mtloop.generation.greedy import greedy_search, rules_of

NUM_ROWS = 24


def generate_hypotheses(*arguments, pad_id, **options):
    return [best.tokens for best, *_ in generate_rows(*arguments, SearchOptions(**options), pad_id=pad_id)]


@pytest.fixture
def rows(short_set):
    return short_set.encoded


@pytest.fixture
def lengths(short_set):
    return short_set.source_lengths


def stripped(tokens, pad_id):
    """Return a hypothesis without the padding after it; the decoder start, a padding token too, is kept."""
    end = len(tokens)
    while end > 1 and tokens[end - 1] == pad_id:
        end -= 1
    return list(tokens[:end])


def generate(model, rows, lengths, runtime, pad_id, max_tokens):
    batches = plan_evaluation(lengths, max_tokens=max_tokens)
    return generate_hypotheses(model, rows, batches, runtime, pad_id=pad_id)


@pytest.mark.parametrize("max_tokens", [60, 10_000, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_generate_rows_equals_plain_generate_row_by_row(
    tiny_model, plain_tokens, rows, lengths, runtime, marian_tokenizer, max_tokens
):
    pad_id = marian_tokenizer.pad_token_id
    expected = [stripped(tokens, pad_id) for tokens in plain_tokens]
    # Rows that look alike would hide a mix-up.
    assert len({tuple(tokens) for tokens in expected}) > NUM_ROWS // 2
    found = generate(tiny_model, rows, lengths, runtime, pad_id, max_tokens)
    assert [stripped(tokens.tolist(), pad_id) for tokens in found] == expected
    assert all((tokens >= 0).all() for tokens in found)  # NOTHING, the filler of the table, is gone


@pytest.mark.slow
def test_generate_rows_halves_a_batch_that_exceeds_memory(
    tiny_model, short_set, marian_tokenizer, runtime, monkeypatch
):
    pad_id = marian_tokenizer.pad_token_id
    batches = plan_evaluation(short_set.source_lengths, max_tokens=2_000)
    assert max(map(len, batches)) == len(short_set.rows)
    expected = generate_hypotheses(tiny_model, short_set.encoded, batches, runtime, pad_id=pad_id)
    generate, sizes = tiny_model.generate, []

    def limited(input_ids, **options):
        sizes.append(len(input_ids))
        if len(input_ids) > 7:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return generate(input_ids=input_ids, **options)

    monkeypatch.setattr(tiny_model, "generate", limited, raising=False)
    found = generate_hypotheses(tiny_model, short_set.encoded, batches, runtime, pad_id=pad_id)
    assert sizes == [24, 12, 6, 6, 12, 6, 6]
    assert [stripped(row.tolist(), pad_id) for row in found] == [stripped(row.tolist(), pad_id) for row in expected]


@pytest.mark.slow
def test_generate_rows_with_beams_equals_plain_generate(tiny_model, rows, lengths, runtime, marian_tokenizer):
    model = copy.deepcopy(tiny_model)
    model.generation_config.num_beams = 3
    pad_id = marian_tokenizer.pad_token_id
    few, short = rows.select(range(16, 24)), lengths[16:]  # rows that are not known by heart: beams matter
    with torch.no_grad():
        expected = [model.generate(input_ids=torch.tensor([ids]))[0].tolist() for ids in few["input_ids"]]
        greedy = [tiny_model.generate(input_ids=torch.tensor([ids]))[0].tolist() for ids in few["input_ids"]]
    assert expected != greedy
    found = generate(model, few, short, runtime, pad_id, 60)
    assert [stripped(tokens.tolist(), pad_id) for tokens in found] == [stripped(p, pad_id) for p in expected]


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.slow
def test_max_length_ratio_ends_each_translation_by_its_source(
    tiny_model, plain_tokens, rows, lengths, runtime, marian_tokenizer, monkeypatch, num_beams
):
    monkeypatch.setattr(generate_module, "SPARE_TOKENS", 1)
    model = copy.deepcopy(tiny_model)
    model.generation_config.num_beams = num_beams
    pad_id = marian_tokenizer.pad_token_id
    batches = plan_evaluation(lengths, max_tokens=10_000)  # rows of all lengths in one batch
    found = generate_hypotheses(model, rows, batches, runtime, pad_id=pad_id, max_length_ratio=0.5)
    bounds = np.ceil(lengths * 0.5).astype(int) + 1
    whole = [stripped(tokens, pad_id) for tokens in plain_tokens]
    assert sum(len(tokens) > bound for tokens, bound in zip(whole, bounds, strict=True)) > 5
    cut = [stripped(tokens.tolist(), pad_id) for tokens in found]
    assert all(len(tokens) <= bound for tokens, bound in zip(cut, bounds, strict=True))
    if num_beams == 1:  # greedily, what comes before the end does not know of it
        assert cut == [tokens[:bound] for tokens, bound in zip(whole, bounds, strict=True)]
    free = generate_hypotheses(model, rows, batches, runtime, pad_id=pad_id, max_length_ratio=100.0)
    if num_beams == 1:
        assert [stripped(tokens.tolist(), pad_id) for tokens in free] == whole


def test_generate_rows_uses_the_generation_config(tiny_model, rows, lengths, runtime, marian_tokenizer):
    model = copy.deepcopy(tiny_model)
    model.generation_config.max_length = 5
    model.generation_config.forced_bos_token_id = 7
    before = model.generation_config.to_dict()
    found = generate(model, rows, lengths, runtime, marian_tokenizer.pad_token_id, 100)
    # max_length counts the decoder's start; the forced token follows it.
    assert max(len(tokens) for tokens in found) == 5
    assert {int(tokens[1]) for tokens in found} == {7}
    assert model.generation_config.to_dict() == before


@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: [*b, b[0][:1]]], ids=["one missing", "one twice"])
@pytest.mark.slow
def test_by_row_index_requires_each_row_once(tiny_model, rows, lengths, runtime, marian_tokenizer, change):
    model = copy.deepcopy(tiny_model)
    model.generation_config.max_length = 3
    batches = change(plan_evaluation(lengths, max_tokens=1))  # a row a batch
    with pytest.raises(RuntimeError, match=rf"1 of {NUM_ROWS} rows were not translated exactly once"):
        generate_hypotheses(model, rows, batches, runtime, pad_id=marian_tokenizer.pad_token_id)


def test_by_row_index_drops_padding():
    # Two ranks: one had rows 2 and 0, three tokens wide; the other row 1 alone, padded to the same shape.
    first = torch.tensor([[2, 5, 6, 7], [0, 8, 9, 1]])
    second = torch.tensor([[1, 3], [NOTHING, NOTHING]])
    table = _stack([first, second])
    assert table.shape == (4, 4)
    assert [row.tolist() for row in _by_row_index(table, 3)] == [[8, 9, 1], [3], [5, 6, 7]]


def test_deal_batches_covers_all_batches(rows, lengths, runtime, marian_tokenizer):
    batches = plan_evaluation(lengths, max_tokens=60)
    dealt = []
    runtime.num_ranks = 3
    for rank in range(3):
        runtime.rank = rank
        for row_ids, batch in deal_batches(batches, rows, runtime, pad_id=marian_tokenizer.pad_token_id):
            assert batch["attention_mask"].sum(dim=1).tolist() == lengths[row_ids].tolist()
            dealt.append(row_ids)
    runtime.num_ranks, runtime.rank = 1, 0
    assert sorted(np.concatenate(dealt).tolist()) == list(range(NUM_ROWS))
    assert {tuple(ids) for ids in dealt} == {tuple(ids) for ids in batches}  # as they were formed


# greedy search in fixed shapes


def search(model, rows, lengths, *, max_tokens, **options):
    """What greedy_search makes of each row, in batches of few shapes."""
    rules = rules_of(model.generation_config, options)
    found = {}
    for batch in plan_static_evaluation(lengths, None, max_tokens=max_tokens):
        encoded = collate(rows, batch.sentence_ids, pad_id=rules.pad, shape=batch.shape)
        with torch.no_grad():
            tokens = greedy_search(
                model, encoded["input_ids"], encoded["attention_mask"], rules, end_program=lambda: None
            )
        assert tokens.shape == (batch.shape.rows, rules.max_length)
        found |= dict(zip(batch.sentence_ids[: batch.num_real].tolist(), tokens.tolist(), strict=False))
    return [stripped(found[row], rules.pad) for row in range(len(rows))]


@pytest.mark.slow
@pytest.mark.parametrize("max_tokens", [pytest.param(1, marks=pytest.mark.full), 200])
@pytest.mark.parametrize(
    "options",
    [
        {"bad_words_ids": [[5], [399]]},
        pytest.param({"forced_eos_token_id": 0, "max_length": 9}, marks=pytest.mark.slow),
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"forced_bos_token_id": 7}, marks=pytest.mark.slow),
        pytest.param({"eos_token_id": [0, 11]}, marks=pytest.mark.slow),
    ],
)
def test_greedy_search_equals_generate(tiny_model, rows, lengths, marian_tokenizer, options, max_tokens):
    rows, lengths = rows.select(range(4, 20)), lengths[4:20]  # 12 are known by heart
    with torch.no_grad():
        expected = [
            tiny_model.generate(input_ids=torch.tensor([ids]), **options)[0].tolist() for ids in rows["input_ids"]
        ]
    pad_id = marian_tokenizer.pad_token_id
    found = search(tiny_model, rows, lengths, max_tokens=max_tokens, **options)
    assert found == [stripped(tokens, pad_id) for tokens in expected]


MORE_FAMILIES = [
    pytest.param(name, marks=pytest.mark.slow) for name in ("marian", "mbart", "m2m_100", "bart", "pegasus")
]


@pytest.mark.parametrize("family", ["t5", *MORE_FAMILIES])
@pytest.mark.slow
def test_greedy_search_equals_generate_for_each_family(tiny_configs, rows, lengths, family):
    torch.manual_seed(1)
    model = AutoModelForSeq2SeqLM.from_config(tiny_configs[family], attn_implementation="eager").eval()
    generation = model.generation_config
    generation.max_length, generation.num_beams = 12, 1
    few = rows.select(range(8))
    with torch.no_grad():
        expected = [model.generate(input_ids=torch.tensor([ids]))[0].tolist() for ids in few["input_ids"]]
    found = search(model, few, lengths[:8], max_tokens=200)
    assert found == [stripped(tokens, generation.pad_token_id) for tokens in expected]


def test_rules_of_is_none_for_other_searches(tiny_model):
    config = tiny_model.generation_config
    assert rules_of(config, {}) is not None
    for options in ({"num_beams": 2}, {"no_repeat_ngram_size": 3}, {"bad_words_ids": [[5, 6]]}, {"min_length": 4}):
        assert rules_of(config, options) is None


def test_generate_rows_drops_copies_of_a_static_batch(
    tiny_model, rows, lengths, runtime, marian_tokenizer, plain_tokens
):
    """Copies that fill a shape are translated too, and left out."""
    batches = plan_static_evaluation(lengths, None, max_tokens=200)
    assert sum(len(batch.sentence_ids) for batch in batches) > NUM_ROWS
    pad_id = marian_tokenizer.pad_token_id
    found = generate_hypotheses(tiny_model, rows, batches, runtime, pad_id=pad_id)
    assert [stripped(p.tolist(), pad_id) for p in found] == [stripped(p, pad_id) for p in plain_tokens]


@pytest.mark.parametrize("num_beams", [1, 4])
def test_generate_rows_keeps_masks(tiny_model, rows, lengths, runtime, marian_tokenizer, num_beams):
    pad_id, end_id = marian_tokenizer.pad_token_id, marian_tokenizer.eos_token_id
    numbers = collections.Counter(token for ids in rows["input_ids"] for token in ids if token != end_id)
    mask_ids = [token for token, _ in numbers.most_common(8)]  # as good as any for a model that was not trained
    batches = plan_evaluation(lengths, max_tokens=60)
    model = copy.deepcopy(tiny_model)
    model.generation_config.num_beams = num_beams
    model.final_logits_bias[0, end_id] = 8.0  # ends at once, if it may
    found = generate_rows(model, rows, batches, runtime, SearchOptions(mask_ids=mask_ids), pad_id=pad_id)
    num_ended = 0
    for source, (best, *_) in zip(rows["input_ids"], found, strict=True):
        tokens = best.tokens[1:].tolist()
        wanted, there = ([side.count(token) for token in mask_ids] for side in (source, tokens))
        assert all(one >= other for one, other in zip(wanted, there, strict=True))
        if len(tokens) < model.generation_config.max_length - 1:
            num_ended += 1
            assert there == wanted
    assert num_ended > NUM_ROWS // 2
