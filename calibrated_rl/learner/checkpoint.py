"""Checkpoints of the learner: per trainable model a Hugging Face folder and DeepSpeed's state.

``learner.json`` names what is there, and ``checksums.sha256``, written last, has the checksum of every file: a torn or
altered checkpoint is refused by the name of the file. DeepSpeed's state is a pickle: restore only from checkpoints of
your own runs.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from calibrated_rl.checksums import NAME, check_checksums, write_checksums
from calibrated_rl.errors import UserError
from calibrated_rl.files import read_json
from calibrated_rl.learner.config import LearnerConfig, OptimizerConfig
from calibrated_rl.learner.hosted import HostedModel
from calibrated_rl.learner.world import World

INDEX = "learner.json"
STATE = "deepspeed"
FORMAT_VERSION = 1
"""Raised whenever an older program would misread or miss something."""


def _layout(config: LearnerConfig) -> dict[str, Any]:
    return {"ranks": config.ranks, "zero_stage": config.zero_stage, "dtype": config.dtype}


def write(models: dict[str, HostedModel], world: World, config: LearnerConfig, folder: Path) -> None:
    """Write all trainable ``models``. All ranks must call it."""
    folder.mkdir(parents=True, exist_ok=True)
    for last in (INDEX, NAME):
        (folder / last).unlink(missing_ok=True)
    world.barrier()
    index: dict[str, Any] = {"format": FORMAT_VERSION, "layout": _layout(config), "models": {}}
    for name, model in models.items():
        if not model.trainable:
            continue
        assert model.optimizer is not None
        model.save(folder / name)
        model.engine.save_checkpoint(str(folder / f"{name}.{STATE}"), tag=STATE)
        index["models"][name] = {
            "optimizer": dataclasses.asdict(model.optimizer),
            "seed": model.seed,
            "steps": model.steps,
            "order": model.order.bit_generator.state,
        }
    torch.save(torch.get_rng_state(), folder / f"random-{world.rank}.pt")
    world.barrier()
    if world.rank == 0:
        partial = folder / f".{INDEX}.partial"
        partial.write_text(json.dumps(index, indent=1), encoding="utf-8")
        partial.rename(folder / INDEX)
        write_checksums(folder)
    world.barrier()


def read(
    load: Callable[..., None],
    models: dict[str, HostedModel],
    world: World,
    config: LearnerConfig,
    folder: Path,
) -> None:
    """Load all models of the checkpoint in ``folder``. All ranks must call it, and each compares all checksums: if one
    alone refused, the others would wait for it.

    Raises:
        UserError: the folder is no whole checkpoint, a file of it was altered, or it is of a newer format or another
            layout of ranks.
    """
    file = folder / INDEX
    if not file.is_file():
        raise UserError(f"{folder} is not a whole checkpoint of the learner: it has no {INDEX}")
    check_checksums(folder)
    index = read_json(file)
    if not isinstance(index.get("format"), int):
        raise UserError(f"{file} carries no format version: it is not a checkpoint of the learner")
    if index["format"] > FORMAT_VERSION:
        raise UserError(f"{file}: format version {index['format']} is newer than this program's {FORMAT_VERSION}")
    if index["layout"] != _layout(config):
        raise UserError(
            f"{folder} was written with {index['layout']} and cannot be resumed with {_layout(config)}"
        )
    for name, saved in index["models"].items():
        load(name, folder / name, optimizer=OptimizerConfig(**saved["optimizer"]), seed=saved["seed"])
        model = models[name]
        loaded, _ = model.engine.load_checkpoint(str(folder / f"{name}.{STATE}"), tag=STATE)
        if loaded is None:
            raise UserError(f"{folder}: the optimizer state of '{name}' is missing")
        model.steps = saved["steps"]
        model.order.bit_generator.state = saved["order"]
    torch.set_rng_state(torch.load(folder / f"random-{world.rank}.pt", weights_only=True))
