"""A fit is taken again only where nothing that bears on it differs, and only whole."""

import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import calibrated_rl
from calibrated_rl.calibration import fit_cache
from calibrated_rl.calibration.fit_cache import FitCache, key_of
from calibrated_rl.calibration.sft import SFTConfig
from calibrated_rl.data.dialogue import TokenSequence
from calibrated_rl.learner.config import LearnerConfig
from calibrated_rl.learner.lora import LoRAConfig
from calibrated_rl.learner.sample import Sample
from calibrated_rl.storage.checksums import write_checksums


def sample(*ids: int, mask: tuple[bool, ...] | None = None, weight: float = 1.0) -> Sample:
    count = len(ids)
    tokens = TokenSequence(
        ids=np.asarray(ids, np.int32), mask=np.asarray(mask or [True] * count),
        logprobs=np.full(count, np.nan, np.float32), versions=np.full(count, -1, np.int32),
        turns=np.zeros(count, np.int32),
    )  # fmt: skip
    return Sample(tokens=tokens, weight=weight)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def fitted(folder: Path, content: bytes = b"fitted") -> Path:
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(content)
    write_checksums(folder)
    (folder / "fit.json").write_text("{}")
    return folder


def test_everything_that_bears_on_a_fit_is_in_its_key(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, monitor = [sample(1, 2, 3), sample(4, 5)], [sample(6, 7)]
    sft, whole, learner = SFTConfig(), SFTConfig(adapters=False), LearnerConfig()

    def key(**changed: object) -> str:
        values = {"slot": "policy", "train": train, "monitor": monitor, "sft": sft, "learner": learner} | changed
        return key_of(base=base, **values)  # type: ignore[arg-type]

    first = key()
    assert key() == first
    assert key(learner=dataclasses.replace(learner, cpus=2.0, lora={"simulator": LoRAConfig()})) == first
    assert key(learner=dataclasses.replace(learner, lora={"policy": LoRAConfig()}), sft=whole) == key(sft=whole)
    keys = [
        key(slot="simulator"),
        key(train=[sample(1, 2, 3), sample(4, 6)]),
        key(train=[sample(4, 5), sample(1, 2, 3)]),
        key(train=[sample(1, 2), sample(3, 4, 5)]),
        key(train=[sample(1, 2, 3), sample(4, 5, mask=(True, False))]),
        key(train=[sample(1, 2, 3), sample(4, 5, weight=2.0)]),
        key(monitor=[sample(6, 8)]),
        key(train=train + monitor, monitor=monitor),
        key(sft=dataclasses.replace(sft, learning_rate=1e-3)),
        key(learner=dataclasses.replace(learner, micro_batch_tokens=2048)),
        key(learner=dataclasses.replace(learner, lora={"policy": LoRAConfig()})),
    ]
    (base / "model.safetensors").write_bytes(b"other weights")
    keys.append(key())
    (base / "model.safetensors").rename(base / "other.safetensors")
    keys.append(key())
    monkeypatch.setattr(fit_cache, "LIBRARIES", ("torch",))
    keys.append(key())
    assert len({first, *keys}) == len(keys) + 1


def test_the_code_that_computes_fits_is_in_the_key(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "package"
    parts = ("learner", "calibration", "data", "weight_sync")
    assert all((Path(calibrated_rl.__file__).parent / part).is_dir() for part in parts)
    for part in parts:
        (package / part).mkdir(parents=True)
        (package / part / "code.py").write_text("1")
    (package / "__init__.py").write_text("1")
    monkeypatch.setattr(fit_cache, "__file__", str(package / "calibration" / "fit_cache.py"))
    keys = set()
    for changed in (None, *(f"{part}/code.py" for part in parts)):
        if changed:
            (package / changed).write_text("2")
        keys.add(key_of("policy", base, [sample(1, 2)], [sample(3, 4)], SFTConfig(), LearnerConfig()))
    assert len(keys) == 5


def test_a_kept_fit_comes_back_and_a_torn_one_does_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fits, folder = FitCache(tmp_path / "kept"), fitted(tmp_path / "run" / "start")
    assert not fits.take("key", tmp_path / "other")
    fits.keep("key", folder)
    fits.keep("key", folder)  # as another run that began at the same time
    assert fits.take("key", tmp_path / "other" / "start")
    taken = {file.name: file.read_bytes() for file in (tmp_path / "other" / "start").iterdir()}
    assert taken == {file.name: file.read_bytes() for file in folder.iterdir()}
    assert os.listdir(tmp_path / "kept") == ["key"] and os.listdir(tmp_path / "other") == ["start"]

    (tmp_path / "kept" / "key" / "model.safetensors").write_bytes(b"fittec")
    assert not fits.take("key", tmp_path / "third")
    assert not (tmp_path / "third").exists() and not (tmp_path / "kept" / "key").exists()
    (line,) = caplog.messages
    assert "torn or altered" in line and "fitting it again" in line


@pytest.mark.parametrize("wrong", ["a file", "full"])
def test_where_nothing_can_be_kept_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, wrong: str
) -> None:
    fits, folder = FitCache(tmp_path / "kept"), fitted(tmp_path / "run" / "start")
    if wrong == "a file":
        (tmp_path / "kept").write_text("no folder")
        fits.keep("key", folder)
    else:

        def full(*_: object) -> None:
            raise shutil.Error([("a", "b", "[Errno 28] No space left on device")])

        with monkeypatch.context() as patch:
            patch.setattr(shutil, "copytree", full)
            fits.keep("key", folder)
        assert os.listdir(tmp_path / "kept") == []
        fits.keep("key", folder)
        monkeypatch.setattr(shutil, "copytree", full)
    assert not fits.take("key", tmp_path / "other" / "start")
    assert "not stored" in caplog.messages[0]


def test_others_that_copy_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_cache, "TOTAL_MIB", 0)
    fits = FitCache(tmp_path / "kept")
    other = fitted(tmp_path / "kept" / ".copying-x" / "whole")
    fits.keep("key", fitted(tmp_path / "start"))
    assert other.is_dir() and sorted(os.listdir(tmp_path / "kept")) == [".copying-x", "key"]


def test_what_is_large_or_long_unused_does_not_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_cache, "LARGEST_MIB", 1)
    monkeypatch.setattr(fit_cache, "TOTAL_MIB", 2)
    fits = FitCache(tmp_path / "kept")
    fits.keep("large", fitted(tmp_path / "large", bytes(2**20 + 1)))
    assert not (tmp_path / "kept").exists()
    for index, name in enumerate("abc"):
        fits.keep(name, fitted(tmp_path / name, bytes(900_000)))
        os.utime(tmp_path / "kept" / name, (index, index))
    assert sorted(os.listdir(tmp_path / "kept")) == ["b", "c"]
    assert fits.take("b", tmp_path / "taken")  # used last now
    fits.keep("d", fitted(tmp_path / "d", bytes(900_000)))
    assert sorted(os.listdir(tmp_path / "kept")) == ["b", "d"]
