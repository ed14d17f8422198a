"""A Ray head on this machine whose autoscaler starts and ends nodes beside it, and what its state API tells."""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from calibrated_rl.errors import UserError
from calibrated_rl.learner.world import free_port
from tools.autoscale.machines import HEAD, HEAD_ID, autoscaling_config
from tools.autoscale.provider import CONTROL, EVENTS

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 120.0
ASK_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class LocalCluster:
    """A running head."""

    address: str
    """Of its job server and state API."""
    gcs_address: str
    """Which drivers join."""
    environment: dict[str, str]
    """For commands that talk with it."""
    folder: Path
    processes: "subprocess.Popen[bytes]"

    def no_capacity(self, *types: str) -> None:
        """From now on the "cloud" has no machine of these types, and again of all others."""
        aside = self.folder / f".{CONTROL}"
        aside.write_text(json.dumps({"no_capacity": types}), encoding="utf-8")
        os.replace(aside, self.folder / CONTROL)

    def events(self) -> list[dict[str, Any]]:
        """What the provider did so far."""
        file = self.folder / EVENTS
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []

    def workers(self) -> list[dict[str, Any]] | None:
        """Nodes beside the head that are alive; None where the state API does not answer in time."""
        nodes = self.state("nodes")
        if not nodes:
            return None
        return [node for node in nodes if node.get("state") == "ALIVE" and not node.get("is_head_node")]

    def state(self, what: str) -> list[dict[str, Any]]:
        """All ``nodes`` (the head is one) or ``actors``, as Ray's state API has them; empty where it does not answer in
        time."""
        url = f"{self.address}/api/v0/{what}?limit=1000&detail=1"
        token = {"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"}
        try:
            with urllib.request.urlopen(urllib.request.Request(url, headers=token), timeout=ASK_TIMEOUT_S) as answer:
                return list(json.load(answer)["data"]["result"]["result"])
        except (OSError, ValueError, KeyError, TypeError):
            return []

    def kill_node(self, kind: str) -> str:
        """Kill the processes of the oldest node of this type as if its machine had been switched off; its name.

        Raises:
            UserError: there is none.
        """
        gone = {event["node"] for event in self.events() if event["event"] in ("ended", "lost")}
        alive = [e for e in self.events() if e["event"] == "started" and e["kind"] == kind and e["node"] not in gone]
        if not alive:
            raise UserError(f"no node of type {kind} is running that could be killed")
        import psutil

        raylet = psutil.Process(alive[0]["pid"])
        # It first: without its children it would end in good order.
        for process in [raylet, *raylet.children(recursive=True)]:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        return str(alive[0]["node"])


@contextmanager
def local_cluster(launch_file: Path, folder: Path, *, cpus: float, minute_s: float) -> Iterator[LocalCluster]:
    """Start a head with an autoscaler for the node types of ``launch_file``; end it and all its nodes in the end.

    Args:
        folder: for its files; short, because sockets lie in it.

    Raises:
        UserError: the launch file has no workers, or the head does not start.
    """
    gcs_port, dashboard_port = free_port(), free_port()
    config = autoscaling_config(launch_file, folder, f"127.0.0.1:{gcs_port}", cpus=cpus, minute_s=minute_s)
    file = folder / "autoscaling.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    ours = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    ours |= {
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16), "RAY_TMPDIR": str(folder),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_worker_niceness": "0", "RAY_SCHEDULER_EVENTS": "0",
    }  # fmt: skip
    head_only = {
        "RAY_FAKE_CLUSTER": "1", "RAY_enable_autoscaler_v2": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID, "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        "RAY_NODE_TYPE_NAME": HEAD,  # as `ray up` does it: it makes a label, by which jobs know that machines may come
    }  # fmt: skip
    command = [
        str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--node-ip-address=127.0.0.1",
        f"--port={gcs_port}", f"--dashboard-port={dashboard_port}", f"--dashboard-agent-listen-port={free_port()}",
        "--num-cpus=0", "--object-store-memory=200000000", "--disable-usage-stats", f"--temp-dir={folder}/ray",
        f"--autoscaling-config={file}",
    ]  # fmt: skip
    log = (folder / "head.log").open("wb")
    processes = subprocess.Popen(
        command, env=ours | head_only, stdout=log, stderr=log, start_new_session=True, cwd=ROOT
    )
    cluster = LocalCluster(f"http://127.0.0.1:{dashboard_port}", f"127.0.0.1:{gcs_port}", ours, folder, processes)
    try:
        _wait_for_head(cluster)
        yield cluster
    finally:
        _end(cluster)
        log.close()


def _wait_for_head(cluster: LocalCluster) -> None:
    end = time.monotonic() + START_TIMEOUT_S
    while not cluster.state("nodes"):
        if cluster.processes.poll() is not None or time.monotonic() > end:
            text = (cluster.folder / "head.log").read_text(encoding="utf-8", errors="replace")
            raise UserError(f"Ray's head did not start: {text[-1000:].strip()}")
        time.sleep(0.5)


def _end(cluster: LocalCluster) -> None:
    """End the head and, by their ids, whatever nodes its provider has started: both by their own processes alone."""
    import psutil

    started = [event["pid"] for event in cluster.events() if event["event"] == "started"]
    for pid in started:
        try:
            raylet = psutil.Process(pid)
            if "raylet" not in raylet.name():
                continue
            for process in [*raylet.children(recursive=True), raylet]:
                process.kill()
        except psutil.NoSuchProcess:
            continue
    with suppress(ProcessLookupError, subprocess.TimeoutExpired):
        os.killpg(cluster.processes.pid, signal.SIGTERM)
        cluster.processes.wait(10)
    with suppress(ProcessLookupError):
        os.killpg(cluster.processes.pid, signal.SIGKILL)
