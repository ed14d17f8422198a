"""Checkpoints of an arm: whole or refused, the last ones and the best kept, written beside the training."""

import json
import resource
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from calibrated_rl.errors import UserError
from calibrated_rl.learner.checkpoint import Snapshot
from calibrated_rl.runtime.background import BackgroundWriter
from calibrated_rl.storage.checksums import check_checksums
from calibrated_rl.storage.files import read_json
from calibrated_rl.training.checkpoints import FORMAT, STATE, ArmCheckpoints, ArmState

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
