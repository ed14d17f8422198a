"""The frame of jobs/benchmark.py: which rows there are, what a row says, what becomes of one that fails. No timing."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from calibrated_rl.components.component import build
from calibrated_rl.errors import UserError
from tests.support.paths import ROOT
from tools.bench.base import at_least, at_most
from tools.bench.learner_speed import LearnerSpeed
from tools.bench.loss_memory import LossMemory, peak_bytes
from tools.bench.table import RowConfig, choose, read_rows, run_all, table

CONFIGS = [ROOT / "configs" / "benchmarks" / f"{kind}.yaml" for kind in ("cpu", "gpu")]


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_row_names_a_benchmark_and_settings_that_it_knows(file: Path) -> None:
    for name, row in read_rows(file).items():
        assert callable(build(row.benchmark, row.config, name).measure)


def test_a_row_says_whether_its_goal_is_met() -> None:
    assert at_least(95, 100, 0.95, "").met and not at_least(94, 100, 0.95, "").met
    assert at_most(105, 100, 1.05, "").met and not at_most(106, 100, 1.05, "").met
    assert not at_least(95, 100, 0.95, "", also=False).met


def test_an_unknown_row_and_a_broken_file_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no row 'rolout'"):
        choose({"rollout": RowConfig()}, ["rolout"], CONFIGS[0])
    file = tmp_path / "rows.yaml"
    file.write_text("rollout: {benchmark: 'tools.bench.learner_padding:LearnerPadding', timeout: 1}")
    with pytest.raises(UserError, match=r"row 'rollout'.*'timeout'.*timeout_seconds"):
        read_rows(file)


def test_rows_that_fail_or_hang_are_reported_and_the_others_are_measured() -> None:
    script = (
        "import json, sys, time\n"
        "if sys.argv[1] == 'hangs': time.sleep(60)\n"
        "if sys.argv[1] == 'fails': sys.exit('out of luck')\n"
        "print('chatter'); print(json.dumps(dict(value=1, limit=2, ratio=0.5, goal=0.5, met=True, how='well')))"
    )
    rows = {name: RowConfig(timeout_seconds=3) for name in ("fails", "hangs", "works")}
    results = run_all(rows, [sys.executable, "-c", script])
    assert [row["met"] for row in results] == [None, None, True]
    assert "out of luck" in results[0]["how"] and "longer than 3 s" in results[1]["how"]
    assert "works: well" in table(results)


def test_the_job_writes_the_row_it_was_asked_for(tmp_path: Path) -> None:
    out = tmp_path / "benchmarks.json"
    command = [sys.executable, "jobs/benchmark.py", "--cpu", "--only", "learner padding", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=360)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(out.read_text())["rows"]
    assert set(row) == {"name", "value", "limit", "ratio", "goal", "met", "how"}
    assert 0.9 <= row["ratio"] <= 1.05 and row["met"]


def test_the_peak_of_a_plain_loss_is_seen_whole_and_that_of_ours_is_a_tenth() -> None:
    """Also where few positions are scored."""
    count, words, size = 40, 20_000, 16
    linear, hidden = torch.nn.Linear(size, words, bias=False), torch.randn(count, size)

    def plain() -> None:
        torch.log_softmax(linear(hidden), -1)[:, 0].sum().backward()

    assert 2 <= peak_bytes(plain, torch.device("cpu")) / (count * words * 4) < 4
    row = LossMemory(LossMemory.Config(vocabulary=words, size=size, positions=[count])).measure()
    assert 0 < row.ratio <= 0.1 and row.met and row.limit == count * words * 4


def test_operations_of_a_model_by_hand() -> None:
    config = LearnerSpeed.Config(vocabulary=10, hidden=4, intermediate=6, layers=2, heads=2, key_heads=1)
    # A layer: queries and outputs 4 x 4, keys and values 4 x 2, three of 4 x 6. Three tokens are read and three scored.
    weights = 2 * (2 * 16 + 2 * 8 + 3 * 24)
    assert LearnerSpeed(config).operations(np.asarray([4]), 3) == 6 * weights * 3 + 6 * 2 * 4 * 9 + 6 * 40 * 3
