"""Runs of these tests are built on the GPU: new_run() takes the `runtime` that stands here."""

import pytest


@pytest.fixture
def runtime(fresh_accelerate, request):
    """One process on the first GPU, in fp32 or in the precision that the test gives as parameter."""
    from mtloop.config.environment import HardwareConfig
    from mtloop.runtime.ranks import Runtime

    started = Runtime(HardwareConfig(cpu_threads=1, mixed_precision=getattr(request, "param", "no")))
    yield started
    started.close()
