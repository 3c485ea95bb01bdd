"""The plan: every sentence once, budgets kept, nothing that depends on ranks."""

import itertools

import numpy as np
import pytest

from mtloop.batching import division
from mtloop.batching.division import (
    cut_at_least_cost,
    cut_by_tokens,
    divide_into_shapes,
    divide_update,
    plan_evaluation,
    plan_static_evaluation,
)
from mtloop.batching.plan import Budget, count_updates, plan_epoch
from mtloop.batching.shapes import choose_evaluation_shapes, choose_shapes


def draw_lengths(num_sentences: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Lengths with the heavy tail of interface strings: 2..128 tokens."""
    rng = np.random.default_rng(seed)
    source = np.clip(rng.lognormal(2.0, 1.0, num_sentences), 2, 128).astype(np.int32)
    target = np.clip(source * rng.uniform(0.8, 1.6, num_sentences), 2, 128).astype(np.int32)
    return source, target


BUDGETS = [Budget(tokens=300), Budget(tokens=5_000), Budget(sentences=1), Budget(sentences=32)]


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
@pytest.mark.parametrize("num_sentences", [1, 31, 5_000, 70_000])
def test_every_sentence_stands_in_exactly_one_update(budget, num_sentences):
    source, target = draw_lengths(num_sentences)
    plan = plan_epoch(target, budget, seed=7, epoch=2)
    updates = [plan.sentence_ids(u) for u in range(plan.num_updates)]
    assert np.array_equal(np.sort(np.concatenate(updates)), np.arange(num_sentences))
    assert all(len(ids) > 0 for ids in updates)
    assert plan.num_updates == count_updates(target, budget)


def test_updates_hold_the_token_budget():
    source, target = draw_lengths(70_000)
    plan = plan_epoch(target, Budget(tokens=1_000), seed=0, epoch=0)
    tokens = np.array([target[plan.sentence_ids(u)].sum() for u in range(plan.num_updates)])
    # A share is total / floor(total / 1000), so between 1000 and 1000 * (1 + 1/updates); the sentence that crosses a
    # border (at most 128 tokens) falls to one side of it, at either end.
    assert tokens.min() >= 1_000 - 128
    assert tokens.max() <= 1_000 * (1 + 1 / plan.num_updates) + 128 + 1


def test_updates_hold_the_sentence_budget_and_the_rest_is_one_update():
    source, target = draw_lengths(70_001)
    plan = plan_epoch(target, Budget(sentences=32), seed=0, epoch=0)
    sizes = sorted(np.diff(plan.bounds))
    # 70,001 = 2,187 * 32 + 17
    assert sizes[0] == 17 and set(sizes[1:]) == {32} and len(sizes) == 2_188


def test_the_course_has_5912_updates_an_epoch():
    # 189,155 training pairs of KDE4 English-French, 32 an update: 5,911.09 rounded up.
    assert count_updates(np.ones(189_155, dtype=np.int32), Budget(sentences=32)) == 5_912


def test_a_sentence_longer_than_the_budget_still_leaves_no_update_empty():
    lengths = np.array([128] + [1] * 300, dtype=np.int32)
    plan = plan_epoch(lengths, Budget(tokens=10), seed=0, epoch=0)
    # The share grows to the longest target: 428 // 128 = 3 updates.
    assert plan.num_updates == 3
    assert all(len(plan.sentence_ids(u)) for u in range(3))


def test_plan_depends_on_seed_and_epoch_and_on_nothing_else():
    source, target = draw_lengths(5_000)

    def order(seed, epoch):
        return plan_epoch(target, Budget(tokens=500), seed=seed, epoch=epoch).order

    assert np.array_equal(order(1, 0), order(1, 0))
    assert not np.array_equal(order(1, 0), order(1, 1))
    assert not np.array_equal(order(1, 0), order(2, 0))


def test_an_update_is_drawn_at_random():
    """The mean length of an update varies as that of random sentences does."""
    _, target = draw_lengths(64_000)
    plan = plan_epoch(target, Budget(sentences=32), seed=0, epoch=0)
    means = np.array([target[plan.sentence_ids(u)].mean() for u in range(plan.num_updates)])
    # Of 2,000 means of 32 the standard deviation is that of the lengths / sqrt(32), known to 1.6 %, 1 / sqrt(2 * 2,000)
    # (more for a heavy tail): sorted pools give a multiple of it.
    assert means.std() == pytest.approx(target.std() / np.sqrt(32), rel=0.1)


def test_updates_do_not_come_in_order_of_length():
    _, target = draw_lengths(30_000)
    plan = plan_epoch(target, Budget(sentences=32), seed=0, epoch=0)
    means = [target[plan.sentence_ids(u)].mean() for u in range(plan.num_updates)]
    # Shuffled: neighbours correlate as little as noise of 938 updates does (standard error 0.033).
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.13


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("max_tokens", [1, 150, 4_096])
def test_ranks_divide_an_update_without_remainder(num_ranks, max_tokens):
    source, target = draw_lengths(5_000)
    plan = plan_epoch(target, Budget(sentences=21), seed=0, epoch=0)
    for u in range(0, plan.num_updates, 17):
        ids = plan.sentence_ids(u)
        shares = [
            divide_update(ids, source, target, max_tokens=max_tokens, overhead=50, rank=rank, num_ranks=num_ranks)
            for rank in range(num_ranks)
        ]
        assert len({len(share) for share in shares}) == 1
        real = [m for share in shares for m in share if not m.is_filler]
        assert sorted(i for m in real for i in m.sentence_ids) == sorted(ids)
        for m in real:
            rows = m.sentence_ids
            assert len(rows) == 1 or len(rows) * (source[rows].max() + target[rows].max()) <= max_tokens


def test_a_rank_without_a_sentence_gets_a_filler():
    lengths = np.array([5, 9], dtype=np.int32)
    shares = [
        divide_update(np.arange(2), lengths, lengths, max_tokens=100, overhead=0, rank=rank, num_ranks=3)
        for rank in range(3)
    ]
    assert [[m.is_filler for m in share] for share in shares] == [[False], [False], [True]]
    assert shares[2][0].sentence_ids.tolist() == [0]  # the shortest: it costs least


def cost_of(bounds, source, target, *, max_tokens, overhead):
    """The cost of cutting rows so, None where a run of several rows is above max_tokens."""
    total = 0
    for start, end in itertools.pairwise(bounds):
        padded = (end - start) * int(source[start:end].max() + target[start:end].max())
        if padded > max_tokens and end - start > 1:
            return None
        total += overhead + padded
    return total


def test_the_cuts_of_an_update_cost_least():
    """Every way to cut up to 8 rows, against the one that is found."""
    rng = np.random.default_rng(0)
    for _ in range(100):
        num_rows = int(rng.integers(1, 9))
        target = np.sort(rng.integers(1, 30, num_rows))[::-1].astype(np.int64)
        source = rng.integers(1, 30, num_rows)
        budget = {"max_tokens": int(rng.integers(20, 300)), "overhead": int(rng.integers(0, 60))}
        inner = [cuts for n in range(num_rows) for cuts in itertools.combinations(range(1, num_rows), n)]
        costs = [cost_of([0, *cuts, num_rows], source, target, **budget) for cuts in inner]
        found = cut_at_least_cost(source, target, **budget)
        assert cost_of(found.tolist(), source, target, **budget) == min(cost for cost in costs if cost is not None)


@pytest.mark.parametrize("max_tokens", [500, 4_096])
def test_a_large_update_is_cut_almost_as_well_as_a_small_one(monkeypatch, max_tokens):
    """Cuts at every 16th row and every change of the target's length, none of whose runs is above the budget."""
    source, target = draw_lengths(1_000)
    order = np.lexsort((-source, -target))
    source, target = source[order].astype(np.int64), target[order].astype(np.int64)
    budget = {"max_tokens": max_tokens, "overhead": 100}
    costs = []
    for exact_rows in (256, 1_000):
        monkeypatch.setattr(division, "EXACT_ROWS", exact_rows)
        costs.append(cost_of(cut_at_least_cost(source, target, **budget).tolist(), source, target, **budget))
    assert costs[1] <= costs[0] <= 1.02 * costs[1]


def test_a_larger_overhead_makes_fewer_micro_batches():
    source, target = draw_lengths(5_000)
    ids, one_rank = np.arange(200, 232), {"max_tokens": 8_192, "rank": 0, "num_ranks": 1}
    counts = [len(divide_update(ids, source, target, overhead=n, **one_rank)) for n in (0, 100, 1_000, 10_000)]
    assert counts == sorted(counts, reverse=True) and counts[0] > counts[-1] == 1


def test_ranks_have_equal_loads():
    source, target = draw_lengths(51_200)
    plan = plan_epoch(target, Budget(sentences=512), seed=0, epoch=0)
    ratios = []
    for u in range(20):
        loads = []
        for rank in range(8):
            share = divide_update(
                plan.sentence_ids(u), source, target, max_tokens=4_096, overhead=100, rank=rank, num_ranks=8
            )
            rows = [one.sentence_ids for one in share if not one.is_filler]
            loads.append(sum(len(ids) * int(source[ids].max() + target[ids].max()) for ids in rows))
        ratios.append(max(loads) / np.mean(loads))
    assert np.mean(ratios) < 1.1


def test_cut_by_tokens_fills_a_run_to_the_brim():
    # 3 rows of 10 source and 10 target tokens are 60 padded tokens; the fourth would be 80.
    tens = np.full(7, 10, dtype=np.int32)
    assert [len(run) for run in cut_by_tokens(np.arange(7), tens, tens, max_tokens=60)] == [3, 3, 1]


def test_evaluation_batches_are_global_sorted_and_complete():
    source, _ = draw_lengths(3_000)
    batches = plan_evaluation(source, max_tokens=500)
    assert np.array_equal(np.sort(np.concatenate(batches)), np.arange(3_000))
    longest = [source[batch].max() for batch in batches]
    assert longest == sorted(longest, reverse=True)
    assert all(len(b) * source[b].max() <= 500 for b in batches)


@pytest.mark.parametrize("wrong", [{}, {"tokens": 1, "sentences": 1}, {"tokens": 0}, {"sentences": -1}])
def test_a_budget_is_one_positive_number(wrong):
    with pytest.raises(ValueError, match="update"):
        Budget(**wrong)


def test_no_sentences_is_an_error():
    empty = np.array([], dtype=np.int32)
    with pytest.raises(ValueError, match="0 sentences"):
        plan_epoch(empty, Budget(sentences=1), seed=0, epoch=0)


# Shapes


def heavy_tailed_lengths(num):
    """As user-interface strings are: half of them short, a few very long, sources and targets alike."""
    rng = np.random.default_rng(5)
    source = np.clip(np.exp(rng.normal(2.0, 1.0, num)), 2, 120).astype(np.int32)
    target = np.clip(source * rng.uniform(0.7, 1.6, num), 2, 120).astype(np.int32)
    return source, target


def shapes_for(source, target, budget, **options):
    defaults = {"max_tokens": 1_000, "overhead": 64, "num_ranks": 1, "longest": (120, 120)}
    return choose_shapes(source, target, budget, **{**defaults, **options})


@pytest.mark.parametrize("budget", [Budget(tokens=400), Budget(sentences=16), Budget(sentences=1)])
@pytest.mark.parametrize("num_ranks", [1, 2, 8])
@pytest.mark.parametrize("max_shapes", [1, pytest.param(4, marks=pytest.mark.slow), 8])
@pytest.mark.slow
def test_shapes_hold_every_sentence_once_and_are_the_same_on_every_rank(budget, num_ranks, max_shapes):
    source, target = heavy_tailed_lengths(2_000)
    shapes = shapes_for(source, target, budget, num_ranks=num_ranks, max_shapes=max_shapes)
    assert 1 <= len(shapes) <= max_shapes
    assert all(shape.num_tokens <= 1_000 or shape.rows == 1 for shape in shapes)
    plan = plan_epoch(target, budget, seed=9, epoch=2)  # not the updates that the shapes were chosen on
    for u in range(0, plan.num_updates, max(7, plan.num_updates // 40)):
        ids = plan.sentence_ids(u)
        shares = [
            divide_into_shapes(ids, source, target, shapes=shapes, rank=rank, num_ranks=num_ranks)
            for rank in range(num_ranks)
        ]
        for passes in zip(*shares, strict=True):
            assert len({one.shape for one in passes}) == 1 and passes[0].shape in shapes
            assert any(one.num_real for one in passes)  # no pass is all padding
            for one in passes:
                assert len(one.sentence_ids) == one.shape.rows
                assert source[one.sentence_ids].max() <= one.shape.source
                assert target[one.sentence_ids].max() <= one.shape.target
        real = np.concatenate([one.sentence_ids[: one.num_real] for share in shares for one in share])
        assert sorted(real) == sorted(ids)


def test_shapes_are_multiples_of_eight_but_never_beyond_the_model():
    source = target = np.array([3, 9, 21, 98], dtype=np.int32)
    budget = Budget(sentences=4)
    assert shapes_for(source, target, budget, longest=(128, 128))[-1].source == 104
    last = shapes_for(source, target, budget, longest=(100, 99))[-1]
    assert (last.source, last.target) == (100, 99)
    assert all(shape.source % 8 == 0 for shape in shapes_for(source, target, budget, longest=(128, 128)))


def test_the_cheapest_shapes_are_found():
    """Updates of 60 rows of 8 tokens and 16 of 80: two shapes pad nothing, and no third is wanted."""
    target = np.array([8] * 60 + [80] * 16, dtype=np.int32)
    shapes = shapes_for(target, target, Budget(sentences=76), max_tokens=320)
    passes = divide_into_shapes(np.arange(76), target, target, shapes=shapes, rank=0, num_ranks=1)
    assert [(shape.source, shape.target) for shape in shapes] == [(8, 8), (80, 80)]
    # 320 tokens are 20 rows of 8 + 8, so 3 passes, and 2 of 80 + 80, so 8 passes.
    assert sum(one.shape.num_tokens for one in passes) == 2 * target.sum()


def test_buckets_pad_far_less_than_one_shape_does():
    source, target = heavy_tailed_lengths(20_000)
    share = {}
    for max_shapes in (1, 8):
        shapes = shapes_for(source, target, Budget(tokens=1_000), max_tokens=4_096, max_shapes=max_shapes)
        plan = plan_epoch(target, Budget(tokens=1_000), seed=0, epoch=1)
        real = padded = 0
        for u in range(0, plan.num_updates, 5):
            ids = plan.sentence_ids(u)
            passes = divide_into_shapes(ids, source, target, shapes=shapes, rank=0, num_ranks=1)
            real += source[ids].sum() + target[ids].sum()
            padded += sum(one.shape.num_tokens for one in passes)
        share[max_shapes] = real / padded
    # Mean length over longest is 11 / 120 for a single shape; a bucket of a factor 1.5 in length gives 5 in 6 at best.
    assert share[1] < 0.2 and share[8] > 0.55


def test_evaluation_batches_of_few_shapes_are_complete():
    source, _ = heavy_tailed_lengths(700)
    nothing = np.zeros_like(source)
    shapes = choose_evaluation_shapes(source, nothing, max_tokens=600)
    batches = divide_into_shapes(np.arange(700), source, nothing, shapes=shapes, rank=0, num_ranks=1)
    assert len({one.shape for one in batches}) <= 3
    assert all(one.shape.num_tokens <= 600 and one.shape.target == 0 for one in batches)
    assert sorted(np.concatenate([one.sentence_ids[: one.num_real] for one in batches])) == list(range(700))


def test_the_losses_of_an_evaluation_are_of_few_shapes_too():
    source, target = heavy_tailed_lengths(700)
    batches = plan_static_evaluation(source, target, max_tokens=900)
    assert len({batch.shape for batch in batches}) <= 3
    assert all(target[batch.sentence_ids].max() <= batch.shape.target for batch in batches)
    assert sorted(np.concatenate([one.sentence_ids[: one.num_real] for one in batches])) == list(range(700))
    assert batches[0].shape == max((batch.shape for batch in batches), key=lambda shape: shape.source + shape.target)
