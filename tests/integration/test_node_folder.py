"""Folders travel between nodes that share no file system, and only there; a training on such nodes."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from calibrated_rl.learner.world import free_port
from tests.support.paths import MICRO, ROOT

pytestmark = [pytest.mark.timeout(1800), pytest.mark.engine]

APART = ("unshare", "--mount", "--propagation", "private", "sh", "-c")
BIN = Path(sys.executable).parent

FOLDERS = """
import json, os, sys
from pathlib import Path
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from calibrated_rl.errors import UserError
from calibrated_rl.runtime import node_folder
from calibrated_rl.runtime.node_folder import NodeFolder
from calibrated_rl.storage.checksums import write_checksums

address, folder = sys.argv[1], Path(sys.argv[2])
ray.init(address=address, logging_level="ERROR", log_to_driver=False)
other = next(n["NodeID"] for n in ray.nodes() if n["Alive"] and n["Labels"].get("part") == "apart")
near = next(n["NodeID"] for n in ray.nodes() if n["Alive"] and n["Labels"].get("part") == "beside")

def there(function, *arguments, node=other):
    place = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.get(ray.remote(function).options(num_cpus=0, scheduling_strategy=place).remote(*arguments), timeout=360)

def content(path):
    return {str(f.relative_to(path)): f.read_bytes() for f in sorted(Path(path).rglob("*")) if f.is_file()}

def fetch(given):
    return str(given.fetch()), content(given.fetch())

def refused(function, *arguments, **where):
    try:
        there(function, *arguments, **where)
    except UserError as error:
        return str(error)
    return ""

source = folder / "model"
(source / "deep").mkdir(parents=True)
LARGE = node_folder.CHUNK_BYTES * 2 + 5
(source / "weights").write_bytes(b"x" * (LARGE - 1) + b"y")
(source / "exactly").write_bytes(os.urandom(node_folder.CHUNK_BYTES))
(source / "deep" / "empty").touch()
(folder / "blob").write_bytes(b"linked")
(source / "link").symlink_to(folder / "blob")
write_checksums(source)
here, told = NodeFolder.here(source), {}
told["sees"] = there(os.path.exists, str(source)), there(os.path.exists, str(source), node=near)
path, came = there(fetch, here)
told["same content"] = came == content(source)
told["another place"] = path != str(source)
told["once"] = there(fetch, here)[0] == path
told["itself where it is seen"] = there(fetch, here, node=near)[0] == str(source) == str(here.fetch())
(source / "weights").write_bytes(b"changed" * 10)
told["altered"] = refused(fetch, here)
write_checksums(source)
path, came = there(fetch, here)
told["the new one"] = came["weights"] == b"changed" * 10
told["absent"] = refused(fetch, NodeFolder(str(folder / "nothing"), here.node))
told["no node"] = refused(fetch, NodeFolder(str(source), "ab" * 28))

def write(target, fail=False):
    def fill(folder):
        (folder / "deep").mkdir(parents=True)
        (folder / "deep" / "weights").write_bytes(b"x" * (LARGE - 1) + b"y")
        (folder / "empty").touch()
        if fail:
            raise UserError("no disk")
    target.write(fill)

for node in (other, near):
    target = folder / f"saved-{node[:6]}"
    target.mkdir()
    (target / "old").touch()
    there(write, NodeFolder.here(target), node=node)
    weights = content(target)["deep/weights"]
    told[f"written {'there' if node == other else 'beside'}"] = weights == b"x" * (LARGE - 1) + b"y"
    told[f"all of it {'there' if node == other else 'beside'}"] = sorted(content(target))
target = folder / "kept"
target.mkdir()
(target / "old").touch()
told["fails"] = refused(write, NodeFolder.here(target), True)
told["as before"] = sorted(content(target)) + sorted(p.name for p in folder.iterdir())
print(json.dumps(told))
"""


@dataclass(frozen=True)
class Head:
    address: str
    environment: dict[str, str]
    shared: Path
    """Seen by the head and by the node ``beside``; on all others there is nothing."""

    def start_node(self, part: str, cpus: int, apart: bool) -> "subprocess.Popen[bytes]":
        """A node with a label; ``apart``: its file system has an empty folder in the place of ``shared`` and of the
        caches."""
        folder = self.shared.parent
        start = " ".join(
            [
                f"{BIN}/ray start --block --address {self.address} --num-cpus {cpus} --labels part={part}",
                f"--object-store-memory 200000000 --disable-usage-stats --dashboard-agent-listen-port {free_port()}",
            ]
        )
        empty = f"mount -t tmpfs none {self.shared} && mount -t tmpfs none $HOME/.cache && " if apart else ""
        command = [*APART, empty + start] if apart else ["sh", "-c", start]
        # Nodes that start at the same time on one machine would choose the same names.
        return started(command, self.environment, folder / f"{part}.log")


def started(command: list[str], environment: dict[str, str], log: Path) -> "subprocess.Popen[bytes]":
    """``ray start --block``, once it says that it runs. Ray gives a node 30 seconds, which a busy machine may exceed:
    then it is started again."""
    deadline = time.monotonic() + 360
    while True:
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, env=environment, stdout=output, stderr=output, start_new_session=True, cwd=ROOT
            )
        while "Ray runtime started" not in log.read_text() and process.poll() is None:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        if process.poll() is None:
            return process
        assert "timed out during startup" in log.read_text(), log.read_text()


def end(processes: "list[subprocess.Popen[bytes]]") -> None:
    """End processes and all that they have started."""
    for process in processes:
        started_by_it = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        for each in (*started_by_it, process):
            with suppress(psutil.NoSuchProcess):
                each.kill()
        process.wait(15)


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    if subprocess.run([*APART, "mount -t tmpfs none /mnt"], capture_output=True).returncode:
        pytest.skip("this user may not make mount namespaces: no node without a shared folder can be made")
    with tempfile.TemporaryDirectory(prefix="nodes") as name:
        folder = Path(name)
        shared, home = folder / "shared", folder / "home"
        shared.mkdir()
        (home / ".cache").mkdir(parents=True)
        kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        environment = kept | {
            "HOME": str(home), "RAY_TMPDIR": str(folder), "PYTHONPATH": str(ROOT), "RAY_worker_niceness": "0",
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        }  # fmt: skip
        port = free_port()
        command = [
            str(BIN / "ray"), "start", "--head", "--block", f"--port={port}", "--num-cpus=0", "--disable-usage-stats",
            "--include-dashboard=false", "--object-store-memory=200000000",
            f"--dashboard-agent-listen-port={free_port()}",
        ]  # fmt: skip
        process = started(command, environment, folder / "head.log")
        try:
            yield Head(f"127.0.0.1:{port}", environment, shared)
        finally:
            end([process])


def run(head: Head, *command: str, seconds: float) -> str:
    done = subprocess.run(
        [sys.executable, *command], env=head.environment | {"RAY_ADDRESS": head.address}, capture_output=True,
        text=True, timeout=seconds, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def test_folders_travel_where_they_are_not_shared(head: Head) -> None:
    nodes = [head.start_node("apart", 1, True), head.start_node("beside", 1, False)]
    try:
        told: dict[str, Any] = json.loads(run(head, "-c", FOLDERS, head.address, str(head.shared), seconds=200))
    finally:
        end(nodes)
    assert told["sees"] == [False, True], "the nodes are what this test is about"
    for name in ("same content", "another place", "once", "itself where it is seen", "the new one"):
        assert told[name] is True, name
    assert "weights is torn or altered" in told["altered"] and "has no files" in told["absent"]
    assert "cannot be had from node abab" in told["no node"]
    assert told["written there"] and told["written beside"]
    assert told["all of it there"] == ["deep/weights", "empty"], "the folder is replaced"
    assert "no disk" in told["fails"]
    assert told["as before"][0] == "old" and not [name for name in told["as before"] if "part" in name]


def test_a_run_trains_on_nodes_that_share_no_folder(head: Head) -> None:
    nodes = [head.start_node("rollout", 2, True), head.start_node("learner", 1, True)]
    runs = head.shared / "runs"
    try:
        printed = run(
            head, "jobs/train.py", str(MICRO), "calibrated_rl/config/hardware/labelled.yaml", "--hardware", "cpu",
            "--arm", "calibrated", "--runs", str(runs), "training.checkpoint_every=1", "evaluation.shifted=0",
            "policy.engine.num_cpus=1", "simulator.engine.num_cpus=1", "shift.every=0", "evaluation.scenarios=4",
            "evaluation.logs=12", "evaluation.profile=2", "training.tokens_per_update=100", seconds=420,
        )  # fmt: skip
    finally:
        end(nodes)
    assert "update 2/2" in printed
    folder = runs / "micro"
    assert (folder / "policies" / "calibrated-0" / "model.safetensors").is_file()
    assert {path.name for path in (folder / "models").iterdir()} >= {"calibrated", "uncalibrated"}
    run(head, "jobs/audit.py", str(folder), seconds=120)
    shutil.rmtree(runs)
