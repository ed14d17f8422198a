"""A run folder read back: its settings, its trained policies, its calibrated simulator. Starts nothing."""

import datetime
import difflib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from calibrated_rl.config.arms import CALIBRATED, table_order
from calibrated_rl.config.load import load_config, settings_of
from calibrated_rl.config.run_config import RunConfig
from calibrated_rl.endpoints.config import RUNNING as ENDPOINT_RUNNING
from calibrated_rl.errors import UserError
from calibrated_rl.inference.config import EngineConfig
from calibrated_rl.models.checks import check_folder
from calibrated_rl.models.shape import shape_of
from calibrated_rl.run.layout import POLICIES, refuse_old_layout
from calibrated_rl.run.memory import RAY_AND_DRIVER, engine_needs, refuse_too_little
from calibrated_rl.storage.files import read_json
from calibrated_rl.tasks.base import ScriptedHuman, Task
from calibrated_rl.tasks.checked import build_human, build_task

MAY_CHANGE = (
    "arms", "seeds", "control_", "variants", "label", "report.", "training.checkpoint", "restarts", "reuse_fits",
    "health.", "judge_config.deadline", "judge_config.at_once",
    "policy.replicas", "simulator.replicas", "policy.scaling", "simulator.scaling", "replay.",
    *(f"{role}.engine.{key}" for role in ("policy", "simulator", "proxy") for key in (
        "max_num_seqs", "kv_cache_mib", "least_kv_cache_mib", "threads", "eager", "own_process", "num_cpus", "num_gpus",
        "labels", "start_timeout", "timeout_seconds", "tensor_parallel",
    )),
    *(f"learner.{key}" for key in (
        "ranks", "zero_stage", "micro_batch_tokens", "gradient_checkpointing", "compile", "threads", "cpus", "gpus",
        "labels", "timeout", "share_weights", "max_skipped_steps",
    )),
)  # fmt: skip
"""Settings that may differ when a run resumes: the work that is left, what is watched, and the hardware."""
_RUNNING_AN_ENDPOINT = re.compile(rf"endpoints\.[^.]+\.({'|'.join(ENDPOINT_RUNNING)})")
"""And how the answers of an API are got, and at what price."""


@dataclass(frozen=True, slots=True)
class SavedPolicy:
    """One trained policy of a run."""

    arm: str
    seed: int
    folder: Path
    """The model in Hugging Face format."""
    result: Mapping[str, Any] | None
    """What the run wrote to ``arms/ARM-SEED.json``; None where the run was stopped before."""

    @property
    def name(self) -> str:
        return f"{self.arm}-{self.seed}"


@dataclass(frozen=True, slots=True)
class SavedRun:
    """The content of a run folder."""

    folder: Path
    config: RunConfig
    """The run's settings, with overrides."""
    changed: list[str]
    """Settings that were overridden with other values, as dotted keys."""
    policies: list[SavedPolicy]
    """At least one, in the order of tables and of seeds."""

    def policy(self, name: str = "") -> SavedPolicy:
        """The policy called ``name`` (ARM-SEED); without a name the first one of ``CALIBRATED``, else the last.

        Raises:
            UserError: there is no such policy; lists the existing ones.
        """
        if not name:
            return next((p for p in self.policies if p.arm == CALIBRATED), self.policies[-1])
        for policy in self.policies:
            if policy.name == name:
                return policy
        names = [policy.name for policy in self.policies]
        similar_names = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean '{similar_names[0]}'?" if similar_names else f"; there are: {', '.join(names)}"
        raise UserError(f"{self.folder} has no policy '{name}'{hint}")

    def task(self) -> Task:
        return build_task(self.config.task, self.config.task_config, "task_config")

    def human(self, task: Task) -> ScriptedHuman:
        """The scripted human of the run.

        Raises:
            UserError: the run has human logs only.
        """
        if not self.config.human:
            raise UserError(f"{self.folder}: the run has no scripted human (`human` is empty)")
        return build_human(self.config.human, self.config.human_config, "human_config", task)

    def model(self, name: str) -> Path:
        """A model that was made for the run: ``calibrated`` (the simulator, aligned before training), ``proxy``, ...

        Raises:
            UserError: the run has none of this name, or not a whole one.
        """
        folder = self.folder / "models" / name
        if not folder.is_dir():
            raise UserError(f"{self.folder} has no model '{name}': {folder} is not there")
        check_folder(folder, name)
        return folder


def open_run(folder: Path, overrides: Sequence[str] = ()) -> SavedRun:
    """Read the run in ``folder``.

    Args:
        overrides: settings as ``key=value`` that replace the run's own.

    Raises:
        UserError: it is no run folder, it has no policy or a broken one, or an override does not fit.
    """
    file = config_file(folder)
    refuse_old_layout(folder)
    policy_folders = [
        (match[1], int(match[2]), path)
        for path in (folder / POLICIES).glob("*")
        if (match := re.fullmatch(r"(\w+)-(\d+)", path.name)) and path.is_dir()
    ]
    if not policy_folders:
        raise UserError(f"{folder} has no trained policy yet: there is no policies/ARM-SEED in it")
    policies = []
    for arm, seed, path in sorted(policy_folders, key=lambda item: (table_order(item[0]), item)):
        check_folder(path, path.name)
        result_file = folder / "arms" / f"{path.name}.json"
        result = read_json(result_file) if result_file.is_file() else None
        policies.append(SavedPolicy(arm, seed, path, result))
    config = load_config(file, overrides, saved=True)
    changed = changed_settings(load_config(file, saved=True), config)
    return SavedRun(folder=folder, config=config, changed=changed, policies=policies)


def config_file(folder: Path) -> Path:
    """The settings that the run in ``folder`` was made with.

    Raises:
        UserError: it is no run folder.
    """
    if not folder.is_dir():
        raise UserError(f"there is no run folder {folder}")
    file = folder / "config.yaml"
    if not file.is_file():
        raise UserError(f"{folder} is not a run folder: it has no config.yaml")
    return file


def check_engines_fit(engines: Mapping[str, tuple[EngineConfig, Path]]) -> None:
    """Refuse engines that do not fit into this machine's memory; not on a cluster, and not those on a GPU.

    Args:
        engines: by role, with the folder of the model.

    Raises:
        UserError: says what is needed for what.
    """
    if "RAY_ADDRESS" in os.environ:
        return
    needs = {
        f"{role} engine": engine_needs(engine, shape_of(folder))
        for role, (engine, folder) in engines.items()
        if not engine.num_gpus
    }
    refuse_too_little(needs | {"Ray and driver": {"processes": RAY_AND_DRIVER}}, psutil.virtual_memory().available)


def dated(config: RunConfig, *folders: Path, today: bool = True) -> RunConfig:
    """``config`` with the date of its prompts, where it has none: that of the first of ``folders`` in which a run was
    begun, or else (if ``today``) today's."""
    if config.date:
        return config
    files = [file for folder in folders if (file := folder / "config.yaml").is_file()]
    recorded = next((date for file in files if (date := load_config(file, saved=True).date)), "")
    return replace(config, date=recorded or (datetime.date.today().isoformat() if today else ""))


def refuse_other_settings(folder: Path, config: RunConfig) -> None:
    """Refuse to resume a run with settings other than those that it was begun with, except for ``MAY_CHANGE``.

    Raises:
        UserError: names the settings that differ, or the folder is laid out as an earlier version did.
    """
    refuse_old_layout(folder)
    file = folder / "config.yaml"
    changed = []
    if file.is_file():
        original = load_config(file, saved=True)
        # Runs of earlier versions have no date, and may resume with that of today.
        changed = changed_settings(original if original.date else replace(original, date=config.date), config)
    if deciding := [k for k in changed if not (k.startswith(MAY_CHANGE) or _RUNNING_AN_ENDPOINT.fullmatch(k))]:
        raise UserError(
            f"{folder} was begun with other settings ({', '.join(deciding)}): give the run another name "
            "(name=...), or remove the folder"
        )


def changed_settings(first: RunConfig, second: RunConfig) -> list[str]:
    """Dotted keys of the settings in which two configs differ."""
    first_flat, second_flat = (_flat(settings_of(config)) for config in (first, second))
    return sorted(key for key in first_flat.keys() | second_flat.keys() if first_flat.get(key) != second_flat.get(key))


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict) or not tree:
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
