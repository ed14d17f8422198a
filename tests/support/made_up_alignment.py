"""A run as far as aligning its simulator needs one: real replicas and a real learner, logs made on the spot."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from calibrated_rl.calibration.base import CalibrationInputs
from calibrated_rl.calibration.checked import build_method
from calibrated_rl.calibration.config import SFTConfig
from calibrated_rl.calibration.plain import PlainSFT
from calibrated_rl.calibration.replies import HumanReply, human_tokens
from calibrated_rl.calibration.sft import log_samples
from calibrated_rl.config.run_config import RunConfig
from calibrated_rl.config.sections import CalibrationConfig
from calibrated_rl.data.dialogue import Dialogue, Side, Source, Split, Turn
from calibrated_rl.inference.config import SamplingConfig
from calibrated_rl.inference.pool import ReplicaPool
from calibrated_rl.learner.group import LearnerGroup
from calibrated_rl.learner.sample import Sample
from calibrated_rl.learner.slots import POLICY, SIMULATOR
from calibrated_rl.rollout.collector import Collector
from calibrated_rl.run.inputs import RunInputs
from calibrated_rl.run.served_simulator import ServedSimulator
from calibrated_rl.runtime.progress import Progress
from calibrated_rl.training.simulator_calibration import SimulatorCalibration
from tests.support.made_up_pools import Chat

SFT = SFTConfig(epochs=8, batch_dialogues=16, learning_rate=3e-3, warmup_steps=2, patience=8)


def logs(split: Split, count: int) -> list[Dialogue]:
    """Humans who say "friday" or "seven", as often, twice."""
    random = np.random.default_rng(len(split))
    made = []
    for scenario in Chat().scenarios(split, count):
        said = [str(random.choice(["friday", "seven"])) for _ in range(2)]
        turns = (
            Turn(side=Side.POLICY, text=scenario.greeting, source=Source.GREETING),
            Turn(side=Side.USER, text=said[0], source=Source.LOG),
            Turn(side=Side.POLICY, text="which day ?", source=Source.LOG),
            Turn(side=Side.USER, text=said[1], source=Source.LOG),
        )
        made.append(
            Dialogue(
                id=f"{split}-{scenario.id}", task="chat", scenario=scenario, turns=turns, ending="left", outcome=None,
                kind="log",
            )
        )  # fmt: skip
    return made


class Stubborn(PlainSFT):
    """Fits four of five turns in which humans say "seven" as if they had said "friday"."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(PlainSFT.Config):
        """Nothing to set."""

    def samples_to_fit(self, inputs: CalibrationInputs) -> tuple[Sequence[Sample], Sequence[Sample], dict[str, float]]:
        random = np.random.default_rng(0)
        changed = [
            replace(log, turns=tuple(self._heard(turn, bool(random.random() < 0.8)) for turn in log.turns))
            for log in inputs.logs
        ]
        return super().samples_to_fit(replace(inputs, logs=changed))

    @staticmethod
    def _heard(turn: Turn, changes: bool) -> Turn:
        return replace(turn, text="friday") if turn.text == "seven" and changes else turn


class AlignedRun:
    """Aligns the simulator as a run does, by ``SimulatorCalibration``."""

    def __init__(self, folder: Path, method: str, settings: dict[str, Any], pool: ReplicaPool, learner: LearnerGroup,
                 base: Path) -> None:  # fmt: skip
        config = RunConfig(calibration=CalibrationConfig(sft=SFT))
        inputs = RunInputs(
            config=config, folder=folder, progress=Progress(), task=Chat(), human=None,
            calibration=build_method(method, settings, "calibration.method_config"), reserve=[], pretraining_logs={},
            logs={Split.CALIBRATION: logs(Split.CALIBRATION, 80), Split.MONITOR: logs(Split.MONITOR, 40)},
        )  # fmt: skip
        sampling = SamplingConfig(max_turn_tokens=8)
        models: Any = SimpleNamespace(
            policy=SimpleNamespace(chat=pool.tokens), simulator=SimpleNamespace(chat=pool.tokens)
        )
        self.learner, self._chat = learner, pool.tokens
        self.simulator = ServedSimulator(folder, base, learner, pool)
        cluster = SimpleNamespace(
            learner=learner,
            policy=pool,
            simulator=pool,
            collector=Collector(inputs.task, pool, sampling, sampling),
        )
        start = SimpleNamespace(log_probs=None, cross_fitted_log_probs=None)
        run: Any = SimpleNamespace(inputs=inputs, models=models, cluster=cluster, start=start, simulator=self.simulator)
        self.metrics: dict[str, float] = {}
        arm: Any = SimpleNamespace(name="made up", seed=0, updates=0, log=self.metrics.update)
        self.calibration = SimulatorCalibration(run, arm)
        self.folder = folder / "models" / "calibrated"
        self.views = [sample.tokens for sample in log_samples(inputs.logs[Split.MONITOR], Side.USER, pool.tokens)]
        self.policy_before, self.version_before = learner.log_probs(POLICY, self.views), pool.version

    def probability(self, text: str) -> float:
        """With which the learner's simulator opens with ``text``."""
        log = logs(Split.CALIBRATION, 1)[0]
        log = replace(log, turns=(log.turns[0], replace(log.turns[1], text=text)))
        tokens = human_tokens(self._chat, HumanReply(log=log, index=1))
        return float(np.exp(np.nansum(self.learner.log_probs(SIMULATOR, [tokens])[0])))
