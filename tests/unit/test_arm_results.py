"""Results of arms that this version did not write are refused by name, whoever reads them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from calibrated_rl.config.run_config import RunConfig
from calibrated_rl.errors import UserError
from calibrated_rl.evaluation.summary import BUDGET
from calibrated_rl.report.curve_files import line_of
from calibrated_rl.run.audit import audit_run
from calibrated_rl.study.compare import all_results
from tools.plan.measured import trained_arms

ROW = {"update": 0, "name": "reward", "value": 0.5}
WHOLE: dict[str, Any] = {"arm": "static", "seed": 0, "metrics": [ROW], **dict.fromkeys(BUDGET, 1)}
READERS: dict[str, Callable[[Path], Any]] = {
    "jobs/audit.py": audit_run,
    "jobs/curves.py": lambda run: line_of(f"{run}:static-0", "reward", "updates"),
    "jobs/plan.py": trained_arms,
    "jobs/compare.py": lambda run: all_results(run, RunConfig()),
}
FOREIGN = {
    "{}": "", "[]": "does not contain a JSON object", '{"metrics"': "is not readable JSON",
    json.dumps(WHOLE | {"metrics": None}): "contains no list of metrics",
    json.dumps(WHOLE | {"metrics": [3]}): "a metric has no update, name or value",
    json.dumps(WHOLE | {"metrics": [ROW | {"value": "high"}]}): "metric 'reward' of update '0' is not a number",
}  # fmt: skip


def run_with(folder: Path, name: str, text: str) -> Path:
    (folder / "arms").mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text("")
    (folder / "arms" / name).write_text(text)
    return folder


@pytest.mark.parametrize("reader", READERS)
def test_a_result_of_something_else_is_named(reader: str, tmp_path: Path) -> None:
    READERS[reader](run_with(tmp_path, "static-0.json", json.dumps(WHOLE)))
    for text, told in FOREIGN.items():
        with pytest.raises(UserError, match=f"{tmp_path}/arms/static-0.json .*{told}|static-0.json: {told}"):
            READERS[reader](run_with(tmp_path, "static-0.json", text))


def test_a_table_of_arms_takes_their_own_files_alone(tmp_path: Path) -> None:
    run_with(tmp_path, "static-0.json", json.dumps(WHOLE))
    assert [result["arm"] for result in all_results(tmp_path, RunConfig())] == ["static"]
    for name in ("static-0 (copy).json", "static-7.json"):
        with pytest.raises(UserError, match=r"is of the arm 'static', seed 0: take it out of the folder"):
            all_results(run_with(tmp_path, name, json.dumps(WHOLE)), RunConfig())
        (tmp_path / "arms" / name).unlink()
    with pytest.raises(UserError, match=r"has no 'human_turns': it is no result of an arm, or of another version"):
        short = {name: value for name, value in WHOLE.items() if name[0] != "h"}
        all_results(run_with(tmp_path, "static-0.json", json.dumps(short)), RunConfig())
