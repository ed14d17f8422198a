"""Runs and configs of earlier versions: runs are read, configs are told what has moved."""

import subprocess
from pathlib import Path

import pytest

from calibrated_rl.components.component import import_path
from calibrated_rl.config.load import load_config
from calibrated_rl.config.run_config import RunConfig
from calibrated_rl.errors import UserError
from calibrated_rl.run.layout import refuse_old_layout
from calibrated_rl.run.saved_run import open_run, refuse_other_settings
from calibrated_rl.settings.moved import MOVED
from tests.support.paths import MICRO

OLD = """
task: calibrated_rl.tasks.front_desk:FrontDesk
human: calibrated_rl.users.front_desk_human:FrontDeskHuman
"""
OLD_KEYS = """
arms: [start]
upbringing: {logs: {calibration: 7}, human: calibrated_rl.users.front_desk_human:FrontDeskHuman}
policy: {start: {epochs: 3}}
calibration: {source: upbringing}
shift: {estimators: [lengths, likeness, figures]}
learner: {max_grad_norm: 0.5}
proxy: {sft: {optimizer: {max_grad_norm: 0.25}}}
"""


def test_what_has_moved_is_where_it_is_said_to_be() -> None:
    for old, new in MOVED.items():
        assert import_path(new).__name__ == old.partition(":")[2]
        with pytest.raises(UserError, match=f"{old}.*it has moved: write {new}"):
            import_path(old)


def test_an_old_run_is_read_and_an_old_config_is_told(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(OLD)
    saved = load_config(file, saved=True)
    assert saved.task == "calibrated_rl.examples.front_desk:FrontDesk"
    assert saved.human == "calibrated_rl.examples.front_desk:FrontDeskHuman"
    with pytest.raises(UserError, match="config.yaml:2.*task.*it has moved: write calibrated_rl.examples.front_desk"):
        load_config(file)


@pytest.mark.slow
def test_an_old_run_folder_says_how_it_is_brought_up_to_date(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("arms: [start]")
    policy = tmp_path / "checkpoints" / "start-0"
    policy.mkdir(parents=True)
    (policy / "config.json").write_text("{}")
    (tmp_path / "resume" / "calibrated-0" / "update-000005").mkdir(parents=True)
    for read in (lambda: open_run(tmp_path), lambda: refuse_other_settings(tmp_path, RunConfig(arms=["start"]))):
        with pytest.raises(UserError, match="was written by an earlier version. To bring it up to date: ") as told:
            read()
    subprocess.run(["sh", "-ec", str(told.value).partition("up to date: ")[2]], check=True, timeout=60)
    assert (tmp_path / "policies" / "start-0" / "config.json").is_file()
    assert (tmp_path / "checkpoints" / "calibrated-0" / "update-000005").is_dir()
    refuse_old_layout(tmp_path)


def test_old_keys_are_read_in_runs_and_told_in_configs(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(OLD_KEYS)
    saved = load_config(file, ["policy.start.batch_dialogues=5"], saved=True)
    assert saved.pretraining.logs == {"calibration": 7} and saved.calibration.source == "pretraining"
    assert (saved.policy.warm_start.epochs, saved.policy.warm_start.batch_dialogues) == (3, 5)
    assert saved.shift.estimators == ["lengths", "similarity", "surface"]
    fits = (saved.policy.warm_start, saved.simulator.warm_start, saved.proxy.sft, saved.calibration.sft)
    assert [each.optimizer.max_grad_norm for each in (saved.training, *fits)] == [0.5, 0.5, 0.5, 0.25, 0.5]
    with pytest.raises(UserError, match="config.yaml:3:1: upbringing is called pretraining now") as told:
        load_config(file)
    assert "policy.start is called warm_start now" in str(told.value)
    assert "7:11: learner.max_grad_norm is called training.optimizer.max_grad_norm, " in str(told.value)
    assert "shift.estimators has 'likeness', which is called 'similarity' now" in str(told.value)
    assert "calibration.source has 'upbringing', which is called 'pretraining' now" in str(told.value)
    with pytest.raises(UserError, match="command line: simulator.start is called warm_start now"):
        load_config(MICRO, ["simulator.start.epochs=1"])
