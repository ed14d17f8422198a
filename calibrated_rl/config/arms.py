"""The contract of an arm: its name, its requirements, its style in reports, its training.

A built-in arm is the module of its name in ``calibrated_rl/arms/``; one of yours is a class anywhere, named by its
import path (``arms: [start, my_package.arms:Curious]``). Nothing else has a list of arms.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar, Generic, Literal, TypeVar

from calibrated_rl.components.component import import_path
from calibrated_rl.components.short_names import short_names
from calibrated_rl.config.run_config import RunConfig
from calibrated_rl.config.sections import ARMS
from calibrated_rl.data.dialogue import Dialogue, Split
from calibrated_rl.errors import UserError

Run = TypeVar("Run", contravariant=True)
Trained = TypeVar("Trained", covariant=True)
START, STATIC, INTERACTIVE, CALIBRATED, ORACLE = "start", "static", "interactive", "calibrated", "oracle"
"""Built-in arms with a part in results beyond their own row: the policy that all start from, the two baselines, the
method (the policy that is meant where none is named), and the upper bound."""
FILLED_MARKERS = tuple("ov^<>8spPhHXDd*")


@dataclass(frozen=True, slots=True)
class ArmStyle:
    """Label, colour and marker of an arm. Built-in ones have Okabe and Ito's colours (and two of Tol's), which
    colour-blind readers can tell apart; every arm also has its own marker, so that no plot depends on colour alone."""

    label: str
    meaning: str
    color: str = "#555555"
    """As ``#RRGGBB``."""
    marker: str = "h"
    """One of Matplotlib's filled markers."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"#[0-9a-fA-F]{6}", self.color):
            raise UserError(f"the colour of the arm '{self.label}' is {self.color!r}: write #RRGGBB")
        if self.marker not in FILLED_MARKERS:
            raise UserError(f"the marker of the arm '{self.label}' is {self.marker!r}: choose among {FILLED_MARKERS}")


class Arm(ABC, Generic[Run, Trained]):
    """One way to train a policy; all arms get the same budget of policy tokens that carry loss.

    It is trained on a ``training.training_run.TrainingRun`` and returns a ``training.arm_run.ArmRun``:
    ``Arm["TrainingRun", "ArmRun"]``. Configurations are read without either, so this package does not import them.

    A subclass declares its requirements in class attributes, so that a configuration is checked before anything starts.
    """

    name: ClassVar[str]
    """As in configs, file names and reports: letters, digits and ``_``."""
    style: ClassVar[ArmStyle]
    order: ClassVar[float] = 100.0
    """Position in tables and plots; ties are in the order of the config."""
    compared_with: ClassVar[Sequence[str]] = ()
    """Names of the arms whose paired difference to this one is reported, where both were run."""
    meets: ClassVar[Literal["nobody", "simulator", "human"]] = "simulator"
    """The user while the policy learns. ``human`` needs a scripted human (``human`` in the config)."""
    calibrates: ClassVar[Literal["never", "once", "again"]] = "never"
    """Whether its simulator is aligned with human logs: before training, or again while the policy moves."""
    asks_humans: ClassVar[bool] = False
    """Whether it requests further replies of a scripted human."""
    learns_from_logs: ClassVar[bool] = False
    """Whether it trains on logged policy turns themselves."""
    values_turns: ClassVar[bool] = False
    """Whether it fits a value of single turns (``training.turn_value``)."""
    runs_rollouts: ClassVar[bool] = True
    """Whether it learns from the policy's own rollouts."""

    @classmethod
    def needs_human(cls) -> bool:
        """Whether the arm can run only with a scripted human."""
        return cls.meets == "human" or cls.asks_humans

    def problems(self, config: RunConfig) -> Iterator[str]:
        """Problems of ``config`` for this arm, besides those that the class attributes imply; called on loading."""
        return iter(())

    def check_logs(  # noqa: B027 (most arms take any logs)
        self, logs: Mapping[Split, Sequence[Dialogue]], reserve: Sequence[Dialogue]
    ) -> None:
        """Refuse logs that the arm cannot work with, before anything starts.

        Args:
            logs: those that all arms see, by split.
            reserve: calibration logs kept apart by ``calibration.reserve``.

        Raises:
            UserError: says what it needs, and what the logs have.
        """

    @abstractmethod
    def train(self, run: Run, seed: int) -> Trained:
        """Train with one seed on the parts that ``run`` has started, from the last checkpoint if there is one. Returns
        the arm's run, with the trained policy served and in the learner."""


def builtin_arms() -> tuple[str, ...]:
    """Names of the built-in arms, in alphabetical order. Imports none of them."""
    return short_names(ARMS)


def find_arm(name: str) -> type[Arm]:
    """The class of the arm called ``name``: a built-in one, or an import path.

    Raises:
        UserError: there is no such arm, or the import path is of no arm.
    """
    path = name
    if ":" not in name:
        if name not in builtin_arms():
            raise UserError(f"there is no arm '{name}'; there are {', '.join(builtin_arms())}, or package.module:Class")
        path = f"{ARMS}.{name}:{''.join(part.title() for part in name.split('_'))}"
    cls = import_path(path)
    if not (isinstance(cls, type) and issubclass(cls, Arm)):
        raise UserError(f"'{path}' is no arm: it must be a class derived from calibrated_rl.config.arms:Arm")
    missing = [attribute for attribute in ("name", "style") if not hasattr(cls, attribute)]
    if missing:
        raise UserError(f"'{path}' is no arm: it has no `{missing[0]}`")
    if not isinstance(cls.name, str) or not cls.name.isidentifier():
        raise UserError(f"'{path}': the name of an arm is made of letters, digits and _, not {cls.name!r}")
    if ":" in name and cls.name in builtin_arms():
        raise UserError(f"'{path}': '{cls.name}' is the name of a built-in arm; choose another one")
    return cls


def existing_arms(names: Iterable[str]) -> Iterator[type[Arm]]:
    """The arms of these names, without those that do not exist: they are reported where they are named."""
    for name in names:
        with suppress(UserError):
            yield find_arm(name)


def table_order(name: str) -> float:
    """Position of the arm called ``name`` in tables: built-in arms first."""
    return find_arm(name).order if name in builtin_arms() else Arm.order


def find_arms(names: Iterable[str]) -> list[type[Arm]]:
    """The arms of these names, each once, in the order of tables."""
    return sorted(dict.fromkeys(find_arm(name) for name in names), key=lambda arm: arm.order)
