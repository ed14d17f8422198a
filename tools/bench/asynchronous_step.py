"""Updates whose rollouts run on while the learner steps, against the longer one of the two.

All parts are real: both engines, learner, replay store, weight sync; FrontDesk with models made on the spot. First
rollouts and learning take turns, which gives the time of each alone; then the rollouts run ahead. If both
shared the same cores, neither could overlap with the other, whatever the program does. So the engines get one half of
them and the learner, with driver, store and Ray, the other, in both runs; on a GPU machine the settings decide. The
policy, which was fitted to human turns before, hardly learns, so that both runs have the same kind of dialogues to run
and to learn from; and since they do not have the same number of tokens, times are compared by token.
"""

import os
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import psutil

from calibrated_rl.calibration.sft import SFTConfig
from calibrated_rl.config.run_config import RunConfig
from calibrated_rl.config.sections import EvaluationConfig, ModelConfig, PretrainingConfig, ShiftConfig, TrainingConfig
from calibrated_rl.inference.config import EngineConfig
from calibrated_rl.learner.config import LearnerConfig
from calibrated_rl.settings.fields import NotNegative, Positive, Range
from tools.bench.base import Row, at_most, require_device
from tools.bench.talk import start_ray


class AsynchronousStep:
    """``updates`` updates of the arm `interactive` in turn, and as many ahead."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        device: Literal["cpu", "cuda"] = "cpu"
        """``cpu`` or ``cuda``."""
        max_staleness: NotNegative = 2
        """With 1, all groups that may begin can be complete before the learner is done, and engines idle then."""
        warm_up: NotNegative = 2
        """Updates that are not counted, of each run."""
        updates: Positive = 20
        """Updates that are counted; their mean is reported."""
        tokens_per_update: Positive = 3000
        group_size: Annotated[int, Range(at_least=2)] = 8
        minibatches: Positive = 4
        logs: Positive = 1500
        """Dialogues of humans, and of cooperative humans, that policy and simulator are fitted to first."""
        engine: EngineConfig = field(default_factory=lambda: EngineConfig(kv_cache_mib=256))
        """Of both sides."""
        learner: LearnerConfig = field(default_factory=lambda: LearnerConfig(threads=1))
        learning_rate: Annotated[float, Range(above=0, at_most=1)] = 1e-6
        goal: Annotated[float, Range(above=0)] = 1.1

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
        tokens = {name: sum(run["tokens"]) for name, run in (("turn", in_turn), ("ahead", ahead))}
        an_update = tokens["turn"] / len(in_turn["tokens"])

        def seconds(run: dict[str, list[float]], name: str, *metrics: str) -> float:
            """Of an update with as many tokens as the mean one in turn."""
            return an_update * sum(map(sum, (run[metric] for metric in metrics))) / tokens[name]

        rollout = seconds(in_turn, "turn", "seconds_rollout")
        learning = seconds(in_turn, "turn", "seconds_learning", "seconds_weight_sync")
        return at_most(
            seconds(ahead, "ahead", "seconds_update"), max(rollout, learning), config.goal,
            f"seconds an update of {an_update:.0f} tokens whose rollouts run ahead by up to {config.max_staleness}, "
            f"mean of {config.updates}; limit: the longer of rollouts alone ({rollout:.2f} s) and learning with weight "
            f"sync alone ({learning:.2f} s), means of {config.updates} updates in turn, which take "
            f"{seconds(in_turn, 'turn', 'seconds_update'):.2f} s. {self._cores_words()}",
        )  # fmt: skip

    def _cores_words(self) -> str:
        if self.config.device != "cpu":
            return "Engines and learner share the GPU"
        return "The engines have one half of the cores; learner, driver, store and Ray the other"

    def _run(self, folder: Path) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
        from calibrated_rl.arms.interactive import Interactive
        from calibrated_rl.run.base_models import prepare_models
        from calibrated_rl.run.inputs import read_inputs
        from calibrated_rl.runtime.progress import Progress
        from calibrated_rl.training.training_run import training_run

        config = self._settings()
        inputs = read_inputs(config, folder, Progress(), training=False)  # no simulator is measured
        runs = []
        with training_run(inputs, prepare_models(inputs)) as run:
            if self.config.device == "cpu":
                _share_the_cores()
            for staleness in (0, self.config.max_staleness):
                training = replace(config.training, max_staleness=staleness)
                run_inputs = replace(inputs, config=replace(config, training=training))
                arm = Interactive().train(replace(run, inputs=run_inputs), 0)
                arm.close()
                runs.append(self._counted(arm.metrics))
        return runs[0], runs[1]

    def _counted(self, metrics: list[dict[str, float]]) -> dict[str, list[float]]:
        values_by_metric: dict[str, list[float]] = {}
        for metric in metrics:
            # In the last updates no rollouts run ahead.
            if self.config.warm_up <= metric["update"] < self.config.warm_up + self.config.updates:
                values_by_metric.setdefault(str(metric["name"]), []).append(metric["value"])
        return values_by_metric

    def _settings(self) -> RunConfig:
        config = self.config
        side = ModelConfig(
            engine=config.engine, warm_start=SFTConfig(epochs=2, learning_rate=1.5e-3, batch_dialogues=16)
        )
        human = "calibrated_rl.examples.front_desk:FrontDeskHuman"
        other_splits = {"monitor": 20, "tuning": 10, "held_out": 10}
        return RunConfig(
            name="asynchronous_step",
            arms=["interactive"],
            human=human,
            logs={"reader": "calibrated_rl.logs.scripted:ScriptedLogs", "calibration": config.logs} | other_splits,
            pretraining=PretrainingConfig(
                human=human, human_config={"cooperativeness": 1.0}, logs={"calibration": config.logs} | other_splits
            ),
            policy=side,
            simulator=side,
            learner=config.learner,
            training=TrainingConfig(
                updates=config.warm_up + config.updates + config.max_staleness, checkpoint_every=0,
                tokens_per_update=config.tokens_per_update, group_size=config.group_size,
                minibatches=config.minibatches, learning_rate=config.learning_rate,
            ),
            shift=ShiftConfig(every=0),
            evaluation=EvaluationConfig(scenarios=1, shifted=0, logs=1, profile=1),
        )  # fmt: skip


def _share_the_cores() -> None:
    """Bind the engines' processes to one half of the cores, and this one with all others it started to the other."""
    cores = sorted(os.sched_getaffinity(0))
    first, second = cores[: max(1, len(cores) // 2)], cores[len(cores) // 2 :]
    this_process = psutil.Process()
    for process in (this_process, *this_process.children(recursive=True)):
        cores_of_process = (
            first if any(word in " ".join(process.cmdline()) for word in ("EngineCore", "ReplicaActor")) else second
        )
        for thread in process.threads():
            os.sched_setaffinity(thread.id, cores_of_process)
