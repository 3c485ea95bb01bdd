"""Settings that make the unit tests cheap: one thread, each table of sines computed once, no plot at the end of a run.

The models of these tests have a few hundred kilobytes: a second thread would only wait. Sines and plots would otherwise
take half of the CPU time of every test that trains.
"""

import gc
import signal
import sys

import pytest


@pytest.fixture(autouse=True)
def no_curves(request, monkeypatch):
    """Leave curves.png out, except in a test that uses the fixture `curves`."""
    if "mtloop.trainer.loop" in sys.modules and "curves" not in request.fixturenames:
        monkeypatch.setattr(sys.modules["mtloop.trainer.loop"], "draw_curves", lambda folder: None)


@pytest.fixture(autouse=True)
def signal_handlers():
    """Fail a test that leaves a handler behind: what later tests fork would inherit it, and might not end."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    yield
    assert [signal.getsignal(number) for number in numbers] == before


@pytest.fixture
def curves():
    """Let the runs of this test draw curves.png."""


def pytest_collection_finish(session):
    """Change what the test modules have imported; import nothing for those that need no library."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    if "transformers" in sys.modules:
        from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding
        from transformers.models.pegasus.modeling_pegasus import PegasusSinusoidalPositionalEmbedding

        for embedding in (MarianSinusoidalPositionalEmbedding, PegasusSinusoidalPositionalEmbedding):
            cache_sines(embedding)
    gc.collect()
    gc.freeze()  # later collections pass over what the imports created


def cache_sines(embedding):
    """Compute fixed positions once for each shape: transformers 5.24 takes 0.1 s, value by value."""
    create, tables = embedding.create_weight, {}

    def cached(self):
        key = (*self.weight.shape, self.weight.dtype)
        if key not in tables:
            tables[key] = create(self)
        return tables[key].clone()

    embedding.create_weight = cached
