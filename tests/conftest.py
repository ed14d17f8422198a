"""Fixtures that all tests share."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A local Ray for the whole test session; its workers import the package from this checkout, and the tests."""
    import ray

    tests = Path(__file__).resolve().parent
    ray.init(
        address="local",  # never the cluster that somebody has started on this machine for something else
        num_cpus=8,
        include_dashboard=False,
        logging_level="ERROR",
        runtime_env={"env_vars": {"PYTHONPATH": f"{tests.parent}{os.pathsep}{tests}"}},
    )
    yield
    ray.shutdown()
