"""Learning curves of several runs in one picture."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from calibrated_rl.errors import UserError
from calibrated_rl.report.curve_files import line_of, lines_of
from tests.support.paths import ROOT


def finished(run: Path, arm: str, rewards: dict[int, float], seconds: dict[int, float]) -> None:
    metrics = [{"update": u, "name": "reward", "value": v} for u, v in rewards.items()]
    metrics += [{"update": u, "name": "seconds_update", "value": v} for u, v in seconds.items()]
    (run / "arms").mkdir(parents=True, exist_ok=True)
    (run / "arms" / f"{arm}.json").write_text(json.dumps({"metrics": metrics}))


def test_a_line_stands_at_the_time_that_its_updates_took(tmp_path: Path) -> None:
    finished(tmp_path, "oracle-0", {0: 0.1, 2: 0.3, 1: 0.2}, {0: 5.0, 1: 2.0, 2: 3.0})
    name, line = line_of(f"K=1={tmp_path}", "reward", "seconds")
    assert name == "K=1" and line.at.tolist() == [5.0, 7.0, 10.0] and line.values.tolist() == [0.1, 0.2, 0.3]
    name, line = line_of(f"{tmp_path}:oracle-0", "reward", "updates")
    assert name == f"{tmp_path}:oracle-0" and line.at.tolist() == [1.0, 2.0, 3.0]


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    finished(tmp_path, "oracle-0", {0: 0.1}, {})
    for text, metric, words in (
        (f"{tmp_path}:start-0", "reward", "there are: oracle-0"),
        (str(tmp_path / "nothing"), "reward", "there is no run folder '.*nothing'"),
        ("a=", "reward", "there is no run folder ''"),
        (str(tmp_path), "rewards", "there are: reward"),
        (str(tmp_path), "reward", "how long its updates took"),
    ):
        with pytest.raises(UserError, match=words):
            line_of(text, metric, "seconds")
    finished(tmp_path, "oracle-1", {0: 0.1}, {})
    with pytest.raises(UserError, match="oracle-0, oracle-1"):
        line_of(str(tmp_path), "reward", "updates")


def test_two_lines_of_one_name_are_refused(tmp_path: Path) -> None:
    finished(tmp_path, "oracle-0", {0: 0.1}, {})
    assert list(lines_of([f"a={tmp_path}", f"b={tmp_path}"], "reward", "updates")) == ["a", "b"]
    with pytest.raises(UserError, match="another line is called 'a', too"):
        lines_of([f"a={tmp_path}", f"a={tmp_path}"], "reward", "updates")


@pytest.mark.slow
def test_the_command_draws(tmp_path: Path) -> None:
    finished(tmp_path, "oracle-0", {u: 0.1 * u for u in range(30)}, dict.fromkeys(range(30), 1.0))
    command = [sys.executable, str(ROOT / "jobs" / "curves.py"), f"a={tmp_path}", "--out", str(tmp_path / "c.png")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "+2.450 in the last third, 30 seconds in all" in done.stdout, done.stderr
    assert (tmp_path / "c.png").stat().st_size > 5000
