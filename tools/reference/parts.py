"""The built-in parts, found in their packages: adding a file there adds it to the page."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from calibrated_rl.components.short_names import full_path, short_names
from calibrated_rl.config.arms import Arm, builtin_arms, find_arms
from calibrated_rl.learner.losses.base import Loss
from calibrated_rl.users.proxies.base import Proxy


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part."""

    name: str
    """Its name in YAML."""
    cls: type


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Parts that the same key names."""

    title: str
    protocol: str
    """Import path of the protocol for parts of your own."""
    place: str
    """Its YAML, with PART for the part and ... for its settings."""
    parts: tuple[Part, ...]


def kinds() -> list[Kind]:
    """All kinds of parts that have settings of their own."""
    return [
        Kind(
            title="Tasks", protocol="calibrated_rl.tasks.base:Task", place="task: PART\ntask_config: {...}",
            parts=_with("calibrated_rl.examples", lambda cls: hasattr(cls, "scenarios")),
        ),
        Kind(
            title="Scripted humans", protocol="calibrated_rl.tasks.base:ScriptedHuman",
            place="human: PART\nhuman_config: {...}",
            parts=_with("calibrated_rl.examples", lambda cls: hasattr(cls, "log_prob")),
        ),
        Kind(
            title="Judges", protocol="calibrated_rl.judges.base:Judge", place="judge: PART\njudge_config: {...}",
            parts=_with("calibrated_rl.judges", lambda cls: hasattr(cls, "outcome")),
        ),
        Kind(
            title="Log readers", protocol="calibrated_rl.logs.base:LogReader", place="logs: {reader: PART, ...}",
            parts=(
                *_with("calibrated_rl.logs", lambda cls: hasattr(cls, "read")),
                *_with("calibrated_rl.examples", lambda cls: hasattr(cls, "read")),
            ),
        ),
        Kind(
            title="Proxies", protocol="calibrated_rl.users.proxies.base:Proxy",
            place="proxies: {NAME: {model: PART, ...}}",
            parts=_with("calibrated_rl.users.proxies", lambda cls: issubclass(cls, Proxy)),
        ),
        Kind(
            title="Calibration methods", protocol="calibrated_rl.calibration.base:CalibrationMethod",
            place="calibration: {method: PART, method_config: {...}}",
            parts=_with("calibrated_rl.calibration", lambda cls: hasattr(cls, "align")),
        ),
        Kind(
            title="Losses", protocol="calibrated_rl.learner.losses.base:Loss",
            place="training: {loss: PART, loss_config: {...}}",
            parts=_with("calibrated_rl.learner.losses", lambda cls: issubclass(cls, Loss)),
        ),
        Kind(
            title="Advantages", protocol="calibrated_rl.learner.advantages.base:Advantage",
            place="training: {advantage: PART, advantage_config: {...}}",
            parts=_short("calibrated_rl.learner.advantages"),
        ),
        Kind(
            title="Turn values", protocol="calibrated_rl.turn_values.base:TurnValueMethod",
            place="training: {turn_value: PART, turn_value_config: {...}}",
            parts=_short("calibrated_rl.turn_values"),
        ),
        Kind(
            title="Estimators", protocol="calibrated_rl.shift.interface:Estimator", place="shift: {estimators: [PART]}",
            parts=_short("calibrated_rl.shift.estimators"),
        ),
    ]  # fmt: skip


def arms() -> list[type[Arm]]:
    """The built-in arms, in the order of tables."""
    return find_arms(builtin_arms())


def _with(package: str, belongs: Callable[[type], bool]) -> tuple[Part, ...]:
    """Classes with settings in the modules below ``package`` that can be built, by their import paths."""
    return tuple(
        Part(name=f"{module.__name__}:{cls.__name__}", cls=cls)
        for module in _modules(package)
        for _, cls in inspect.getmembers(module, inspect.isclass)
        if cls.__module__ == module.__name__ and hasattr(cls, "Config") and not inspect.isabstract(cls) and belongs(cls)
    )


def _short(package: str) -> tuple[Part, ...]:
    """The parts with short names, those of their modules."""
    parts = []
    for name in short_names(package):
        module, _, cls = full_path(package, name, "part").partition(":")
        parts.append(Part(name=name, cls=getattr(importlib.import_module(module), cls)))
    return tuple(parts)


def _modules(package: str) -> Iterator[Any]:
    root = importlib.import_module(package)
    for module_info in pkgutil.walk_packages(root.__path__, f"{package}."):
        if not module_info.ispkg:
            yield importlib.import_module(module_info.name)
