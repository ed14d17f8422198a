"""Fixtures that all tests share."""

import os
from collections.abc import Iterator

import pytest

from tests.support.paths import ROOT


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A local Ray for the whole test session; its workers import the package and the tests from this checkout."""
    import ray

    ray.init(
        address="local",  # never the cluster that somebody has started on this machine for something else
        num_cpus=8,
        include_dashboard=False,
        logging_level="ERROR",
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def process_group() -> Iterator[None]:
    """That of ranks made in this process. DeepSpeed keeps references to it, so there is one for all tests."""
    import torch

    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks_in_this_process(process_group: None) -> Iterator[None]:
    """Ranks made in this process must leave no trace for the tests that follow."""
    import torch

    before, threads = dict(os.environ), torch.get_num_threads()
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)
    os.environ.clear()
    os.environ.update(before)
