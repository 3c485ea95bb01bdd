"""Ranks tell each other the same in tensors as in objects: XLA has no collective of objects."""

import json

import pytest

from tests.support.launch import launch

pytestmark = pytest.mark.distributed


def test_what_ranks_exchange_as_tensors_is_what_they_exchange_as_objects(tmp_path):
    launch("tests/distributed/worker_exchange.py", tmp_path, num_processes=2)
    by_rank = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    for found, plain, tensors in by_rank:
        assert found == {"lengths": [10, 5_010], "ranks": [0, 1]}
        assert plain["items"] == tensors["items"] == [0, None, 1, None]
        assert plain["main"] == tensors["main"] == 0
        assert plain["sum"] == tensors["sum"] == [1.0, 1.0]
        # Rows that only fill the gathered table are all -1, and may be more or fewer.
        assert [[r for r in rows if r != [-1] * 3] for rows in (plain["rows"], tensors["rows"])] == [[[7] * 3]] * 2
