"""Runs and configs of earlier versions: runs are read, configs are told what has moved."""

from pathlib import Path

import pytest

from calibrated_rl.components.component import import_path
from calibrated_rl.components.moved import MOVED
from calibrated_rl.config.run_config import load_config
from calibrated_rl.errors import UserError

OLD = """
task: calibrated_rl.tasks.front_desk:FrontDesk
human: calibrated_rl.users.front_desk_human:FrontDeskHuman
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
