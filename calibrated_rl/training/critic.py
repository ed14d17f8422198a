"""The policy's critic: a value head on a copy of the policy that predicts the return to go of the history before each
of the policy's turns. It is fitted to the calibration logs' returns before training, and trained with each update."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibrated_rl.calibration.config import SFTConfig
from calibrated_rl.calibration.value_fit import VALUE_LOSS
from calibrated_rl.chat.tokens import ChatTokens, view_of
from calibrated_rl.data.dialogue import Dialogue, Side, Split, TokenSequence
from calibrated_rl.learner.advantages.base import CriticConfig, Floats, rewards_to_go
from calibrated_rl.learner.checkpoint import INDEX
from calibrated_rl.learner.group import LearnerGroup
from calibrated_rl.learner.sample import Sample
from calibrated_rl.learner.slots import CRITIC
from calibrated_rl.run.fits import Fits
from calibrated_rl.storage.files import read_json
from calibrated_rl.training.turn_credit import credit_of_tokens, own_turns, rewards_of_turns


def before_turns(tokens: TokenSequence) -> TokenSequence:
    """``tokens`` such that the learner reads before the first own token of each own turn."""
    places = np.flatnonzero(tokens.mask)
    starts = np.zeros(len(tokens), np.bool_)
    if len(places):
        starts[places[np.append(True, np.diff(tokens.turns[places]) != 0)]] = True
    return tokens.with_mask(starts)


def value_sample(dialogue: Dialogue, targets: NDArray[np.float32]) -> Sample:
    """A dialogue with a target [T] for each own turn, read before it."""
    assert dialogue.policy_tokens is not None
    return Sample(
        tokens=before_turns(dialogue.policy_tokens), targets=credit_of_tokens(dialogue, targets), name=dialogue.id,
        group=dialogue.group_id,
    )  # fmt: skip


class Critic:
    """Of one arm with one seed; in the learner's slot ``CRITIC`` from its first use on.

    It predicts returns less their mean in the calibration logs, over their deviation there.
    """

    def __init__(
        self,
        config: CriticConfig,
        seed: int,
        checkpoint: Path | None,
        *,
        learner: LearnerGroup,
        logs: Mapping[Split, Sequence[Dialogue]],
        chat: ChatTokens,
        start: Path,
        fits: Fits,
    ) -> None:
        """
        Args:
            checkpoint: the learner's that the arm resumes from.
            logs: those whose returns it is fitted to and scaled by.
            chat: the policy's.
            start: folder of the policy that every arm starts from.
        """
        self._config, self._seed = config, seed
        self._learner, self._logs, self._chat, self._start, self._fits = learner, logs, chat, start, fits
        self.loaded = checkpoint is not None and CRITIC in read_json(checkpoint / INDEX)["models"]
        returns = [d.outcome.episode_return for d in logs[Split.CALIBRATION] if d.outcome is not None]
        self._mean = float(np.mean(returns)) if returns else 0.0
        # 0, where all returns are alike: there is nothing to scale.
        self._deviation = (float(np.std(returns)) if returns else 0.0) or 1.0

    def values(self, dialogues: Sequence[Dialogue]) -> list[Floats]:
        """[T] of the history before each own turn, one array a dialogue."""
        self._load()
        sequences = [before_turns(d.policy_tokens) for d in dialogues if d.policy_tokens is not None]
        predicted = self._learner.values(CRITIC, sequences)
        return [
            self._mean + self._deviation * values[sequence.mask].astype(np.float64)
            for values, sequence in zip(predicted, sequences, strict=True)
        ]

    def step(self, dialogues: Sequence[Dialogue], targets: Sequence[Floats]) -> dict[str, float]:
        """Learn ``targets``, [T] a dialogue; metrics."""
        samples = [self._sample(dialogue, values) for dialogue, values in zip(dialogues, targets, strict=True)]
        metrics = self._learner.step(CRITIC, samples, VALUE_LOSS, minibatches=self._config.minibatches)
        return {f"critic_{name}": metrics[name] for name in ("value_error", "grad_norm") if name in metrics}

    def _sample(self, dialogue: Dialogue, targets: Floats) -> Sample:
        return value_sample(dialogue, ((targets - self._mean) / self._deviation).astype(np.float32))

    def _load(self) -> None:
        if self.loaded:
            return
        config = self._config
        optimizer = config.optimizer.at(config.learning_rate, config.warmup_steps)
        self._learner.load(CRITIC, self._fitted(), optimizer=optimizer, seed=self._seed, value_head=True)
        self.loaded = True

    def _fitted(self) -> Path:
        config = self._config
        train, monitor = (self._log_samples(self._logs[split]) for split in (Split.CALIBRATION, Split.MONITOR))
        if not (config.fit_epochs and train and monitor):
            return self._start
        pace = SFTConfig(epochs=config.fit_epochs, learning_rate=config.fit_learning_rate, optimizer=config.optimizer)
        return self._fits.value_head("critic", train, monitor, pace, CRITIC)

    def _log_samples(self, logs: Sequence[Dialogue]) -> list[Sample]:
        samples = []
        for log in logs:
            tokens = view_of(self._chat, log.scenario, Side.POLICY, log.turns).sequence()
            seen = replace(log, policy_tokens=tokens)
            if log.outcome is not None and len(own_turns(seen)):
                samples.append(self._sample(seen, rewards_to_go(rewards_of_turns(seen))))
        return samples
