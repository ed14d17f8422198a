"""The whole configuration of a run: composes the parts' own configs."""

from dataclasses import dataclass, field
from typing import Any

from calibrated_rl.config.sections import (
    ArmName,
    CalibrationConfig,
    Date,
    EndpointLabel,
    EvaluationConfig,
    ModelConfig,
    PretrainingConfig,
    ProxyConfig,
    ReportConfig,
    RunName,
    ShiftConfig,
    TrainingConfig,
    VariantConfig,
    VariantName,
)
from calibrated_rl.endpoints.config import EndpointConfig
from calibrated_rl.health.config import HealthConfig
from calibrated_rl.learner.config import LearnerConfig
from calibrated_rl.replay.config import ReplayConfig
from calibrated_rl.settings.fields import Name, NotNegative, PartPath, PartPathOrNone, Seed


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """Everything a run needs."""

    name: RunName = "run"
    """The run's folder is runs/NAME."""
    label: str = ""
    """Printed over the report, such as `demonstration`."""
    date: Date = ""
    """Today's date for chat templates, as YYYY-MM-DD: some print the date in every prompt. Empty: the day on which
    the run is begun; it is written to the run folder's config.yaml, and resuming and evaluating use it on any other
    day."""
    arms: list[ArmName] = field(default_factory=lambda: ["start", "static", "interactive", "calibrated", "oracle"])
    """The arms to train and compare."""
    seeds: list[Seed] = field(default_factory=lambda: [0])
    """Each arm is trained once with each seed."""
    deterministic: bool = False
    """Turns in lockstep, in a fixed order: the same seed gives the same run, a little slower."""
    restarts: NotNegative = 3
    """How often a run restarts its parts and resumes from the last checkpoint, when the learner or the replay store
    died. Replicas of policy and simulator are replaced without that."""
    reuse_fits: bool = True
    """Reuse the fits that a run begins with (warm start, pretraining, proxy) from an earlier run on this machine with
    the same inputs. The fit cache is ``~/.cache/calibrated_rl/fits``."""
    task: PartPath = "calibrated_rl.examples.front_desk:FrontDesk"
    """The task: its scenarios, the ends of dialogues, their rewards."""
    task_config: dict[str, Any] = field(default_factory=dict)
    """The task's own settings."""
    judge: PartPathOrNone = ""
    """Import path of a judge, which decides outcomes in place of the task; empty: the task does."""
    judge_config: dict[str, Any] = field(default_factory=dict)
    """The judge's own settings."""
    human: PartPathOrNone = ""
    """Import path of a scripted population; empty where there are only human logs."""
    human_config: dict[str, Any] = field(default_factory=dict)
    """The population's own settings."""
    logs: dict[str, Any] = field(default_factory=lambda: {"reader": "calibrated_rl.logs.scripted:ScriptedLogs"})
    """`reader` is its import path; the rest is the reader's own config."""
    policy: ModelConfig = field(default_factory=ModelConfig)
    simulator: ModelConfig = field(default_factory=ModelConfig)
    proxy: ProxyConfig = field(default_factory=ProxyConfig)
    proxies: dict[Name, dict[str, Any]] = field(default_factory=dict)
    """Models of other families that stand for held-out people where there are only human logs, by name, several in
    place of one `proxy`: `model` is the import path, the rest the proxy's own settings. Each is fitted to its own part
    of the held-out dialogues; arms are reported with each, and pooled. `model: endpoint:NAME` takes a model behind an
    API as it is."""
    endpoints: dict[EndpointLabel, EndpointConfig] = field(default_factory=dict)
    """Models behind OpenAI-compatible APIs, by name. `simulator.model: endpoint:NAME` takes one as the uncalibrated
    simulator, `proxies` as a user of the evaluation, and `judge_config.model` as the model that judges."""
    pretraining: PretrainingConfig = field(default_factory=PretrainingConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    shift: ShiftConfig = field(default_factory=ShiftConfig)
    health: HealthConfig = field(default_factory=HealthConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    control_arms: list[ArmName] = field(default_factory=list)
    """Further arms of a study."""
    control_seeds: list[Seed] = field(default_factory=lambda: [0])
    """Their seeds."""
    variants: dict[VariantName, VariantConfig] = field(default_factory=dict)

    @property
    def has_eval_user(self) -> bool:
        """Whether there is a user that policies can be evaluated with."""
        return bool(self.human or self.proxy.model or self.proxies)
