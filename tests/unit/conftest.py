"""Settings that make the unit tests cheap: one thread, and no plot at the end of a run.

The models of these tests have a few hundred kilobytes: a second thread would only wait.
"""

import gc
import sys

import pytest


@pytest.fixture(autouse=True)
def no_curves(request, monkeypatch):
    """Leave curves.png out, except in a test that uses the fixture `curves`."""
    if "mtloop.tracking" in sys.modules and "curves" not in request.fixturenames:
        monkeypatch.setattr(sys.modules["mtloop.tracking"].Tracker, "draw_curves", lambda self: None)


@pytest.fixture
def curves():
    """Let the runs of this test draw curves.png."""


def pytest_collection_finish(session):
    """Change what the test modules have imported; import nothing for those that need no library."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    gc.collect()
    gc.freeze()  # later collections pass over what the imports created
