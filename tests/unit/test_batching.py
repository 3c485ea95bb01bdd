"""The plan: every sentence once, budgets kept, nothing that depends on ranks."""

import numpy as np
import pytest

from mtloop.batching import Budget, count_updates, cut_by_tokens, divide_update, plan_epoch, plan_evaluation


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
    plan = plan_epoch(source, target, budget, seed=7, epoch=2)
    updates = [plan.sentence_ids(u) for u in range(plan.num_updates)]
    assert np.array_equal(np.sort(np.concatenate(updates)), np.arange(num_sentences))
    assert all(len(ids) > 0 for ids in updates)
    assert plan.num_updates == count_updates(target, budget)


def test_updates_hold_the_token_budget():
    source, target = draw_lengths(70_000)
    plan = plan_epoch(source, target, Budget(tokens=1_000), seed=0, epoch=0)
    tokens = np.array([target[plan.sentence_ids(u)].sum() for u in range(plan.num_updates)])
    # A share is total / floor(total / 1000), so between 1000 and 1000 * (1 + 1/updates); the sentence that crosses a
    # border (at most 128 tokens) falls to one side of it, at either end.
    assert tokens.min() >= 1_000 - 128
    assert tokens.max() <= 1_000 * (1 + 1 / plan.num_updates) + 128 + 1


def test_updates_hold_the_sentence_budget_and_the_rest_is_one_update():
    source, target = draw_lengths(70_001)
    plan = plan_epoch(source, target, Budget(sentences=32), seed=0, epoch=0)
    sizes = sorted(np.diff(plan.bounds))
    # 70,001 = 2,187 * 32 + 17
    assert sizes[0] == 17 and set(sizes[1:]) == {32} and len(sizes) == 2_188


def test_the_course_has_5912_updates_an_epoch():
    # 189,155 training pairs of KDE4 English-French, 32 an update: 5,911.09 rounded up.
    assert count_updates(np.ones(189_155, dtype=np.int32), Budget(sentences=32)) == 5_912


def test_a_sentence_longer_than_the_budget_still_leaves_no_update_empty():
    lengths = np.array([128] + [1] * 300, dtype=np.int32)
    plan = plan_epoch(lengths, lengths, Budget(tokens=10), seed=0, epoch=0)
    # The share grows to the longest target: 428 // 128 = 3 updates.
    assert plan.num_updates == 3
    assert all(len(plan.sentence_ids(u)) for u in range(3))


def test_plan_depends_on_seed_and_epoch_and_on_nothing_else():
    source, target = draw_lengths(5_000)

    def order(seed, epoch):
        return plan_epoch(source, target, Budget(tokens=500), seed=seed, epoch=epoch).order

    assert np.array_equal(order(1, 0), order(1, 0))
    assert not np.array_equal(order(1, 0), order(1, 1))
    assert not np.array_equal(order(1, 0), order(2, 0))


def test_rows_of_an_update_are_of_one_length():
    source, target = draw_lengths(70_000)
    plan = plan_epoch(source, target, Budget(tokens=1_000), seed=0, epoch=0)
    real = padded = 0
    for u in range(plan.num_updates):
        lengths = target[plan.sentence_ids(u)]
        real, padded = real + lengths.sum(), padded + lengths.max() * len(lengths)
    # Sorted in pools of 32,768, an update of some 80 neighbours spans less than two lengths; random rows give 24 %.
    assert real / padded > 0.97


def test_updates_do_not_come_in_order_of_length():
    source, target = draw_lengths(30_000)
    plan = plan_epoch(source, target, Budget(sentences=32), seed=0, epoch=0)
    means = [target[plan.sentence_ids(u)].mean() for u in range(plan.num_updates)]
    # Shuffled: neighbours correlate as little as noise of 938 updates does (standard error 0.033).
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.13


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("max_tokens", [1, 150, 4_096])
def test_ranks_divide_an_update_without_remainder(num_ranks, max_tokens):
    source, target = draw_lengths(5_000)
    plan = plan_epoch(source, target, Budget(sentences=21), seed=0, epoch=0)
    for u in range(0, plan.num_updates, 17):
        ids = plan.sentence_ids(u)
        shares = [
            divide_update(ids, source, target, max_tokens=max_tokens, rank=rank, num_ranks=num_ranks)
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
        divide_update(np.arange(2), lengths, lengths, max_tokens=100, rank=rank, num_ranks=3) for rank in range(3)
    ]
    assert [[m.is_filler for m in share] for share in shares] == [[False], [False], [True]]
    assert shares[2][0].sentence_ids.tolist() == [0]  # the shortest: it costs least


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
    with pytest.raises(ValueError, match="0 sources"):
        plan_epoch(empty, empty, Budget(sentences=1), seed=0, epoch=0)
