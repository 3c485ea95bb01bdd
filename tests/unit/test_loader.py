"""loader: batches as a plain loop would pad them, every sentence once, whatever the ranks, workers and cursor."""

import contextlib
import errno
import itertools
import multiprocessing
import os
import signal
from collections import Counter

import numpy as np
import pytest
import torch
from datasets import concatenate_datasets

from mtloop.batching.loader import IGNORE_INDEX, TrainLoader, collate
from mtloop.batching.plan import Budget, plan_epoch
from mtloop.batching.shapes import choose_shapes

PAD = 399


@pytest.fixture(scope="module")
def small_set(encoded_sample):
    """150 encoded rows with their lengths."""
    rows = encoded_sample.rows.select(range(150))
    return rows, encoded_sample.source_lengths[:150], encoded_sample.target_lengths[:150]


@pytest.fixture
def new_loader(small_set):
    rows, source_lengths, target_lengths = small_set

    def build(**options):
        defaults = {
            "encoded": rows,
            "source_lengths": source_lengths,
            "target_lengths": target_lengths,
            "budget": Budget(tokens=200),
            "max_tokens_per_micro_batch": 120,
            "micro_batch_overhead": 20,
            "pad_id": PAD,
            "seed": 3,
            "rank": 0,
            "num_ranks": 1,
        }
        return TrainLoader(**{**defaults, **options})

    return build


def epoch_of(loader, *, epoch=0, cursor=0):
    """The updates that are left of an epoch."""
    return list(itertools.islice(loader.updates(epoch=epoch, cursor=cursor), loader.updates_per_epoch - cursor))


def pairs_in(updates):
    """The sentences that count, as (source pieces, target pieces), read back from the tensors."""
    found = []
    for batch in itertools.chain.from_iterable(update.micro_batches for update in updates):
        for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
            if (labels != IGNORE_INDEX).any():
                found.append((tuple(ids[mask == 1].tolist()), tuple(labels[labels != IGNORE_INDEX].tolist())))
    return found


def all_pairs(rows):
    columns = rows[:]
    return Counter(zip(map(tuple, columns["input_ids"]), map(tuple, columns["labels"]), strict=True))


def assert_same(left, right):
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert np.array_equal(one.sentence_ids, other.sentence_ids)
        assert (one.target_tokens, one.updates_in_epoch) == (other.target_tokens, other.updates_in_epoch)
        assert len(one.micro_batches) == len(other.micro_batches)
        for a, b in zip(one.micro_batches, other.micro_batches, strict=True):
            assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# Collation


def padded_by_hand(rows, row_ids):
    picked = [rows[int(i)] for i in row_ids]
    longest_source = max(len(row["input_ids"]) for row in picked)
    longest_target = max(len(row["labels"]) for row in picked)
    batch = {"input_ids": [], "attention_mask": [], "labels": []}
    for row in picked:
        missing = longest_source - len(row["input_ids"])
        batch["input_ids"].append(row["input_ids"] + [PAD] * missing)
        batch["attention_mask"].append([1] * len(row["input_ids"]) + [0] * missing)
        batch["labels"].append(row["labels"] + [IGNORE_INDEX] * (longest_target - len(row["labels"])))
    batch["target_positions"] = [
        r * longest_target + t for r, row in enumerate(picked) for t in range(len(row["labels"]))
    ]
    return {name: torch.tensor(values) for name, values in batch.items()}


@pytest.mark.parametrize("kind", ["as it is", "in pieces", "selected"])
@pytest.mark.parametrize("row_ids", [[7], [149, 0, 75, 0], list(range(40, 60)), "random"])
def test_collate_pads_as_a_plain_loop_does(small_set, kind, row_ids):
    rows = small_set[0]
    if kind == "in pieces":  # several Arrow chunks, as the shards of several tokenizing processes
        rows = concatenate_datasets([rows.select(range(start, start + 50)) for start in range(0, 150, 50)])
    if kind == "selected":  # an indices mapping, as --drop_long leaves it
        rows = rows.select(np.random.default_rng(0).permutation(150))
    if row_ids == "random":
        row_ids = np.random.default_rng(1).integers(0, 150, size=64)
    batch = collate(rows, row_ids, pad_id=PAD)
    expected = padded_by_hand(rows, row_ids)
    assert batch.keys() == expected.keys()
    for name, tensor in expected.items():
        assert batch[name].dtype == torch.int64 and torch.equal(batch[name], tensor)


def test_a_piece_that_is_pad_is_not_taken_for_padding(small_set):
    """The mask comes from lengths: a text may hold the padding piece itself."""
    rows = small_set[0]
    piece = rows[0]["input_ids"][0]
    batch = collate(rows, range(8), pad_id=piece)
    lengths = [len(rows[i]["input_ids"]) for i in range(8)]
    assert batch["attention_mask"].sum(dim=1).tolist() == lengths


# An epoch


@pytest.mark.parametrize("num_ranks", [1, pytest.param(2, marks=pytest.mark.full), 3])
@pytest.mark.parametrize("budget", [Budget(tokens=200), pytest.param(Budget(sentences=7), marks=pytest.mark.slow)])
@pytest.mark.parametrize("cursor", [pytest.param(0, marks=pytest.mark.slow), 5])
def test_every_sentence_counts_once_over_all_ranks(new_loader, small_set, num_ranks, budget, cursor):
    loaders = [new_loader(budget=budget, rank=rank, num_ranks=num_ranks) for rank in range(num_ranks)]
    by_rank = [epoch_of(loader, epoch=1, cursor=cursor) for loader in loaders]
    plan = plan_epoch(small_set[2], budget, seed=3, epoch=1)
    left = plan.order[plan.bounds[cursor] :]
    assert cursor or len(left) == 150
    assert sum((Counter(pairs_in(updates)) for updates in by_rank), Counter()) == all_pairs(small_set[0].select(left))
    for shares in zip(*by_rank, strict=True):
        first = shares[0]
        # The ranks agree on the update, and pass it in equally many forwards.
        assert all(np.array_equal(share.sentence_ids, first.sentence_ids) for share in shares)
        assert len({len(share.micro_batches) for share in shares}) == 1
        assert Counter(pairs_in(shares)) == all_pairs(small_set[0].select(first.sentence_ids))
        labels = [batch["labels"] for share in shares for batch in share.micro_batches]
        assert {share.target_tokens for share in shares} == {sum(int((one != IGNORE_INDEX).sum()) for one in labels)}
        assert {share.updates_in_epoch for share in shares} == {plan.num_updates}


def test_micro_batches_keep_within_their_budget(new_loader):
    for batch in itertools.chain.from_iterable(update.micro_batches for update in epoch_of(new_loader())):
        width = batch["input_ids"].shape[1] + batch["labels"].shape[1]
        assert width * len(batch["labels"]) <= 120 or len(batch["labels"]) == 1


@pytest.mark.parametrize("num_ranks", [3, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_micro_batches_of_given_shapes_hold_the_same_sentences(new_loader, small_set, num_ranks):
    rows, source_lengths, target_lengths = small_set
    limits = {"max_tokens": 120, "overhead": 20, "longest": (64, 64)}
    shapes = choose_shapes(source_lengths, target_lengths, Budget(tokens=200), num_ranks=num_ranks, **limits)
    plain = epoch_of(new_loader())
    by_rank = [epoch_of(new_loader(shapes=shapes, rank=rank, num_ranks=num_ranks)) for rank in range(num_ranks)]
    for update, *shares in zip(plain, *by_rank, strict=True):
        assert Counter(pairs_in(shares)) == Counter(pairs_in([update]))
        for share in shares:
            assert (share.target_tokens, share.updates_in_epoch) == (update.target_tokens, update.updates_in_epoch)
            for batch in share.micro_batches:
                found = (*batch["input_ids"].shape, batch["labels"].shape[1])
                assert found in {(shape.rows, shape.source, shape.target) for shape in shapes}
                # A row without a single real token gives NaN in some families.
                assert batch["attention_mask"].any(dim=1).all()


@pytest.mark.slow
def test_the_share_of_real_tokens_is_that_of_the_tensors(new_loader):
    """The whole epoch is below the sample of the line that is printed, so both count the same."""
    longest = {"longest": (64, 64), "max_tokens": 120, "overhead": 20, "num_ranks": 1}
    lengths = new_loader().source_lengths, new_loader().target_lengths
    for shapes in ([], choose_shapes(*lengths, Budget(tokens=200), **longest)):
        loader = new_loader(shapes=shapes)
        batches = [batch for update in epoch_of(loader) for batch in update.micro_batches]
        real = sum(int(batch["attention_mask"].sum() + (batch["labels"] != IGNORE_INDEX).sum()) for batch in batches)
        # Copies that fill a shape have a source that the model sees: not real all the same.
        copies = [(batch["labels"] == IGNORE_INDEX).all(dim=1) for batch in batches]
        real -= sum(int(b["attention_mask"][c].sum()) for b, c in zip(batches, copies, strict=True))
        padded = sum(batch["input_ids"].numel() + batch["labels"].numel() for batch in batches)
        assert loader.share_of_real_tokens() == pytest.approx(real / padded, abs=1e-12)


@pytest.mark.slow
def test_a_filler_counts_nothing(new_loader):
    """One sentence an update on three ranks: two of them only keep in step."""
    updates = [epoch_of(new_loader(budget=Budget(sentences=1), rank=rank, num_ranks=3)) for rank in range(3)]
    for shares in zip(*updates, strict=True):
        assert [len(share.micro_batches) for share in shares] == [1, 1, 1]
        real = [bool((share.micro_batches[0]["labels"] != IGNORE_INDEX).any()) for share in shares]
        assert real == [True, False, False]
        for share in shares[1:]:
            batch = share.micro_batches[0]
            assert (batch["labels"] == IGNORE_INDEX).all()
            assert batch["attention_mask"].any()  # a forward without a single real token gives NaN in some families


@pytest.mark.slow
def test_each_epoch_has_its_own_order_and_the_next_follows(new_loader):
    loader = new_loader()
    num = loader.updates_per_epoch
    three = list(itertools.islice(loader.updates(epoch=0, cursor=0), 2 * num + 1))
    assert num > 5
    assert_same(three[:num], epoch_of(loader, epoch=0))
    assert_same(three[num : 2 * num], epoch_of(loader, epoch=1))
    assert_same(three[2 * num :], epoch_of(loader, epoch=2)[:1])
    orders = [[update.sentence_ids.tolist() for update in epoch_of(loader, epoch=epoch)] for epoch in range(2)]
    assert orders[0] != orders[1]
    assert orders[0] != [update.sentence_ids.tolist() for update in epoch_of(new_loader(seed=4))]


@pytest.mark.parametrize(
    "cursor", [pytest.param(1, marks=pytest.mark.slow), 5, pytest.param(-1, marks=pytest.mark.slow)]
)
@pytest.mark.slow
def test_a_resume_at_a_cursor_goes_on_with_exactly_the_rest(new_loader, cursor):
    loader = new_loader()
    whole = epoch_of(loader, epoch=2)
    cursor %= len(whole)
    ahead = list(itertools.islice(loader.updates(epoch=2, cursor=cursor), len(whole) - cursor + 2))
    assert_same(ahead[: len(whole) - cursor], whole[cursor:])
    assert_same(ahead[len(whole) - cursor :], epoch_of(loader, epoch=3)[:2])


# Workers and placement


@pytest.mark.slow
def test_worker_processes_give_the_same_batches(new_loader):
    alone = list(itertools.islice(new_loader().updates(epoch=0, cursor=3), 10))
    shared = list(itertools.islice(new_loader(num_workers=2).updates(epoch=0, cursor=3), 10))
    assert_same(shared, alone)


@pytest.mark.slow
def test_a_worker_survives_the_signals_that_stop_a_run(new_loader):
    """They reach the whole process group, and a worker that dies takes the trainer with it before it can save."""
    loader = new_loader(num_workers=1)
    updates = loader.updates(epoch=0, cursor=0)
    seen = [next(updates)]
    (worker,) = multiprocessing.active_children()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        os.kill(worker.pid, number)
    seen += itertools.islice(updates, loader.updates_per_epoch - 1)
    assert_same(seen, epoch_of(new_loader()))


@pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_accelerates_placement_changes_nothing(new_loader, runtime, num_workers):
    placed = new_loader(place=runtime.place_batches, num_workers=num_workers)
    for epoch in range(2):
        assert_same(epoch_of(placed, epoch=epoch, cursor=2), epoch_of(new_loader(), epoch=epoch, cursor=2))


@pytest.mark.slow
def test_reading_ahead_does_not_change_what_is_random(new_loader):
    """Randomness of an update is a function of (seed, step, rank): the loader must not depend on it."""
    torch.manual_seed(1)
    first = epoch_of(new_loader())
    torch.manual_seed(2)
    assert_same(epoch_of(new_loader()), first)


@pytest.mark.slow
def test_a_worker_that_is_stopped_is_an_error_after_the_timeout(new_loader):
    """Also in the middle of a batch that it sends: the pipe is full while the trainer computes."""
    with contextlib.closing(new_loader(num_workers=1, worker_timeout=1.0).updates(epoch=0, cursor=0)) as updates:
        next(updates)
        (worker,) = multiprocessing.active_children()
        os.kill(worker.pid, signal.SIGSTOP)
        with pytest.raises(RuntimeError, match="DataLoader worker did not answer within 1.0 s"):
            for _ in range(10):
                next(updates)
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_workers_send_batches_by_value(new_loader):
    """Neither a file of /dev/shm nor a descriptor for each tensor: both are short in containers."""
    number = len(os.listdir("/proc/self/fd"))
    updates = new_loader(num_workers=1).updates(epoch=0, cursor=0)
    first = next(updates)
    before = len(os.listdir("/proc/self/fd"))
    kept = [first, *itertools.islice(updates, 5)]
    assert len(os.listdir("/proc/self/fd")) == before > number and len(kept) == 6
    assert not any(tensor.is_shared() for update in kept for batch in update.micro_batches for tensor in batch.values())
    updates.close()


def test_a_worker_that_cannot_be_started_is_an_error(new_loader, monkeypatch, capfd):
    def refuse(process):
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", refuse)
    with pytest.raises(RuntimeError, match="DataLoader worker could not be started .Resource temporarily unavailable"):
        next(new_loader(num_workers=2).updates(epoch=0, cursor=0))
    assert capfd.readouterr().err == ""  # torch's loader, half made, complains when it is dropped
