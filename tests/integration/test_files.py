"""Files of a run: one job at a time has its folder; a full disk is waited for."""

import ast
import errno
import logging
import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from ray.exceptions import RayTaskError
from safetensors import SafetensorError

from calibrated_rl.errors import UserError, is_disk_full
from calibrated_rl.storage import files
from calibrated_rl.storage.files import exclusive

HOLD = """
import sys, time
from pathlib import Path
from calibrated_rl.storage.files import exclusive
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


def test_a_full_disk_is_waited_for_and_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "calibrated_rl")
    monkeypatch.setattr(files, "SPACE_POLL_S", 0.05)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (files.SPACE_MIB * 2**20 // 2, hard))
    try:
        with pytest.raises(UserError, match="free some space"):
            files.wait_for_space(tmp_path, timeout_s=0.2)
        threading.Timer(0.3, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))).start()
        files.wait_for_space(tmp_path, timeout_s=30)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    said = caplog.messages
    assert ["is full" in said[0], "is full" in said[1], "there is space" in said[2]] == [True] * 3 and len(said) == 3
    assert not any(tmp_path.iterdir())


def test_a_full_disk_is_known_in_whichever_words_it_comes(tmp_path: Path) -> None:
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        error = OSError(number, "no")
        assert is_disk_full(error) and is_disk_full(RayTaskError("append", "", error).as_instanceof_cause())
    assert not is_disk_full(OSError(errno.EACCES, "no")) and not is_disk_full(TimeoutError("(os error 5)"))
    script = (
        "import resource, sys, torch\n"
        "from safetensors import SafetensorError\n"
        "from safetensors.torch import save_file\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n    save_file({'w': torch.zeros(10000)}, sys.argv[1])\n"
        "except (SafetensorError, OSError) as error:\n    print(repr(str(error)))"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "weights")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert is_disk_full(SafetensorError(ast.literal_eval(done.stdout))), done
