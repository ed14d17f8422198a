"""A run whose simulator and whose user of the evaluation are behind APIs that fail at every ninth request: a budget
ends it at a checkpoint, a larger one resumes there, and nothing is lost, scored 0 or paid twice."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from calibrated_rl.endpoints.answers import AnswerFile
from tests.support.api_guests import guest, settings
from tests.support.fault_server import Fault, FaultServer
from tests.support.paths import MICRO, ROOT

KEY = "sk-not-to-be-seen"
FAULTS = ("429", "500", "503", "close", "cut", "chunks", "malformed", "empty", "array")
BUDGET = 10.5
"""More than the measurement of the simulator and one update cost (8.2), and less than two (12.3)."""


def every_ninth(number: int, body: Mapping[str, Any]) -> Fault | None:
    return Fault(FAULTS[number // 9 % len(FAULTS)]) if number % 9 == 0 else None


def compare(
    folder: Path, simulator: FaultServer, people: FaultServer, budget: float
) -> "subprocess.CompletedProcess[str]":
    (folder / "api.yaml").write_text(settings(simulator.url, people.url, budget=budget))
    return subprocess.run(
        [sys.executable, str(ROOT / "jobs/compare.py"), str(MICRO), str(folder / "api.yaml"), "--runs", str(folder),
         "--hardware", "cpu"],
        capture_output=True, text=True, timeout=1800, cwd=ROOT, env=os.environ | {"GUEST_KEY": KEY},
    )  # fmt: skip


@pytest.mark.timeout(2700)
def test_a_spent_budget_ends_an_arm_at_a_checkpoint_and_a_larger_one_goes_on(tmp_path: Path) -> None:
    run = tmp_path / "api"
    with FaultServer(say=guest, plan=every_ninth) as simulator, FaultServer(say=guest, plan=every_ninth) as people:
        stopped = compare(tmp_path, simulator, people, BUDGET)
        assert stopped.returncode == 2, stopped.stderr[-3000:]
        error = [line for line in stopped.stderr.splitlines() if line.startswith("error:")]
        assert len(error) == 1 and f"endpoints.guests.budget is {BUDGET:g}" in error[0]
        assert "interactive (seed 0) keeps a checkpoint after update 1" in stopped.stdout
        assert (run / "checkpoints/interactive-0/update-000001").is_dir()
        spent = AnswerFile(run / "answers/guests.jsonl").paid().cost
        assert 0.85 * BUDGET < spent <= BUDGET

        done = compare(tmp_path, simulator, people, 0.0)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "interactive (seed 0) resumes after update 1" in done.stdout
        for server in (simulator, people):
            assert set(server.answered().values()) == {1}, "paid twice"
            assert server.counts().total() - server.counts()["answered"] >= 5

    summary = json.loads((run / "summary.json").read_text())
    answered = {name: len(server.answered()) for name, server in (("guests", simulator), ("people", people))}
    assert {name: paid["answers"] for name, paid in summary["endpoints"].items()} == answered
    assert summary["dropped"] == {} and summary["arms"]["interactive"]["updates"] == 2
    assert summary["arms"]["interactive"]["not_scored"] == 0
    assert "after" not in summary["simulator"] and "human_turn_nll" not in summary["simulator"]["before"]
    assert 0.5 < summary["simulator"]["before"]["classifier_accuracy"]["mean"] <= 1
    shift = summary["arms"]["interactive"]["shift"]
    assert [record["update"] for record in shift] == [0, 1, 2] and all(record["simulator"] for record in shift)
    result = json.loads((run / "arms/interactive-0.json").read_text())
    costs = [m["value"] for m in result["metrics"] if m["name"] == "endpoint/guests/cost"]
    assert len(costs) == 2 and 0 < sum(costs) < result["endpoints"]["guests"]["cost"] + 1e-9
    assert "behind APIs as they come (other)" in summary["held_out_user"]
    for file in run.rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes(), file
    assert KEY not in stopped.stderr + done.stderr + stopped.stdout + done.stdout


CLIENT = """
import asyncio, sys
from pathlib import Path
from calibrated_rl.endpoints.answers import AnswerFile
from calibrated_rl.endpoints.client import EndpointClient
from calibrated_rl.endpoints.config import EndpointConfig
from calibrated_rl.endpoints.requests import ChatRequest

config = EndpointConfig(base_url=sys.argv[1], model="m", concurrency=4, retries=8, timeout=20)
client = EndpointClient("api", config, AnswerFile(Path(sys.argv[2])))

async def main():
    messages = [{"role": "user", "content": "hello"}]
    requests = [ChatRequest(messages=messages, seed=n, temperature=1.0, max_tokens=8) for n in range(200)]
    await asyncio.gather(*map(client.answer, requests))

asyncio.run(main())
client.close()
"""


def test_a_process_that_is_killed_pays_again_at_most_for_what_was_in_flight(tmp_path: Path) -> None:
    with FaultServer(plan=every_ninth, latency_s=0.02) as server:
        command = [sys.executable, "-c", CLIENT, server.url, str(tmp_path / "api.jsonl")]
        killed = 0
        for most in (60, 130, None):
            process = subprocess.Popen(command, cwd=ROOT)
            while process.poll() is None and (most is None or server.counts()["answered"] < most):
                time.sleep(0.005)
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                killed += 1
            code = process.wait(60)
        assert killed == 2 and code == 0
        again = sum(count - 1 for count in server.answered().values())
        assert len(server.answered()) == 200 and again <= 4 * killed
    answers = AnswerFile(tmp_path / "api.jsonl")
    assert answers.paid().answers == 200
