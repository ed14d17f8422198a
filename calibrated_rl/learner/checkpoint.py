"""Checkpoints of the learner, in a form from which any number of ranks and any ZeRO stage can resume.

A ``Snapshot`` is taken of all ranks while training pauses, and written while it continues. On disk it has, a
trainable model, a folder in Hugging Face format and ``NAME.optimizer.safetensors`` (``gathered.py``), beside them
``random.safetensors`` with the random state of every rank; ``learner.json`` lists the content, and
``checksums.sha256``, written last, has the checksum of every file: a torn or altered checkpoint is refused by the name
of the file. Nothing in it is a pickle.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from calibrated_rl.errors import UserError
from calibrated_rl.learner.config import LearnerConfig, OptimizerConfig
from calibrated_rl.learner.gathered import MASTER, gather, kinds, scatter
from calibrated_rl.learner.hosted import HostedModel
from calibrated_rl.learner.lora import LoRAConfig
from calibrated_rl.learner.value_head import FILE as HEAD_FILE
from calibrated_rl.learner.world import World
from calibrated_rl.storage.checksums import NAME, check_checksums, write_checksums
from calibrated_rl.storage.files import read_json, to_disk
from calibrated_rl.weight_sync.lora import with_adapters_merged

INDEX = "learner.json"
WEIGHTS = "model.safetensors"
OPTIMIZER = "{name}.optimizer.safetensors"
ADAPTERS = "{name}.adapters.safetensors"
"""Of a model that is trained by adapters; the model in the folder beside it is their base."""
RANDOM = "random.safetensors"
FORMAT_VERSION = 3
"""Increased whenever a program of another version would misread or miss something. 1 had DeepSpeed's own files, for one
layout, 2 no adapters."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The trainable models of a learner at one moment, in the memory of its first rank."""

    index: dict[str, Any]
    """The content of ``learner.json``."""
    files: dict[str, bytes]
    """Small files by their path in the checkpoint."""
    tensors: dict[str, dict[str, Tensor]]
    """Tensors on the CPU, by name, of each safetensors file."""

    def write(self, folder: Path) -> None:
        """Write it into ``folder``, replacing its content.

        Raises:
            OSError: the disk does not take it.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for index_file in (INDEX, NAME):
            (folder / index_file).unlink(missing_ok=True)
        for path, tensors in self.tensors.items():
            (folder / path).parent.mkdir(exist_ok=True)
            try:
                save_file(tensors, folder / path, metadata={"format": "pt"})
            except SafetensorError as error:
                raise OSError(f"{folder / path}: {error}") from error
        for path, content in self.files.items():
            (folder / path).write_bytes(content)
        (folder / INDEX).write_text(json.dumps(self.index, indent=1), encoding="utf-8")
        write_checksums(folder)
        for new_path in (*folder.rglob("*"), folder):
            to_disk(new_path)


def take(models: Mapping[str, HostedModel], world: World, config: LearnerConfig) -> Snapshot | None:
    """Copy the state of all trainable ``models``. All ranks must call it; rank 0 gets it."""
    index: dict[str, Any] = {
        "format": FORMAT_VERSION, "dtype": config.dtype, "ranks": config.ranks, "zero_stage": config.zero_stage,
        "models": {},
    }  # fmt: skip
    files: dict[str, bytes] = {}
    tensors: dict[str, dict[str, Tensor]] = {}
    for name, model in models.items():
        if not model.trainable:
            continue
        assert model.optimizer is not None
        tensors[f"{name}/{WEIGHTS}"] = model.weights()
        state, adam_step = gather(model.engine, model.parameters(), keep=world.rank == 0)
        tensors[OPTIMIZER.format(name=name)] = state
        if model.lora is not None:
            tensors[ADAPTERS.format(name=name)] = model.adapters()
        if model.has_value_head:
            tensors[f"{name}/{HEAD_FILE}"] = model.value_head()
        files |= {f"{name}/{file}": content for file, content in model.files.items()}
        index["models"][name] = {
            "optimizer": dataclasses.asdict(model.optimizer),
            "seed": model.seed,
            "steps": model.steps,
            "adam_step": adam_step,
            "order": model.order.bit_generator.state,
            "lora": None if model.lora is None else dataclasses.asdict(model.lora),
            "base": model.base,
        } | ({"value_head": True} if model.has_value_head else {})
    tensors[RANDOM] = {
        f"{device}.{rank}": state
        for rank, states in enumerate(world.gather(world.random_states()))
        for device, state in states.items()
    }
    return Snapshot(index=index, files=files, tensors=tensors) if world.rank == 0 else None


def read(
    load: Callable[..., None],
    models: Mapping[str, HostedModel],
    world: World,
    config: LearnerConfig,
    folder: Path,
) -> None:
    """Load all models of the checkpoint in ``folder``. All ranks must call it, and each compares all checksums: if only
    one refused, the others would wait for it.

    Raises:
        UserError: the folder is no whole checkpoint, a file of it was altered, or it is of another format or dtype.
    """
    file = folder / INDEX
    if not file.is_file():
        raise UserError(f"{folder} is not a whole checkpoint of the learner: it has no {INDEX}")
    index = read_json(file)
    if not isinstance(index.get("format"), int):
        raise UserError(f"{file} carries no format version: it is not a checkpoint of the learner")
    if index["format"] != FORMAT_VERSION:
        age = "newer" if index["format"] > FORMAT_VERSION else "older"
        raise UserError(f"{file}: format version {index['format']} is {age} than this program's {FORMAT_VERSION}")
    check_checksums(folder)
    if index["dtype"] != config.dtype:
        raise UserError(f"{folder} was written with learner.dtype {index['dtype']}, and it is {config.dtype} now")
    for name, saved in index["models"].items():
        lora = config.adapters_of(name)
        if saved["lora"] != (None if lora is None else dataclasses.asdict(lora)):
            raise UserError(f"{folder} was written with learner.lora.{name} {saved['lora']}, and it is {lora} now")
        adapters = None if lora is None else folder / ADAPTERS.format(name=name)
        optimizer = OptimizerConfig(**saved["optimizer"])
        load(
            name, folder / name, optimizer=optimizer, seed=saved["seed"], adapters=adapters, base=saved["base"],
            value_head=saved.get("value_head", False),
        )  # fmt: skip
        model = models[name]
        _read_optimizer(model, folder / OPTIMIZER.format(name=name), saved["adam_step"])
        model.steps = saved["steps"]
        model.order.bit_generator.state = saved["order"]
    _read_random(world, folder / RANDOM)


def merge_adapters(folder: Path, name: str) -> None:
    """Where the model ``name`` of the checkpoint in ``folder`` was trained by adapters, merge them into it. The
    folder is no checkpoint any more then: this is for taking the model out of it."""
    adapters = folder / ADAPTERS.format(name=name)
    if not adapters.is_file():
        return
    lora = LoRAConfig(**read_json(folder / INDEX)["models"][name]["lora"])
    weights, matrices = (load_file(file) for file in (folder / name / WEIGHTS, adapters))
    save_file(with_adapters_merged(weights, matrices, lora.scale), folder / name / WEIGHTS, {"format": "pt"})
    adapters.unlink()


def _read_optimizer(model: HostedModel, file: Path, adam_step: int) -> None:
    parameters = model.parameters()
    with safe_open(file, "pt") as stored:
        expected_keys = {f"{kind}.{name}" for kind in kinds(model.engine, adam_step) for name in parameters}
        if model.lora is not None and set(stored.keys()) - expected_keys == {f"{MASTER}.{name}" for name in parameters}:
            raise UserError(f"{file} is of adapters in bfloat16, and they are float32 now: start the arm over")
        if expected_keys != set(stored.keys()):
            raise UserError(f"{file} does not contain the optimizer state of the model beside it")
        scatter(model.engine, parameters, _Stored(stored), adam_step)


class _Stored(Mapping[str, Tensor]):
    """Tensors of an open safetensors file, read one by one: all of them may not fit beside the model."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._file.get_tensor(name)
        return tensor

    def __iter__(self) -> Any:
        return iter(self._file.keys())

    def __len__(self) -> int:
        return len(self._file.keys())


def _read_random(world: World, file: Path) -> None:
    """Each rank takes its own state. Where there are more ranks than before, the additional ones reuse the
    states of the others: ranks are seeded alike at first, too."""
    stored = load_file(file)
    ranks = 1 + max(int(key.rpartition(".")[2]) for key in stored)
    world.set_random_states(
        {key.partition(".")[0]: state for key, state in stored.items() if key.endswith(f".{world.rank % ranks}")}
    )
