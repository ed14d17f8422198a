"""``ray job submit`` to a real head that asks for its token: output and failure reach whoever submits."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT

BIN = Path(sys.executable).parent
TOKEN = "0123456789abcdef0123456789abcdef"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def environment(token: str, folder: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    # A folder of its own, also for the address of the head, which other Rays on this machine would join otherwise.
    return kept | {
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "RAY_TMPDIR": folder,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip


@pytest.fixture(scope="module")
def head() -> Iterator[tuple[str, str]]:
    """Address of the job server of a head, and its folder."""
    folder, port = tempfile.mkdtemp(prefix="head"), free_port()
    address = f"http://127.0.0.1:{port}"
    command = [
        BIN / "ray", "start", "--head", "--block", "--port=0", f"--dashboard-port={port}", "--num-cpus=1",
        "--object-store-memory=100000000", "--disable-usage-stats",
        # By default it would be the port that another Ray on this machine has taken.
        f"--dashboard-agent-listen-port={free_port()}",
    ]  # fmt: skip
    with subprocess.Popen(command, env=environment(TOKEN, folder), stdout=subprocess.DEVNULL) as ray:
        deadline = time.monotonic() + 270
        while not answers(address):
            assert ray.poll() is None and time.monotonic() < deadline, "the head did not start"
            time.sleep(0.3)
        yield address, folder
        ray.send_signal(signal.SIGTERM)
        ray.wait(timeout=180)
    shutil.rmtree(folder, ignore_errors=True)


def answers(address: str) -> bool:
    """Whether the head's job server is there; without the token it says no more than that."""
    try:
        urllib.request.urlopen(f"{address}/api/version", timeout=5)
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def submit(head: tuple[str, str], *job: str, token: str = TOKEN) -> "subprocess.CompletedProcess[str]":
    address, folder = head
    command = [BIN / "ray", "job", "submit", "--address", address, "--working-dir", ".", "--", "python", *job]
    deadline = time.monotonic() + 360
    while True:
        done = subprocess.run(
            command, cwd=ROOT, env=environment(token, folder), capture_output=True, text=True, timeout=120
        )
        # The head answers before the process is there that starts jobs.
        if "No available agent" not in done.stderr or time.monotonic() > deadline:
            return done
        time.sleep(1)


@pytest.mark.timeout(900)
def test_output_and_exit_code_of_a_job_reach_whoever_submits_it(head: tuple[str, str], tmp_path: Path) -> None:
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    good.write_text(json.dumps({"id": 1, "turns": [{"side": "user", "text": "hi"}, {"side": "policy", "text": "yes"}]}))
    bad.write_text(good.read_text() + '\n{"id": 2}')
    fits = submit(head, "jobs/logs.py", "check", str(good))
    assert fits.returncode == 0 and "succeeded" in fits.stdout, fits.stdout + fits.stderr
    refused = submit(head, "jobs/logs.py", "check", str(bad))
    assert refused.returncode == 1 and "bad.jsonl:2: 'turns' is missing" in refused.stdout
    stranger = submit(head, "jobs/logs.py", "check", str(good), token=TOKEN[::-1])
    assert stranger.returncode != 0 and "succeeded" not in stranger.stdout
