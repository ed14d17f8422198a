"""The interface of a calibration method, which aligns the simulator with human turns.

A method is one file with one class, named in the YAML by import path (``calibration.method``). It decides which
human turns count, how much, and how the simulator is fitted to them; when that happens is the arm's business
(``trigger.py``), and serving the result is not the method's either.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from calibrated_rl.calibration.replies import SampleReplies
from calibrated_rl.calibration.sft import SFTConfig
from calibrated_rl.chat.tokens import ChatTokens
from calibrated_rl.data.dialogue import Dialogue, TokenSequence
from calibrated_rl.learner.group import LearnerGroup
from calibrated_rl.learner.sample import Sample


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExtraTurn:
    """A human turn gathered during training."""

    sample: Sample
    """As the simulator sees it; the turn alone is masked."""
    source: str
    """Which policy's histories it answers: `logs`, or the update whose policy spoke."""
    policy: TokenSequence
    """The dialogue as the policy sees it, at least up to the turn."""
    spoken: NDArray[np.float32] | None = None
    """Log-probs [T] of the policy's turns as they were sampled; None where the logged policy spoke them."""
    log: Dialogue | None = None
    """The log that it comes from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationInputs:
    """Inputs of a method. Nothing of them comes from held-out users."""

    learner: LearnerGroup
    """Has the current policy as ``POLICY``."""
    log_probs_at_start: Callable[[Sequence[Dialogue]], list[NDArray[np.float32]]]
    """Log-probs [T] of the policy's turns in logs, in which it speaks, under the policy that training starts from."""
    log_probs_cross_fitted: Callable[[Sequence[Dialogue], int], list[NDArray[np.float32]]]
    """The same under clones of the logged policy, so many, each log under one that was not fitted to it."""
    temperature: float
    """At which the policy speaks."""
    sample_replies: SampleReplies
    """Replies of the simulator as it is now in the learner's slot ``SIMULATOR``."""
    simulator_temperature: float
    """At which the simulator speaks, above 0."""
    base: Path
    """The uncalibrated simulator."""
    logs: Sequence[Dialogue]
    """Human logs of the calibration split."""
    monitor: Sequence[Dialogue]
    """Human logs of the monitor split, for early stopping."""
    extra: Sequence[ExtraTurn]
    """Human turns gathered during training."""
    policy_chat: ChatTokens
    simulator_chat: ChatTokens
    sft: SFTConfig
    """Length and pace of the fine-tuning."""
    update: int
    """Policy updates so far; 0: the simulator is aligned before training."""
    seed: int
    """The arm's."""
    folder: Path
    """Where the aligned simulator goes, in Hugging Face format."""
    progress: Callable[[int, int], None]
    """Called with the number of steps done and of all steps."""


class CalibrationMethod(ABC):
    """Base of all methods; built as a component (``calibrated_rl.components.component``), with a ``Config`` inside."""

    classifiers: ClassVar[Sequence[str]] = ()
    """Families of classifiers that it trains the simulator against. A run whose estimators of shift fit one of them
    (``Estimator.classifiers``) is refused: the simulator would be judged by what it was trained to deceive."""
    whole_distribution: ClassVar[str] = ""
    """Of a method that needs the probabilities of what the simulator says: what for. It is refused where
    ``simulator.sampling`` makes them those of another distribution than the learner's."""
    weighs_logs: ClassVar[bool] = False
    """Whether the weights of logged turns follow the policy, so that ``effective_share`` falls as it moves."""
    disagreement_every: int = 0
    """Of an ensemble (``ensemble.py``): updates between measurements of how far its members disagree."""
    disagreement_penalty: float = 0.0
    """Of an ensemble: taken from a dialogue's return for each nat of disagreement."""

    def check(self, start_epochs: int) -> None:  # noqa: B027 - most methods have nothing to refuse
        """Refuse, before a run starts, settings with which the method could not recalibrate during training.

        Args:
            start_epochs: ``policy.warm_start.epochs``; at 0 the policy that training starts from has never seen the
            logs.

        Raises:
            UserError: names the key.
        """

    @abstractmethod
    def align(self, inputs: CalibrationInputs) -> dict[str, float]:
        """Leave the aligned simulator in the learner's slot ``SIMULATOR`` and in ``inputs.folder``.

        Returns:
            Metrics to log; ``simulator_monitor_nll`` (nats a token) among them.
        """

    def effective_share(self, inputs: CalibrationInputs) -> float:
        """Effective sample size of the weights that the method would give the turns of the monitor split now, over the
        number of these turns; fits nothing to them."""
        return 1.0
