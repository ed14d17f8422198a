"""The progress of a job: in a terminal, one bar at a time, below the lines of the log (``console.py``)."""

import itertools
import logging
import sys
from collections.abc import Callable

from tqdm import tqdm

logger = logging.getLogger(__name__)

Step = Callable[[int, int], None]
"""Called with the number of steps done and the total."""


class Progress:
    """Prints bars on the standard error, where that is a terminal and the log level includes information."""

    def __init__(self) -> None:
        self._bar: tqdm[None] | None = None
        self._step: Step = lambda done, total: None
        self._shows_bars = sys.stderr.isatty() and logger.isEnabledFor(logging.INFO)

    def __call__(self, name: str) -> Step:
        """A bar called ``name``; it replaces the one before."""
        self.close()
        if not self._shows_bars:
            return lambda done, total: None
        bar: tqdm[None] = tqdm(desc=name, leave=False, dynamic_ncols=True)
        self._bar = bar

        def step(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return step

    def show(self, name: str, done: int, total: int) -> None:
        """Set the bar called ``name`` to ``done``; it replaces another one."""
        if self._bar is None or self._bar.desc != name:
            self._step = self(name)
        self._step(done, total)

    def ticks(self, name: str, total: int) -> Callable[[], None]:
        """A bar called ``name`` that advances by one at each call."""
        step, done = self(name), itertools.count(1)
        return lambda: step(next(done), total)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
