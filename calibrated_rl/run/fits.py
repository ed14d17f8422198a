"""Supervised fits that a run begins with: the policy's warm start, the uncalibrated simulator's pretraining, the proxy.

Each is done once a run, or taken from an earlier run on this machine with the same inputs
(``calibration/fit_cache.py``).
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import ray

from calibrated_rl.calibration.config import SFTConfig
from calibrated_rl.calibration.fit_cache import LARGEST_MIB, FitCache, key_of
from calibrated_rl.calibration.sft import fine_tune, log_samples, sample_items
from calibrated_rl.calibration.value_fit import fit_value_head
from calibrated_rl.chat.tokens import ChatTokens
from calibrated_rl.data.dialogue import Dialogue, Side, Split
from calibrated_rl.learner.group import LearnerGroup
from calibrated_rl.learner.sample import Sample
from calibrated_rl.learner.slots import POLICY, PROXY, SIMULATOR
from calibrated_rl.run.base_models import CACHE, BaseModels
from calibrated_rl.run.inputs import RunInputs

logger = logging.getLogger(__name__)


class Fits:
    """The fitted models of a run, below its ``models``."""

    def __init__(self, inputs: RunInputs, models: BaseModels, learner: LearnerGroup) -> None:
        self._inputs, self._models, self._learner = inputs, models, learner

    def start_policy(self) -> Path:
        """The policy that every arm starts from: the base model, fitted to the logged policy's turns."""
        return self.fit_policy("start", POLICY, self._inputs.logs, self._inputs.config.policy.warm_start)

    def uncalibrated_simulator(self) -> Path:
        """The simulator as it comes: its base model, or that fitted to the population of ``pretraining``."""
        model, logs = self._models.simulator, self._inputs.pretraining_logs
        if not logs:
            return model.folder
        sft = self._inputs.config.simulator.warm_start
        return self._fit("uncalibrated", SIMULATOR, model.folder, logs, Side.USER, model.chat, sft)

    def proxy(self) -> Path:
        """The proxy, fitted to held-out human turns, which nothing else has seen."""
        assert self._models.proxy is not None
        logs = self._inputs.logs[Split.HELD_OUT]
        n_monitor = len(logs) // 10
        halves = {Split.CALIBRATION: logs[n_monitor:], Split.MONITOR: logs[: max(1, n_monitor)]}
        model, sft = self._models.proxy, self._inputs.config.proxy.sft
        return self._fit(PROXY, PROXY, model.folder, halves, Side.USER, model.chat, sft)

    def fit_policy(self, name: str, slot: str, logs: Mapping[Split, Sequence[Dialogue]], sft: SFTConfig) -> Path:
        """The policy's base model fitted to the policy's turns in ``logs``, by the learner's ``slot``."""
        model = self._models.policy
        return self._fit(name, slot, model.folder, logs, Side.POLICY, model.chat, sft)

    def value_head(
        self, name: str, train: Sequence[Sample], monitor: Sequence[Sample], settings: SFTConfig, slot: str = POLICY
    ) -> Path:
        """A value head, fitted with the model below it to samples with targets, in the learner's ``slot``. It begins as
        the policy that every arm starts from."""
        return self._once(name, slot, self.start_policy(), train, monitor, settings, fit_value_head)

    def _fit(
        self, name: str, slot: str, base: Path, logs: Mapping[Split, Sequence[Dialogue]], side: Side, chat: ChatTokens,
        sft: SFTConfig,
    ) -> Path:  # fmt: skip
        if sft.epochs == 0:
            return base
        if self._is_there(name):
            return self._folder(name)
        train, monitor = (log_samples(logs[split], side, chat) for split in (Split.CALIBRATION, Split.MONITOR))
        return self._once(name, slot, base, train, monitor, sft, fine_tune)

    def _folder(self, name: str) -> Path:
        return self._inputs.folder / "models" / name

    def _is_there(self, name: str) -> bool:
        return (self._folder(name) / "fit.json").is_file()

    def _once(
        self, name: str, slot: str, base: Path, train: Sequence[Sample], monitor: Sequence[Sample], sft: SFTConfig,
        fit: Callable[..., dict[str, float]],
    ) -> Path:  # fmt: skip
        """The folder of a fit: that of this run, or of an earlier one with the same inputs, or a new one by ``fit``."""
        inputs, folder = self._inputs, self._folder(name)
        if self._is_there(name):
            return folder
        train = list(sample_items(train, sft.most_dialogues, 0))
        fit_cache, key = None, ""
        if inputs.config.reuse_fits and self._is_reproducible(base, train, monitor):
            fit_cache = FitCache(CACHE / "fits")
            key = key_of(slot, base, train, monitor, sft, inputs.config.learner)
            if fit_cache.take(key, folder):
                logger.info(
                    f"{name}: an earlier run on this machine did the same fit; reusing it from {CACHE / 'fits'}"
                )
                return folder
        result = fit(self._learner, slot, base, train, monitor, sft, folder, 0, inputs.progress(f"fitting {name}"))
        if "nll_before" in result:
            logger.info(f"{name}: monitor NLL {result['nll_before']:.3f} -> {result['nll_after']:.3f} nats a token")
        else:
            logger.info(
                f"{name}: squared error on the monitor logs {result['error_before']:.3f} -> "
                f"{result['error_after']:.3f}, in variances of the returns"
            )
        (folder / "fit.json").write_text(json.dumps(result))
        if fit_cache is not None and self._learner.micro_batch_tokens == inputs.config.learner.micro_batch_tokens:
            fit_cache.keep(key, folder)
        return folder

    def _is_reproducible(self, base: Path, train: Sequence[Sample], monitor: Sequence[Sample]) -> bool:
        """Whether the fit can be reproduced bit for bit, and is small enough to cache: only on CPUs, and not where it
        may run on any machine of a cluster."""
        if self._inputs.config.learner.labels or ray.cluster_resources().get("GPU", 0) or not (train and monitor):
            return False
        return sum(file.stat().st_size for file in base.iterdir()) <= LARGEST_MIB * 2**20
