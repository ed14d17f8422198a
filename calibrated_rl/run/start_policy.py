"""Log-probs under the policy that every arm starts from, the reference for how far training has moved."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibrated_rl.calibration.folds import fold_of
from calibrated_rl.calibration.sft import log_view
from calibrated_rl.data.dialogue import Dialogue, Side, Split, TokenSequence
from calibrated_rl.learner.group import LearnerGroup
from calibrated_rl.learner.slots import SIMULATOR, START
from calibrated_rl.run.base_models import BaseModels
from calibrated_rl.run.fits import Fits
from calibrated_rl.run.inputs import RunInputs

LogProbs = dict[tuple[str, ...], NDArray[np.float32]]


class StartPolicy:
    """Stays in the learner where every update needs it, else it is loaded on demand."""

    def __init__(
        self, inputs: RunInputs, models: BaseModels, learner: LearnerGroup, fits: Fits, *, stays_loaded: bool
    ) -> None:
        self._inputs, self._chat, self._learner, self._fits = inputs, models.policy.chat, learner, fits
        self._stays_loaded = stays_loaded
        self.folder: Path = fits.start_policy()
        self.log_probs_by_log: LogProbs = {}
        """Computed log-probs, by id and turns of the log."""

    def load(self) -> None:
        """Put it into the learner, if it stays there."""
        if self._stays_loaded:
            self._learner.load(START, self.folder, trainable=False)

    def log_probs(self, logs: Sequence[Dialogue]) -> list[NDArray[np.float32]]:
        """Log-probs [T] of the policy's turns in ``logs`` under this policy, NaN elsewhere; T as in the policy's view.
        Each log, in which the policy speaks, is scored once a run."""
        # The id alone is not unique: scripted logs of two populations share their scenarios.
        keys = [(log.id, *(turn.text for turn in log.turns)) for log in logs]
        unscored = {key: log for key, log in zip(keys, logs, strict=True) if key not in self.log_probs_by_log}
        if unscored:
            views = [log_view(log, Side.POLICY, self._chat) for log in unscored.values()]
            self.log_probs_by_log |= dict(zip(unscored, self.score(views), strict=True))
        return [self.log_probs_by_log[key] for key in keys]

    def cross_fitted_log_probs(self, logs: Sequence[Dialogue], folds: int) -> list[NDArray[np.float32]]:
        """As ``log_probs``, under clones of the logged policy: each log, in which the policy speaks, under one that was
        fitted to the calibration logs of the other ``folds - 1`` folds only. The clones are fitted once a run, as this
        policy is or, if it has no fit, as simulators are; in the simulator's slot of the learner, which is reloaded
        afterwards."""
        keys = [(f"{folds} folds", log.id, *(turn.text for turn in log.turns)) for log in logs]
        unscored = {key: log for key, log in zip(keys, logs, strict=True) if key not in self.log_probs_by_log}
        config = self._inputs.config
        sft = config.policy.warm_start if config.policy.warm_start.epochs else config.calibration.sft
        for fold in sorted({fold_of(log.id, folds) for log in unscored.values()}):
            training_logs = [log for log in self._inputs.logs[Split.CALIBRATION] if fold_of(log.id, folds) != fold]
            fold_logs = {**self._inputs.logs, Split.CALIBRATION: training_logs}
            clone = self._fits.fit_policy(f"clone-{fold}-of-{folds}", SIMULATOR, fold_logs, sft)
            in_fold = {key: log for key, log in unscored.items() if fold_of(log.id, folds) == fold}
            views = [log_view(log, Side.POLICY, self._chat) for log in in_fold.values()]
            self._learner.load(SIMULATOR, clone, trainable=False)
            self.log_probs_by_log |= dict(zip(in_fold, self._learner.log_probs(SIMULATOR, views), strict=True))
        return [self.log_probs_by_log[key] for key in keys]

    def score(self, views: Sequence[TokenSequence], temperature: float = 1.0) -> list[NDArray[np.float32]]:
        """Log-probs [T] of the policy's views under this policy, NaN where not masked."""
        if not self._stays_loaded:
            self._learner.load(START, self.folder, trainable=False)
        log_probs = self._learner.log_probs(START, views, temperature)
        if not self._stays_loaded:
            self._learner.unload(START)
        return log_probs
