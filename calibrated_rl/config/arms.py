"""What an arm is, as far as the configuration and reports go: its name, what it needs, how it is drawn.

An arm of ours is the one module of ``calibrated_rl/arms/`` that bears its name; one of yours is a class anywhere, named
by its import path (``arms: [start, my_package.arms:Curious]``). Nothing else has a list of arms.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from calibrated_rl.components.component import import_path
from calibrated_rl.components.short_names import short_names
from calibrated_rl.data.dialogue import Dialogue, Split
from calibrated_rl.errors import UserError

if TYPE_CHECKING:
    from calibrated_rl.config.run_config import RunConfig
    from calibrated_rl.training.arm_run import ArmRun
    from calibrated_rl.training.training_run import TrainingRun

PACKAGE = "calibrated_rl.arms"
FILLED_MARKERS = tuple("ov^<>8spPhHXDd*")


@dataclass(frozen=True, slots=True)
class ArmStyle:
    """How an arm is named and drawn. Ours have Okabe and Ito's colours (and two of Tol's), which colour-blind readers
    can tell apart; every arm also has a marker of its own, so that nothing hangs on colour alone."""

    label: str
    meaning: str
    color: str = "#555555"
    """As ``#RRGGBB``."""
    marker: str = "h"
    """Matplotlib's, of those that are filled."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"#[0-9a-fA-F]{6}", self.color):
            raise UserError(f"the colour of the arm '{self.label}' is {self.color!r}: write #RRGGBB")
        if self.marker not in FILLED_MARKERS:
            raise UserError(f"the marker of the arm '{self.label}' is {self.marker!r}: choose among {FILLED_MARKERS}")


class Arm(ABC):
    """One way to train a policy; all arms get the same budget of policy tokens that carry loss.

    A subclass says what it needs in class attributes, so that a configuration is checked before anything starts.
    """

    name: ClassVar[str]
    """As in configs, file names and reports: letters, digits and ``_``."""
    style: ClassVar[ArmStyle]
    order: ClassVar[float] = 100.0
    """Where it stands in tables and plots; of equals the one named first in the config."""
    compared_with: ClassVar[Sequence[str]] = ()
    """Names of the arms whose paired difference to this one is reported, where both were run."""
    meets: ClassVar[Literal["nobody", "simulator", "human"]] = "simulator"
    """Who answers the policy while it learns. ``human`` needs people who are a program (``human`` in the config)."""
    calibrates: ClassVar[Literal["never", "once", "again"]] = "never"
    """Whether its simulator is aligned with human logs: before training, or again while the policy moves."""
    asks_humans: ClassVar[bool] = False
    """Whether it asks people for further replies, for which they must be a program."""
    learns_from_logs: ClassVar[bool] = False
    """Whether it trains on logged policy turns themselves."""
    runs_rollouts: ClassVar[bool] = True
    """Whether it learns from what the policy says."""

    @classmethod
    def needs_human(cls) -> bool:
        """Whether the arm can run only where people are a program."""
        return cls.meets == "human" or cls.asks_humans

    def problems(self, config: "RunConfig") -> Iterator[str]:
        """What is wrong with ``config`` for this arm, beside what the class attributes say; asked when it is loaded."""
        return iter(())

    def check_logs(  # noqa: B027 (most arms take any logs)
        self, logs: Mapping[Split, Sequence[Dialogue]], reserve: Sequence[Dialogue]
    ) -> None:
        """Refuse logs that the arm cannot work with, before anything starts.

        Args:
            logs: those that all arms see, by split.
            reserve: calibration logs held back by ``calibration.reserve``.

        Raises:
            UserError: says what it needs, and what is there.
        """

    @abstractmethod
    def train(self, run: "TrainingRun", seed: int) -> "ArmRun":
        """Train with one seed on what ``run`` has started, from the last checkpoint if there is one; the arm's run,
        with the trained policy served and in the learner."""


def builtin_arms() -> tuple[str, ...]:
    """Names of the arms that the package brings, in alphabetical order. Imports none of them."""
    return short_names(PACKAGE)


def find_arm(name: str) -> type[Arm]:
    """The class of the arm called ``name``: one of ours, or an import path.

    Raises:
        UserError: there is no such arm, or what is there is none.
    """
    path = name
    if ":" not in name:
        if name not in builtin_arms():
            raise UserError(f"there is no arm '{name}'; there are {', '.join(builtin_arms())}, or package.module:Class")
        path = f"{PACKAGE}.{name}:{''.join(part.title() for part in name.split('_'))}"
    found = import_path(path)
    if not (isinstance(found, type) and issubclass(found, Arm)):
        raise UserError(f"'{path}' is no arm: it must be a class derived from calibrated_rl.config.arms:Arm")
    wanting = [each for each in ("name", "style") if not hasattr(found, each)]
    if wanting:
        raise UserError(f"'{path}' is no arm: it has no `{wanting[0]}`")
    if not isinstance(found.name, str) or not found.name.isidentifier():
        raise UserError(f"'{path}': the name of an arm is made of letters, digits and _, not {found.name!r}")
    if ":" in name and found.name in builtin_arms():
        raise UserError(f"'{path}': '{found.name}' is the name of an arm that the package brings; take another one")
    return found


def table_order(name: str) -> float:
    """Where the arm called ``name`` stands in tables: those of others after those of the package."""
    return find_arm(name).order if name in builtin_arms() else Arm.order


def find_arms(names: Iterable[str]) -> list[type[Arm]]:
    """Those called so, each once, in the order of tables."""
    return sorted(dict.fromkeys(find_arm(name) for name in names), key=lambda arm: arm.order)
