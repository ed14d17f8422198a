"""The sections of the configuration of a run, each a dataclass of its own."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from calibrated_rl import turn_values
from calibrated_rl.calibration.config import SFTConfig
from calibrated_rl.calibration.trigger import TriggerConfig
from calibrated_rl.components.short_names import short_names
from calibrated_rl.inference.config import EngineConfig, ReshapingConfig, SamplingConfig
from calibrated_rl.inference.scaling import ScalingConfig
from calibrated_rl.learner import advantages
from calibrated_rl.learner.config import AdamWConfig
from calibrated_rl.models.tiny import TinyConfig
from calibrated_rl.settings.fields import (
    IMPORT_PATH,
    Name,
    NotNegative,
    OneOf,
    PartPath,
    PartPathOrNone,
    Pattern,
    Positive,
    Range,
    Seed,
)
from calibrated_rl.shift import estimators
from calibrated_rl.shift.sizes import FOLDS, least_to_halve

ARMS = "calibrated_rl.arms"
"""The package of the built-in arms. It lies above this one, which imports none of them."""
ArmName = Annotated[str, OneOf(short_names(ARMS), otherwise=IMPORT_PATH)]
"""A built-in arm, or the import path of another one; see ``arms.py``."""
AdvantageName = Annotated[str, OneOf(short_names(advantages.__name__), otherwise=IMPORT_PATH)]
"""A module of ``learner/advantages/``, or the import path of another advantage."""
TurnValueName = Annotated[str, OneOf(short_names(turn_values.__name__), otherwise=IMPORT_PATH)]
"""A module of ``turn_values/``, or the import path of another method."""
EstimatorName = Annotated[str, OneOf(short_names(estimators.__name__), otherwise=IMPORT_PATH)]
"""A module of ``shift/estimators/``, or the import path of another estimator."""
_SEGMENT = r"(?!\.)[\w.+=@%, -]{1,100}(?<![ .])"
RunName = Annotated[str, Pattern(rf"{_SEGMENT}(/{_SEGMENT})*", "a name for a folder, or names joined by /, without ..")]
Date = Annotated[str, Pattern(r"(\d{4}-\d\d-\d\d)?", "a day as YYYY-MM-DD, or nothing for today")]
EndpointLabel = Annotated[str, Pattern(r"[A-Za-z0-9][\w-]{0,63}", "a name of letters, digits, - and _")]
VariantName = Annotated[str, Pattern(rf"(?!main$){_SEGMENT}", "a name for a folder, and not main")]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """One side's model, its replicas, and its sampling."""

    model: Name = "tiny"
    """`tiny` (made on the spot), a packaged name such as smollm2-135m, a folder, or a hub name; for the simulator also
    `endpoint:NAME`, one of `endpoints`."""
    tiny: TinyConfig = field(default_factory=TinyConfig)
    """The sizes of the model, where it is made on the spot (`model: tiny`)."""
    chat_template: str = ""
    """File with another chat template (Jinja) than the model comes with; empty: the model's own. The run folder has
    a copy, and so have saved models."""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Variables of the chat template, such as `enable_thinking: false`; those that it does not read are refused."""
    replicas: Positive = 1
    """vLLM replicas, at the start."""
    scaling: ScalingConfig = field(default_factory=ScalingConfig)
    """The bounds of their number while an arm trains."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    warm_start: SFTConfig = field(default_factory=SFTConfig)
    """Fine-tuning at the start of a run: the policy's warm start, the tiny simulator's pretraining."""

    @property
    def replica_bounds(self) -> tuple[int, int]:
        """Fewest and most replicas."""
        return self.scaling.minimum or self.replicas, self.scaling.maximum or self.replicas


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainingConfig:
    """What the uncalibrated simulator is pretrained on, where the run pretrains it: the dialogues of a scripted
    population, or real ones that a reader selects. With neither the simulator's model is used as it comes."""

    human: PartPathOrNone = ""
    """Import path of the population."""
    reader: PartPathOrNone = ""
    """Import path of a log reader, in place of a population."""
    human_config: dict[str, Any] = field(default_factory=dict)
    """The population's own settings."""
    logs: dict[str, Any] = field(default_factory=dict)
    """Number of dialogues of each split, as for scripted logs; with `reader` the reader's own settings."""

    @property
    def chosen(self) -> bool:
        """Whether there is anything to pretrain on."""
        return bool(self.human or self.reader)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyConfig:
    """A model that replaces held-out humans where there are only human logs: of another family, trained on held-out
    human turns and on nothing else. Results with it are about the proxy, not about humans."""

    model: str = ""
    """As for the simulator, of another family; empty: no proxy, so arms are not evaluated where there is no human."""
    chat_template: str = ""
    """As for the simulator."""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """As for the simulator."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    sft: SFTConfig = field(default_factory=SFTConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationConfig:
    """When and how the simulator is aligned with human logs."""

    method: PartPath = "calibrated_rl.calibration.weighted:WeightedSFT"
    """Import path of the method."""
    method_config: dict[str, Any] = field(default_factory=dict)
    """The method's own settings."""
    every: NotNegative = 10
    """Updates between re-calibrations of the arm `calibrated`; 0: none by the clock."""
    trigger: TriggerConfig = field(default_factory=TriggerConfig)
    """Re-calibrations when what was measured asks for them, beside those of `every`. Without either, the simulator is
    aligned once, before training."""
    source: Literal["logs", "pretraining"] = "logs"
    """`logs`, or for a placebo `pretraining`: the logs that the uncalibrated simulator comes from."""
    human_turns: Positive = 200
    """Further human turns at each re-calibration of `calibrated_on_policy` and `calibrated_more_logs`. Each counts on
    average as much as a logged turn at the same position in its dialogue."""
    reserve: NotNegative = 0
    """Calibration logs kept apart from all arms, for `calibrated_more_logs` alone."""
    asked: str = ""
    """File of JSON Lines with replies that humans were asked for (`jobs/ask.py`): further human turns of the
    calibration split for every alignment. Nothing else learns from them. Empty: none."""
    sft: SFTConfig = field(default_factory=SFTConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """Reinforcement learning; the same for all arms."""

    updates: Positive = 30
    """Optimizer updates."""
    tokens_per_update: Positive = 3000
    """Policy tokens that carry loss in one update; arms differ in how many dialogues that takes."""
    group_size: Positive = 8
    """Dialogues (or turns, for static context RL) that share a scenario."""
    learning_rate: Annotated[float, Range(above=0, at_most=1)] = 3e-4
    """Of the policy."""
    learning_rates: dict[Name, Annotated[float, Range(above=0, at_most=1)]] = field(default_factory=dict)
    """Learning rate of single arms, by name, where the tuning split chose another one."""
    warmup_steps: NotNegative = 2
    """Number of optimizer steps over which the learning rate rises linearly at first."""
    optimizer: AdamWConfig = field(default_factory=AdamWConfig)
    extra_groups: NotNegative = 0
    """How many further groups an update may request, at most, in place of groups whose rewards are all equal: these
    teach nothing (dynamic sampling, DAPO, arXiv 2503.14476). 0: they are learned from as they are."""
    max_staleness: NotNegative = 0
    """By how many updates the weights that sampled a turn may lag behind those that learn from it. 0: rollouts and
    learning take turns. Above 0, rollouts of whole dialogues run on while the learner steps; not with
    `deterministic`."""
    minibatches: Positive = 1
    """Optimizer steps that one update's dialogues are cut into."""
    checkpoint_every: NotNegative = 5
    """Updates between checkpoints, from which a stopped run resumes; 0: an arm that was stopped starts over."""
    checkpoints_kept: Positive = 2
    """How many of an arm's last checkpoints stay until it is done; the best by the reward of the arm's own dialogues
    stays, too."""
    checkpoint_store: str = ""
    """Store for a copy of each checkpoint, with all files of the run folder that resuming from an empty one needs:
    `s3://BUCKET/PREFIX` (options `region`, `endpoint_override` and `scheme` after a `?`), `gs://BUCKET/PREFIX` or
    `file:///PATH`. Credentials come from the environment. Empty: nowhere."""
    loss: PartPath = "calibrated_rl.learner.losses.grpo:GRPO"
    """The loss of the policy."""
    loss_config: dict[str, Any] = field(default_factory=dict)
    """The loss's own settings."""
    loss_configs: dict[Name, dict[str, Any]] = field(default_factory=dict)
    """Settings of the loss for single arms, by name, that stand in for those of `loss_config`, where the tuning split
    chose others."""
    advantage: AdvantageName = "grpo"
    """`grpo`, `dr_grpo` or `rloo` (modules of `learner/advantages/`), or the import path of another one."""
    advantage_config: dict[str, Any] = field(default_factory=dict)
    """The advantage's own settings."""
    turn_value: TurnValueName = "ridge"
    """How the arm `static` values a turn on a logged history: `ridge` regression on words, `value_head` on the policy's
    own model (modules of `turn_values/`), or the import path of another method."""
    turn_value_config: dict[str, Any] = field(default_factory=dict)
    """The method's own settings."""

    def loss_of(self, arm: str) -> tuple[str, dict[str, Any]]:
        """The import path and the settings of the loss of ``arm``."""
        return self.loss, {**self.loss_config, **self.loss_configs.get(arm, {})}


@dataclass(frozen=True, slots=True, kw_only=True)
class ShiftConfig:
    """The distance of training from real dialogues, measured during training."""

    every: NotNegative = 10
    """Updates between measurements; 0: never."""
    dialogues: Positive = 40
    """Maximum number of monitor scenarios on which it is measured."""
    null_halvings: NotNegative = 3
    """Random halvings of the human replies for the null band, which is taken at an arm's first measurement."""
    estimators: list[EstimatorName] = field(
        default_factory=lambda: ["similarity", "coverage", "lengths", "act_divergence"]
    )
    """Modules of `shift/estimators/`, or import paths of others: they compare the dialogues of the simulator and of
    humans, before and after calibration."""
    draws: Positive = 4
    """Replies of the simulator to each held-out history, before and after calibration: the share that ends the
    dialogue is its probability of ending it. 1: the decision to end is not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationConfig:
    """The held-out evaluation."""

    scenarios: Positive = 200
    """Held-out users an arm meets."""
    shifted: NotNegative = 100
    """Users of the shifted population; 0 skips them."""
    logs: Annotated[int, Range(at_least=least_to_halve(FOLDS))] = 200
    """Held-out human dialogues on which simulators are measured."""
    profile: Positive = 200
    """Maximum number of dialogues on monitor scenarios that describe the simulator's behaviour."""
    called_human: bool = False
    """Whether a classifier, fitted to the policy's turns and to those of people in its seat, says how many of the
    policy's are like a person's: 0.5 where it cannot tell them apart."""
    sampling: ReshapingConfig = field(default_factory=ReshapingConfig)
    """How policies speak there, if they are to be deployed so, beside temperature and length of turns."""
    split: Literal["held_out", "tuning"] = "held_out"
    """`held_out` for what is reported, `tuning` to choose hyperparameters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportConfig:
    """Optional content of the report."""

    metrics: list[Name] = field(default_factory=list)
    """Metrics of training, such as those of a loss of your own, that get a panel among the curves, ahead of the
    others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantConfig:
    """A side experiment of a study: the same run with a few settings changed, in a folder of its own."""

    arms: list[ArmName] = field(default_factory=lambda: ["interactive", "calibrated"])
    """The arms to run."""
    seeds: list[Seed] = field(default_factory=lambda: [0])
    """Their seeds."""
    change: list[Name] = field(default_factory=list)
    """Settings as `key=value`."""
