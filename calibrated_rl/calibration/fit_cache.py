"""Cache of fits on this machine: a run whose models begin with a fit that an earlier run has done reuses its result.

On a CPU the same inputs give the same fit, bit for bit. The key is a digest of all inputs, the program's own code and
the libraries' versions included. The cache stores small models only, and evicts the least recently used ones.

The cache is optional: where its folder cannot be used, the run fits its models as if there were no cache.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from calibrated_rl.calibration.sft import SFTConfig
from calibrated_rl.errors import UserError, first_line
from calibrated_rl.learner.batch import SampleBatch
from calibrated_rl.learner.config import LearnerConfig
from calibrated_rl.learner.sample import Sample
from calibrated_rl.storage.checksums import check_checksums

logger = logging.getLogger(__name__)

LARGEST_MIB = 256
"""Larger ones are not stored: copies of them would fill disks."""
TOTAL_MIB = 2048
"""Beyond that, the cache evicts the least recently used ones."""
COPYING = ".copying-"
LIBRARIES = ("torch", "transformers", "deepspeed", "numpy", "safetensors")
IRRELEVANT = ("lora", "cpus", "labels", "timeout_seconds", "share_weights", "max_skipped_steps")
"""Settings of the learner that do not bear on a fit; of adapters, only its own model's do."""
CODE = ("learner", "calibration", "data", "weight_sync")
"""Folders of this package whose code computes a fit."""


def key_of(
    slot: str, base: Path, train: Sequence[Sample], monitor: Sequence[Sample], sft: SFTConfig, learner: LearnerConfig
) -> str:
    """Digest of everything that bears on a fit of the model in folder ``base``."""
    digest = hashlib.sha256()

    def add(*values: Any) -> None:
        for value in values:
            content = value if isinstance(value, bytes) else json.dumps(value, sort_keys=True).encode()
            digest.update(len(content).to_bytes(8, "big") + content)

    lora = learner.adapters_of(slot) if sft.adapters else None
    add(slot, dataclasses.asdict(sft), None if lora is None else dataclasses.asdict(lora))
    add({name: value for name, value in dataclasses.asdict(learner).items() if name not in IRRELEVANT})
    add({name: importlib.metadata.version(name) for name in LIBRARIES}, torch.backends.cpu.get_cpu_capability())
    add(torch.cuda.get_device_name() if torch.cuda.is_available() else "")
    package = Path(__file__).parents[1]
    for folder_name in CODE:
        for file in sorted((package / folder_name).rglob("*.py")):
            add(file.relative_to(package).as_posix(), file.read_bytes())
    for file in sorted(file for file in base.iterdir() if file.is_file()):
        add(file.name, _file_digest(file))
    for samples in (train, monitor):
        batch = SampleBatch.of(samples)
        for field in dataclasses.fields(batch):
            value = getattr(batch, field.name)
            add(field.name, [] if value is None else np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def _file_digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class FitCache:
    """Folders of fitted models, by key."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def take(self, key: str, folder: Path) -> bool:
        """Copy the fit to ``folder``, if the cache has it and it is intact."""
        cached = self._folder / key
        if not cached.is_dir():
            return False
        try:
            with tempfile.TemporaryDirectory(dir=_created(folder.parent), prefix=COPYING) as aside:
                copy = Path(shutil.copytree(cached, Path(aside) / "whole"))
                check_checksums(copy)  # of the copy: another process may evict the original meanwhile
                shutil.rmtree(folder, ignore_errors=True)
                copy.rename(folder)
            os.utime(cached)
        except UserError as error:
            logger.warning(f"{error}; fitting it again")
            shutil.rmtree(cached, ignore_errors=True)
        except OSError as error:
            logger.warning(f"the fit in the cache cannot be used: {first_line(error)}")
        return (folder / "fit.json").is_file()

    def keep(self, key: str, folder: Path) -> None:
        """Store the fit in ``folder``, unless it is large."""
        if _size(folder) > LARGEST_MIB * 2**20:
            return
        try:
            with tempfile.TemporaryDirectory(dir=_created(self._folder), prefix=COPYING) as aside:
                copy = Path(shutil.copytree(folder, Path(aside) / "whole"))
                if not (self._folder / key).exists():
                    copy.rename(self._folder / key)
            self._evict()
        except OSError as error:
            logger.warning(f"the fit is not stored in the cache: {first_line(error)}")

    def _evict(self) -> None:
        """Remove the least recently used fits until the rest is small enough."""
        cached = [folder for folder in self._folder.iterdir() if not folder.name.startswith(COPYING)]
        cached.sort(key=lambda folder: folder.stat().st_mtime)
        total = sum(map(_size, cached))
        for oldest in cached[:-1]:
            if total <= TOTAL_MIB * 2**20:
                break
            total -= _size(oldest)
            shutil.rmtree(oldest, ignore_errors=True)


def _created(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
