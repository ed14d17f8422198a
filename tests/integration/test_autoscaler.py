"""Ray's own autoscaler with our provider: nodes come by label, are refused, die, and go when they are idle."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tools.autoscale.cluster import LocalCluster, local_cluster

pytestmark = [pytest.mark.timeout(1200), pytest.mark.engine, pytest.mark.slow]

ACTORS = """
import sys, time, ray
ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)
@ray.remote(num_cpus=1, max_restarts=-1)
class Part:
    def where(self):
        return ray.get_runtime_context().get_node_id()
parts = [Part.options(label_selector={"part": part}).remote() for part in ("rollout", "rollout", "learner")]
print("asked", flush=True)
while True:
    try:
        nodes = ray.get([part.where.remote() for part in parts], timeout=5)
        print("placed", len(set(nodes)), flush=True)
    except (ray.exceptions.RayError, TimeoutError):
        print("waiting", flush=True)
    time.sleep(0.5)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with (
        tempfile.TemporaryDirectory(prefix="scale") as folder,
        local_cluster(ROOT / "cluster/aws.yaml", Path(folder), cpus=1, minute_s=0.6) as made,
    ):
        yield made


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 360) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.5)


def test_nodes_come_are_lost_are_refused_and_go(cluster: LocalCluster, tmp_path: Path) -> None:
    log = tmp_path / "job.log"

    def last() -> str:
        lines = log.read_text().splitlines()
        return lines[-1] if lines else ""

    def parts() -> list[str]:
        while (nodes := cluster.workers()) is None:
            time.sleep(0.5)
        return sorted(node["labels"]["part"] for node in nodes)

    def events(what: str) -> int:
        return sum(event["event"] == what for event in cluster.events())

    assert parts() == []
    with log.open("w") as output:
        command = [sys.executable, "-c", ACTORS, cluster.gcs_address]
        job = subprocess.Popen(command, env=cluster.environment, stdout=output, cwd=ROOT)
    try:
        wait_for(lambda: last() == "placed 3", "each actor has a node of its own")
        assert parts() == ["learner", "rollout", "rollout"]
        wait_for(lambda: events("started") == 3, "the provider has noted each node")  # they join before it returns
        cluster.no_capacity("rollout")
        cluster.kill_node("rollout")
        wait_for(lambda: events("lost") == 1 and events("refused") > 0, "the loss is noticed, another one is refused")
        wait_for(lambda: parts() == ["learner", "rollout"], "one is left")
        wait_for(lambda: last() == "waiting", "its actor waits")
        cluster.no_capacity()
        wait_for(lambda: last() == "placed 3", "the actor has moved to a new node")
        assert parts() == ["learner", "rollout", "rollout"]
    finally:
        job.kill()
        job.wait(30)
        print(log.read_text()[-60:], *cluster.events(), sep="\n")  # shown where the test fails
    wait_for(lambda: parts() == [] and events("ended") == 3, "idle nodes are given back")
