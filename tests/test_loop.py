"""The whole loop with real engines, learner and store; task and people come from a file outside the repository."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).resolve().parents[1]

OUTSIDE = """
from calibrated_rl.tasks.front_desk import FrontDesk
from calibrated_rl.users.front_desk_human import FrontDeskHuman

class Counter(FrontDesk):
    def __init__(self, config):
        super().__init__(config)
        self.name = "counter"

class Guest(FrontDeskHuman):
    pass
"""


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outside")
    (folder / "outside_task.py").write_text(OUTSIDE)
    return folder


def run(outside: Path, runs: Path) -> Path:
    file = outside / "outside_task.py"
    done = subprocess.run(
        [
            sys.executable, str(ROOT / "jobs/compare.py"), str(ROOT / "tests/micro.yaml"), "--runs", str(runs),
            f"task={file}:Counter", f"human={file}:Guest",
        ],
        capture_output=True, text=True, timeout=500, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return runs / "micro"


def figures(summary: dict[str, Any]) -> dict[str, Any]:
    """What must be the same in a second run: everything but the seconds."""
    for arm in summary["arms"].values():
        arm.pop("seconds")
    return summary


@pytest.mark.timeout(1100)
def test_same_seed_same_figures(outside: Path, tmp_path: Path) -> None:
    first, second = (run(outside, tmp_path / name) for name in "ab")
    summary = figures(json.loads((first / "summary.json").read_text()))
    assert summary == figures(json.loads((second / "summary.json").read_text()))

    assert set(summary["arms"]) == {"start", "static", "interactive", "calibrated", "oracle"}
    assert summary["task"] == "counter"
    assert summary["arms"]["calibrated"]["updates"] == 2
    assert summary["arms"]["calibrated"]["user_tokens"] > 0 and summary["arms"]["oracle"]["human_turns"] > 0
    assert (first / "report.html").stat().st_size > 10_000
    AutoModelForCausalLM.from_pretrained(first / "checkpoints" / "calibrated-0")
    segments = sorted((first / "replay").rglob("*.arrow"))
    rows = sum(pa.ipc.open_file(str(segment)).read_all().num_rows for segment in segments)
    assert rows > 100
