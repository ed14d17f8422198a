"""Updates whose rollouts run on while the learner steps, against the longer one of the two.

All parts are real: both engines, learner, replay store, weight sync; FrontDesk with models made on the spot. First
rollouts and learning take turns, which gives the time of each alone; then the rollouts run ahead. Where both would
share the same cores, neither could hide behind the other, whatever the program does. So the engines get one half of
them and the learner the other, in both runs; on a GPU machine they get what the settings say.
"""

import os
import statistics
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil

from calibrated_rl.benchmarks.base import Row, at_most, require_device
from calibrated_rl.benchmarks.talk import start_ray
from calibrated_rl.config import EvaluationConfig, ModelConfig, RunConfig, ShiftConfig, TrainingConfig
from calibrated_rl.learner.config import LearnerConfig
from calibrated_rl.rollout.conversation import SamplingConfig
from calibrated_rl.rollout.engine import EngineConfig


class AsynchronousStep:
    """``updates`` updates of the arm `interactive` in turn, and as many ahead."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        device: str = "cpu"
        """``cpu`` or ``cuda``."""
        max_staleness: int = 1
        warm_up: int = 2
        """Updates that are not counted, of each run."""
        updates: int = 10
        """Updates that are; medians count, of the whole update their mean."""
        tokens_per_update: int = 3000
        group_size: int = 8
        minibatches: int = 4
        max_turn_tokens: int = 16
        engine: EngineConfig = field(default_factory=lambda: EngineConfig(kv_cache_mib=256))
        """Of both sides."""
        learner: LearnerConfig = field(default_factory=lambda: LearnerConfig(threads=1))
        goal: float = 1.1

    def __init__(self, config: Config) -> None:
        self.config = config

    def measure(self) -> Row:
        import ray

        config = self.config
        require_device(config.device)
        start_ray(num_cpus=4)
        with tempfile.TemporaryDirectory(prefix="calibrated_rl_benchmark_") as folder:
            in_turn, ahead = self._run(Path(folder))
        ray.shutdown()
        rollout = statistics.median(in_turn["seconds_rollout"])
        learning = statistics.median(
            a + b for a, b in zip(in_turn["seconds_learning"], in_turn["seconds_weight_sync"], strict=True)
        )
        took = statistics.mean(ahead["seconds_update"])
        return at_most(
            took, max(rollout, learning), config.goal,
            f"seconds an update whose rollouts run ahead by up to {config.max_staleness}, mean of {config.updates}; "
            f"limit: the longer of rollouts alone ({rollout:.2f} s) and learning with weight sync alone "
            f"({learning:.2f} s), medians of {config.updates} updates in turn, which take "
            f"{statistics.mean(in_turn['seconds_update']):.2f} s. {self._cores_words()}",
        )  # fmt: skip

    def _cores_words(self) -> str:
        if self.config.device != "cpu":
            return "Engines and learner share the GPU"
        return "The engines have one half of the cores, the learner the other"

    def _run(self, folder: Path) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
        from calibrated_rl.algorithms.arm import Arm
        from calibrated_rl.algorithms.interactive import one_update
        from calibrated_rl.parts import Parts
        from calibrated_rl.progress import Progress

        config = self._settings()
        parts = Parts(config, folder, Progress())
        found = []
        try:
            parts.start()
            if self.config.device == "cpu":
                _share_the_cores()
            for seed, staleness in enumerate((0, self.config.max_staleness)):
                training = replace(config.training, max_staleness=staleness)
                parts.config = replace(config, training=training)
                arm = Arm(parts, "interactive", seed)
                while arm.running:
                    one_update(arm, parts.simulator)
                arm.close()
                found.append(self._counted(arm.metrics))
        finally:
            parts.stop()
        return found[0], found[1]

    def _counted(self, metrics: list[dict[str, float]]) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {}
        for metric in metrics:
            # The last one waits for nothing that runs ahead.
            if self.config.warm_up <= metric["update"] < self.config.warm_up + self.config.updates:
                found.setdefault(str(metric["name"]), []).append(metric["value"])
        return found

    def _settings(self) -> RunConfig:
        config = self.config
        side = ModelConfig(engine=config.engine, sampling=SamplingConfig(max_turn_tokens=config.max_turn_tokens))
        side = replace(side, start=replace(side.start, epochs=0))
        return RunConfig(
            name="asynchronous_step",
            arms=["interactive"],
            human="calibrated_rl.users.front_desk_human:FrontDeskHuman",
            logs={
                "reader": "calibrated_rl.logs.scripted:ScriptedLogs", "calibration": 400, "monitor": 20, "tuning": 10,
                "held_out": 10,
            },
            policy=side,
            simulator=side,
            learner=config.learner,
            training=TrainingConfig(
                updates=config.warm_up + config.updates + config.max_staleness, checkpoint_every=0,
                tokens_per_update=config.tokens_per_update, group_size=config.group_size,
                minibatches=config.minibatches,
            ),
            shift=ShiftConfig(every=0),
            evaluation=EvaluationConfig(scenarios=1, shifted=0, logs=1, profile=1),
        )  # fmt: skip


def _share_the_cores() -> None:
    """Bind the engines' processes to one half of the cores and the learner's to the other."""
    cores = sorted(os.sched_getaffinity(0))
    halves = {"ReplicaActor": cores[: max(1, len(cores) // 2)], "_RankActor": cores[len(cores) // 2 :]}
    for process in psutil.Process().children(recursive=True):
        for name, half in halves.items():
            if name in " ".join(process.cmdline()):
                for thread in process.threads():
                    os.sched_setaffinity(thread.id, half)
