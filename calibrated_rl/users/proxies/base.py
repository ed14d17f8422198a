"""The interface of a proxy: a model of held-out people that policies are evaluated with, where people are known from
logs alone.

Each proxy of a run is fitted to its own part of the held-out dialogues, which nothing else sees; results with it are
about the proxy, not about people. It needs no engine. A proxy is one file with one class, named in the YAML by import
path: ``proxies: {gru: {model: my.module:MyProxy, ...}}``, the rest being its own settings.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

from calibrated_rl.data.dialogue import Dialogue, Scenario, Turn


class Proxy(ABC):
    """Base of all proxies; built as ``ProxyClass(ProxyClass.Config(...), secret_after=...)``.

    ``secret_after``: of a policy's turn that begins with these words a person hears only them (``tasks/base.py``).
    """

    @abstractmethod
    def fit(
        self, train: Sequence[Dialogue], monitor: Sequence[Dialogue], seed: int, progress: Callable[[int, int], None]
    ) -> dict[str, float]:
        """Fit it to the users' turns in ``train``; the same arguments give the same proxy.

        Args:
            monitor: for early stopping.
            progress: called with the number of steps done and of all steps.

        Returns:
            Metrics of the fit; ``perplexity`` (of a word of a user's turn in ``monitor``) among them.
        """

    @abstractmethod
    def reply(self, scenario: Scenario, turns: Sequence[Turn], seed: int, begin: str = "") -> str:
        """What the user of ``scenario`` says next, beginning with the words ``begin``; the same for the same
        arguments."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Leave all that ``load`` needs in ``folder``, which exists."""

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Become the proxy that was saved in ``folder``."""
