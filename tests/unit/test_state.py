"""Test the counters of a run."""

import json

import pytest

from mtloop.checkpoint.state import TrainState


def test_advance_ends_an_epoch():
    state = TrainState()
    for _ in range(7):
        state.advance(target_tokens=10, updates_in_epoch=3, time_s=0.5)
    # 7 updates of 3 an epoch: two epochs and one update.
    assert (state.step, state.epoch, state.cursor) == (7, 2, 1)
    assert (state.target_tokens, state.train_time_s) == (70, 3.5)
    assert not state.is_epoch_end
    state.advance(target_tokens=1, updates_in_epoch=2, time_s=0.0)
    assert state.is_epoch_end


@pytest.mark.parametrize(
    ("scores", "is_greater_better", "best", "without_gain"),
    [([10.0, 30.0, 20.0, 30.0], True, 30.0, 2), ([3.0, 1.0, 2.0], False, 1.0, 1), ([float("nan"), 5.0], True, 5.0, 0)],
)
def test_record_score_counts_evaluations_without_gain(scores, is_greater_better, best, without_gain):
    state = TrainState()
    for step, score in enumerate(scores, start=1):
        state.step = step
        state.record_score(score, is_greater_better=is_greater_better)
    assert state.best_score == best
    assert state.best_step == scores.index(best) + 1
    assert state.num_evaluations_without_gain == without_gain


def test_state_dict_round_trip_through_json():
    state = TrainState(step=5, epoch=1, cursor=2, target_tokens=99, best_score=41.5, best_step=3)
    restored = TrainState()
    restored.load_state_dict(json.loads(json.dumps(state.state_dict())))
    assert restored == state


def test_load_state_dict_refuses_unknown_entries():
    with pytest.raises(ValueError, match="phase_of_moon"):
        TrainState().load_state_dict({"step": 1, "phase_of_moon": 3})
