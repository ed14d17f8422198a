"""Files of a run: one job at a time has its folder."""

import subprocess
import sys
from pathlib import Path

import pytest

from calibrated_rl.errors import UserError
from calibrated_rl.files import exclusive

HOLD = """
import sys, time
from pathlib import Path
from calibrated_rl.files import exclusive
with exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_run_folder_belongs_to_one_job_and_is_free_when_that_dies(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"written by another job .process {other.pid} on "), exclusive(folder):
            pass
        other.kill()
        other.wait(timeout=30)
    with exclusive(folder):
        pass
