"""Fixtures that all tests share, the marks that follow from them, and the order in which tests run.

``make quick`` leaves out what is marked ``slow`` (starts a process, or takes over 2 seconds), ``engine`` (starts Ray or
inference engines) or ``gpu``. What is no unit test, and tests that ask for ``ray_session``, are marked here.
"""

import os
import platform
import subprocess
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from calibrated_rl.runtime import console
from tests.support.paths import ROOT

# Before torch is loaded, and for all that tests start: threads that wait sleep. Those that spin make tests on a busy
# machine up to seven times slower.
_ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0", "OMP_NUM_THREADS": "1",
    "RAY_prestart_worker_first_driver": "0",  # workers in advance, which no test uses
}  # fmt: skip
for _name, _value in _ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

# How long an example takes says more of what else the machine does than of the test; pytest's time-out ends what hangs.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

FOLDERS = ("e2e", "integration", "unit")
"""In the order in which tests run: with several workers the longest files start first."""

MEMORY_OF_A_WORKER = 12
"""GiB at worst, with all engines and ranks that its tests start."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """What ``-n auto`` means here: a worker a core, as far as the memory goes."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return max(1, min(os.cpu_count() or 1, round(memory / MEMORY_OF_A_WORKER)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name != "unit":
            item.add_marker("slow")
        if "ray_session" in getattr(item, "fixturenames", ()) or item.path.parent.name == "e2e":
            item.add_marker("engine")
    items.sort(key=lambda item: (*FOLDERS, item.path.parent.name).index(item.path.parent.name))


@pytest.fixture(autouse=True)
def no_process_but_in_slow_tests(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``make quick`` runs starts no process: each takes seconds until it has loaded the package."""
    if any(request.node.get_closest_marker(name) for name in ("slow", "engine", "gpu")):
        return

    platform.platform()  # runs uname the first time; openai wants it with the first request of all

    def refuse(*arguments: object, **options: object) -> None:
        pytest.fail("a test that starts a process is marked `slow`")

    monkeypatch.setattr(subprocess.Popen, "__init__", refuse)


@pytest.fixture(autouse=True)
def console_as_before() -> Iterator[None]:
    """A command that a test calls in this process sets up what is printed, for itself alone."""
    yield
    console.reset()


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
