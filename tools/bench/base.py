"""The contract of a benchmark: one row, which compares a measurement with its limit, both taken in the same run.

A benchmark is a component (``component.py``): a class with a frozen dataclass ``Config``, built from the settings of
its row in ``configs/benchmarks/*.yaml``, whose ``measure`` does the work and returns a ``Row``. Each runs in a process
of its own. To add one, write one file here and name it in the YAML file.
"""

from dataclasses import dataclass
from typing import Any, Protocol


class NotMeasured(Exception):
    """The row cannot be measured on this machine; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measurement beside its limit."""

    value: float
    """The measured value, in the unit that ``how`` names."""
    limit: float
    """The limit, in the same unit."""
    ratio: float
    """Compared with the goal: as a rule ``value / limit``."""
    goal: float
    met: bool
    how: str
    """In one or two sentences: what was measured, on what sizes, in which unit, and what the limit is."""


def at_least(value: float, limit: float, goal: float, how: str, *, also: bool = True) -> Row:
    """A row that is met where ``value / limit`` is at least ``goal``.

    Args:
        also: a second condition, which ``how`` names.
    """
    ratio = value / limit
    return Row(value=value, limit=limit, ratio=ratio, goal=goal, met=ratio >= goal and also, how=how)


def at_most(value: float, limit: float, goal: float, how: str, *, also: bool = True) -> Row:
    """A row that is met where ``value / limit`` is at most ``goal``."""
    ratio = value / limit
    return Row(value=value, limit=limit, ratio=ratio, goal=goal, met=ratio <= goal and also, how=how)


def require_device(device: str) -> None:
    """
    Raises:
        NotMeasured: this machine has no such device.
    """
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise NotMeasured("there is no GPU")


class Benchmark(Protocol):
    """Measures one row."""

    def __init__(self, config: Any) -> None: ...

    def measure(self) -> Row:
        """Do the work.

        Raises:
            NotMeasured: it needs what this machine does not have.
        """
        ...
