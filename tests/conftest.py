"""Fixtures that all tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A local Ray for the whole test session; its workers import the package from this checkout."""
    import ray

    root = str(Path(__file__).resolve().parents[1])
    ray.init(
        address="local",  # never a cluster that something else has started on this machine
        num_cpus=8,
        include_dashboard=False,
        logging_level="ERROR",
        runtime_env={"env_vars": {"PYTHONPATH": root}},
    )
    yield
    ray.shutdown()
