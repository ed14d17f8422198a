"""Resuming where a run was stopped: checkpoints of an arm, whole or refused, and the same run to the last bit."""

import json
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM

from calibrated_rl.errors import UserError
from calibrated_rl.learner.checkpoint import Snapshot
from calibrated_rl.replay.store import ReplayStore
from calibrated_rl.runtime.background import BackgroundWriter
from calibrated_rl.storage.checksums import check_checksums
from calibrated_rl.storage.files import read_json
from calibrated_rl.storage.run_copy import RunCopy
from calibrated_rl.training.checkpoints import FORMAT, STATE, ArmCheckpoints, ArmState
from tests.support.paths import MICRO, ROOT
from tests.support.s3_server import S3Server

LOG_PROBS = {("log-1", "hi", "yes"): np.array([np.nan, -0.5], np.float32), ("log-2",): np.zeros(0, np.float32)}


def state(updates: int, reward: float | None = None) -> ArmState:
    metrics = [{"arm": "calibrated", "seed": 0, "update": 0, "name": "reward", "value": 0.1 + 0.2}]
    return ArmState(
        updates=updates, policy_tokens=7, user_tokens=8, human_turns=9, tokens_per_group=1 / 3, seen_own_tokens=True,
        seconds=1.5, simulator="models/calibrated", simulator_version=4, reward=reward, metrics=metrics,
        flaws={"user/limit": 2},
    )  # fmt: skip


def write_learner(folder: Path) -> None:
    (folder / "policy").mkdir(parents=True)
    (folder / "policy" / "weights").write_bytes(b"0123456789")


def checkpoints(run: Path, *updates: int, kept: int = 2, rewards: Mapping[int, float] | None = None) -> ArmCheckpoints:
    made = ArmCheckpoints(run, "calibrated", 0, kept)
    for update in updates:
        made.save(state(update, (rewards or {}).get(update)), LOG_PROBS, write_learner)
    return made


def names(made: ArmCheckpoints) -> list[str]:
    return sorted(path.name for path in made.folder.iterdir())


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = checkpoints(tmp_path, 5, 10, 15)
    saved = made.latest()
    assert saved is not None and not caplog.messages
    assert saved.state == state(15) and (saved.learner / "policy" / "weights").read_bytes() == b"0123456789"
    assert list(saved.log_probs) == list(LOG_PROBS)
    for key, values in LOG_PROBS.items():
        np.testing.assert_array_equal(saved.log_probs[key], values)
    assert names(made) == ["update-000010", "update-000015"]
    made.finish()
    assert made.latest() is None and not caplog.messages
    assert not made.best_policy.exists(), "no reward, no best"


def test_the_last_ones_and_the_best_stay(tmp_path: Path) -> None:
    rewards = {1: 0.1, 2: 0.9, 3: float("nan"), 4: 0.3, 5: 0.2}
    made = checkpoints(tmp_path, 1, 2, 3, 4, 5, kept=1, rewards=rewards)
    assert names(made) == ["update-000002", "update-000005"]
    saved = made.latest()
    assert saved is not None and saved.state.updates == 5, "a run resumes from the last, not from the best"
    checkpoints(tmp_path, 6, kept=1, rewards={6: 0.9})
    assert names(made) == ["update-000006"], "of equals the last"
    checkpoints(tmp_path, 7, 8, kept=1, rewards={7: 0.5})
    (made.folder / "update-000008" / STATE).write_text("not JSON")
    made.finish()
    assert not made.folder.exists()
    assert read_json(made.best_policy / "best.json") == {"reward": 0.9, "update": 6}
    check_checksums(made.best_policy)
    assert (made.best_policy / "weights").read_bytes() == b"0123456789"


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """As on a disk that is full: the write fails in the middle, in whatever library it is."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("tensors", [20_000, 20])
def test_a_full_disk_ends_nothing_and_harms_no_checkpoint(
    tmp_path: Path, tensors: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Of 20,000 numbers the weights are too large; of 20 only ``log_probs.npz`` is, which comes after them."""
    writer, made = BackgroundWriter(), checkpoints(tmp_path, 5)
    snapshot = Snapshot(index={}, files={}, tensors={"policy.safetensors": {"a": torch.ones(tensors)}})
    large = {("log",): np.zeros(20_000, np.float32)}
    with files_no_larger_than(40_000):
        writer.write(("checkpoint 10", lambda: made.save(state(10), large, snapshot.write)))
        writer.wait()
    (line,) = caplog.messages
    assert line.startswith("checkpoint 10 could not be written, and the run continues: ") and "File too large" in line
    assert names(made) == ["update-000005"], "nothing takes room on the full disk"
    saved = made.latest()
    assert saved is not None and saved.state == state(5)
    writer.write(("checkpoint 15", lambda: made.save(state(15), large, snapshot.write)))
    writer.close()
    saved = made.latest()
    assert saved is not None and saved.state == state(15) and len(caplog.messages) == 1


def test_files_are_written_one_after_the_other_and_mistakes_come_up(caplog: pytest.LogCaptureFixture) -> None:
    order: list[str] = []
    entered, go = threading.Event(), threading.Event()

    def first() -> None:
        entered.set()
        assert go.wait(60)
        order.append("first")

    writer = BackgroundWriter()
    writer.write(("first", first), ("after it", lambda: order.append("after it")))
    assert entered.wait(60) and not order, "whoever asks for it goes on at once"
    go.set()
    writer.write(("second", lambda: order.append("second")))
    writer.write(("third", lambda: order.append(str(order[7]))))
    assert order == ["first", "after it", "second"]
    with pytest.raises(IndexError):
        writer.close()
    assert not caplog.messages


def test_a_broken_checkpoint_is_named_and_the_one_before_it_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number, name in enumerate(("learner/policy/weights", "log_probs.npz", STATE)):
        for harm in ("cut", "changed", "gone"):
            made = checkpoints(tmp_path / f"{number}{harm}", 5, 10)
            file = made.folder / "update-000010" / name
            whole = file.read_bytes()
            if harm == "gone":
                file.unlink()
            else:
                file.write_bytes(whole[: len(whole) // 2] if harm == "cut" else b"?" + whole[1:])
            caplog.clear()
            saved = made.latest()
            assert saved is not None and saved.state.updates == 5
            (line,) = caplog.messages
            assert "update-000010" in line and Path(name).name in line


def test_what_was_not_finished_or_does_not_belong_is_not_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = checkpoints(tmp_path, 5)
    shutil.copytree(made.folder / "update-000005", made.folder / ".partial")
    (made.folder / "update-000005" / "checksums.sha256").unlink()
    assert made.latest() is None
    assert "has no checksums.sha256" in caplog.messages[0]
    made.save(state(5), LOG_PROBS, write_learner)  # over what is there
    assert made.latest() is not None and len(caplog.messages) == 1


@pytest.mark.parametrize("other", [FORMAT + 1, FORMAT - 1, None])
def test_another_format_is_refused_by_name(tmp_path: Path, other: int | None) -> None:
    made = checkpoints(tmp_path, 5)
    file = made.folder / "update-000005" / STATE
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": other}))
    with pytest.raises(UserError, match=f"update-000005 has the format {other}; this version reads {FORMAT} only"):
        made.latest()


# --- the whole run ---------------------------------------------------------------------------------------------

CHANGES = (
    "arms=[calibrated_on_policy]", "training.updates=3", "training.checkpoint_every=2", "calibration.every=2",
    "calibration.trigger={effective_share: 0.999, at_least: 1}",
    "evaluation.shifted=0", "shift.estimators=[]",
)  # fmt: skip


DRIVER, MACHINE, LEARNER = "the driver", "its machine", "ray::RankActor"


def kill(watcher: int, who: str, run: Path) -> None:
    """Kill the driver that the process ``watcher`` watches, or one of the driver's actors. ``MACHINE`` is the driver
    with the run folder: what is started again finds an empty one."""
    (driver,) = psutil.Process(watcher).children()
    if who in (DRIVER, MACHINE):
        driver.kill()
        if who == MACHINE:
            run.rename(run.with_name("lost"))
        return
    (actor,) = [p for p in driver.children(recursive=True) if p.cmdline() and p.cmdline()[0].startswith(who)]
    actor.kill()


def job(runs: Path, *kills: tuple[str, str], store: str = "") -> str:
    """Run the job to its end, as soon as it says the words of each of ``kills`` killing whom that names; what it
    printed."""
    command = [sys.executable, "-u", str(ROOT / "jobs/compare.py"), str(MICRO), *CHANGES]
    command += [f"training.checkpoint_store='{store}'"]
    watcher = subprocess.Popen(
        [*command, "--runs", str(runs), "--hardware", "cpu", "--supervise", str(len(kills))],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
    )  # fmt: skip
    assert watcher.stdout is not None
    printed, waiting, deadline = "", list(kills), time.monotonic() + 600
    try:
        for line in watcher.stdout:
            printed += line
            assert time.monotonic() < deadline, printed[-4000:]
            if waiting and waiting[0][0] in line:
                kill(watcher.pid, waiting.pop(0)[1], runs / "micro")
        code = watcher.wait(timeout=60)
    finally:
        watcher.kill()
    assert code == 0 and not waiting, printed[-4000:]
    return printed


def arm_of(run: Path, arm: str) -> dict[str, Any]:
    """What an arm left, without what a clock says."""
    found = json.loads((run / "arms" / f"{arm}-0.json").read_text())
    found["metrics"] = [m for m in found["metrics"] if not m["name"].startswith("seconds")]
    return {name: value for name, value in found.items() if name != "seconds"}


def rollouts(run: Path, arm: str) -> str:
    """All that an arm learned from, to the last digit, as text: there NaN is NaN (log-probs of what nobody sampled)."""
    return repr(ReplayStore(run / "replay" / f"{arm}-0").table(kind="rollout").to_pylist())


@pytest.mark.timeout(1500)
def test_a_killed_run_resumes_and_ends_as_one_that_was_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The learner is killed before the first checkpoint; the driver in the update after one, with all that lay on its
    machine, so that the run comes back from an S3-compatible store; with people's replies in between."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "a-secret-that-nobody-may-see")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    job(tmp_path / "whole")
    runs = tmp_path / "killed"
    for part in ("models", "replay/logs"):  # what comes before the arms need not be done again
        shutil.copytree(tmp_path / "whole" / "micro" / part, runs / "micro" / part)
    for part in ("config.yaml", "simulator.json"):
        shutil.copy(tmp_path / "whole" / "micro" / part, runs / "micro" / part)
    arm = "calibrated_on_policy (seed 0)"
    kills = ((f"{arm} update 1/3", LEARNER), (f"{arm} update 3/3", MACHINE))
    with S3Server() as server:
        address = server.address("runs")
        printed = job(runs, *kills, store=address)
        assert "could not be written" not in printed and printed.count("fetched the run from the store: ") == 1
        assert "a-secret" not in printed and not any(b"a-secret" in content for content in server.objects.values())
        # What is left in the store is the finished run.
        copy = RunCopy(address, "micro", tmp_path / "elsewhere", 2)
        (tmp_path / "elsewhere").mkdir()
        copy.fetch()
        assert (tmp_path / "elsewhere/report.html").read_bytes() == (runs / "micro/report.html").read_bytes()
    assert printed.count("a learner rank is gone") == 1
    assert printed.count("starting again from the last checkpoint (1 of 3)") == 1
    assert printed.count("the job was killed by SIGKILL; restarting it") == 1
    assert printed.count(f"{arm} update 1/3") == 2 and printed.count(f"{arm} resumes after update 2") == 1
    whole, resumed = tmp_path / "whole" / "micro", runs / "micro"
    arm = "calibrated_on_policy"
    for place in ("policies", "best"):
        one, other = (run / place / f"{arm}-0" / "model.safetensors" for run in (whole, resumed))
        assert one.read_bytes() == other.read_bytes(), place
    assert arm_of(whole, arm) == arm_of(resumed, arm) and arm_of(whole, arm)["human_turns"] == 20
    reasons = [(alignment["update"], alignment["reason"]) for alignment in arm_of(whole, arm)["alignments"]]
    assert reasons == [(1, "effective_share"), (2, "every")]  # the share was in the checkpoint that it resumed from
    assert rollouts(whole, arm) == rollouts(resumed, arm)
    assert not (resumed / "checkpoints" / f"{arm}-0").exists()
    best = resumed / "best" / f"{arm}-0"
    AutoModelForCausalLM.from_pretrained(best)
    assert {"tokenizer_config.json", "tokenizer.json"} <= {path.name for path in best.iterdir()}
    audit = subprocess.run([sys.executable, str(ROOT / "jobs/audit.py"), str(resumed)], capture_output=True, text=True)
    assert audit.returncode == 0 and "it adds up" in audit.stdout, audit.stdout + audit.stderr
