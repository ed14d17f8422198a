"""The whole configuration of a run: composes the parts' own configs and loads YAML, strictly."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from calibrated_rl.calibration.sft import SFTConfig
from calibrated_rl.component import describe_config_error
from calibrated_rl.errors import UserError
from calibrated_rl.learner.config import LearnerConfig
from calibrated_rl.replay.config import ReplayConfig
from calibrated_rl.rollout.conversation import SamplingConfig
from calibrated_rl.rollout.engine import EngineConfig
from calibrated_rl.rollout.scaling import ScalingConfig
from calibrated_rl.run_copy import check_address
from calibrated_rl.secrets import keep_references, masked, refuse_readable_secrets


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """One side's model, its replicas, and how it speaks."""

    model: str = "tiny"
    """`tiny` (made on the spot), a packaged name such as smollm2-135m, a folder, or a hub name."""
    replicas: int = 1
    """vLLM replicas, at the start."""
    scaling: ScalingConfig = field(default_factory=ScalingConfig)
    """How far their number may change while an arm trains."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    start: SFTConfig = field(default_factory=SFTConfig)
    """Training before everything else: the policy's cold start, the tiny simulator's own upbringing."""

    @property
    def replica_bounds(self) -> tuple[int, int]:
        """Fewest and most replicas."""
        return self.scaling.minimum or self.replicas, self.scaling.maximum or self.replicas


@dataclass(frozen=True, slots=True, kw_only=True)
class UpbringingConfig:
    """Whom the uncalibrated simulator learned from, where it is trained on the spot."""

    human: str = ""
    """Import path of the population; empty: the simulator's model is used as it comes."""
    human_config: dict[str, Any] = field(default_factory=dict)
    logs: dict[str, Any] = field(default_factory=dict)
    """How many dialogues of each split, as for scripted logs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyConfig:
    """A stand-in for held-out people where they are known from logs alone: a model of another family, trained
    on held-out human turns and on nothing else. What it says of an arm is said of the proxy, not of people."""

    model: str = ""
    """As for the simulator, of another family; empty: no proxy, so arms are not judged where there is no human."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    sft: SFTConfig = field(default_factory=SFTConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationConfig:
    """When and how the simulator is aligned with human logs."""

    method: str = "calibrated_rl.calibration.weighted:WeightedSFT"
    """Import path of the method."""
    method_config: dict[str, Any] = field(default_factory=dict)
    """The method's own settings."""
    every: int = 10
    """Updates between re-calibrations of the arm `calibrated`; 0: only once, before training."""
    source: str = "logs"
    """`logs`, or for a placebo `upbringing`: the logs that the uncalibrated simulator comes from."""
    human_turns: int = 200
    """Further human turns at each re-calibration of `calibrated_on_policy` and `calibrated_more_logs`."""
    reserve: int = 0
    """Calibration logs held back from all arms, for `calibrated_more_logs` alone."""
    sft: SFTConfig = field(default_factory=SFTConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """Reinforcement learning; the same for all arms."""

    updates: int = 30
    """Optimizer updates."""
    tokens_per_update: int = 3000
    """Policy tokens that carry loss in one update; arms differ in how many dialogues that takes."""
    group_size: int = 8
    """Dialogues (or turns, for static context RL) that share a scenario."""
    learning_rate: float = 3e-4
    learning_rates: dict[str, float] = field(default_factory=dict)
    """Learning rate of single arms, where the tuning split chose another one."""
    extra_groups: int = 0
    """How many further groups an update may ask for, at most, in place of groups whose rewards are all equal: these
    teach nothing (dynamic sampling, DAPO, arXiv 2503.14476). 0: they are learned from as they are."""
    max_staleness: int = 0
    """By how many updates the weights that sampled a turn may lag behind those that learn from it. 0: rollouts and
    learning take turns. Above 0, rollouts of whole dialogues run on while the learner steps; not with
    `deterministic`."""
    minibatches: int = 1
    """Optimizer steps that one update's dialogues are cut into."""
    checkpoint_every: int = 5
    """Updates between checkpoints, from which a stopped run goes on; 0: an arm that was stopped starts over."""
    checkpoints_kept: int = 2
    """How many of an arm's last checkpoints stay until it is done; beside them stays the best by the reward of the
    arm's own dialogues."""
    checkpoint_store: str = ""
    """Where each checkpoint goes, too, with all of the run folder that it takes to go on from an empty one:
    `s3://BUCKET/PREFIX` (options `region`, `endpoint_override` and `scheme` after a `?`), `gs://BUCKET/PREFIX` or
    `file:///PATH`. Credentials come from the environment. Empty: nowhere."""
    loss: str = "calibrated_rl.learner.losses.grpo:GRPO"
    loss_config: dict[str, Any] = field(default_factory=dict)
    advantage: str = "grpo"
    """`grpo`, `dr_grpo` or `rloo`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShiftConfig:
    """How far training is from real dialogues, measured while it goes on."""

    every: int = 10
    """Updates between measurements; 0: never."""
    dialogues: int = 40
    """Monitor scenarios on which it is measured, at most."""
    null_halvings: int = 3
    """Random halvings of the people's replies for the null band, which is taken at an arm's first measurement."""
    estimators: list[str] = field(default_factory=lambda: ["likeness", "coverage", "lengths", "act_divergence"])
    """Names of `shift/compare_sets.py`: what the dialogues of the simulator and of people are compared by, before and
    after calibration."""
    draws: int = 4
    """Replies of the simulator to each held-out history, before and after calibration: the share that ends the
    dialogue is its probability of ending it. 1: the decision to end is not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationConfig:
    """The held-out evaluation."""

    scenarios: int = 200
    """Held-out people an arm meets."""
    shifted: int = 100
    """People of the shifted population; 0 skips them."""
    logs: int = 200
    """Held-out human dialogues on which simulators are measured."""
    profile: int = 200
    """Dialogues on monitor scenarios from which the simulator's behaviour is described, at most."""
    split: str = "held_out"
    """`held_out` for what is reported, `tuning` to choose hyperparameters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantConfig:
    """A side experiment of a study: the same run with a few settings changed, in a folder of its own."""

    arms: list[str] = field(default_factory=lambda: ["interactive", "calibrated"])
    seeds: list[int] = field(default_factory=lambda: [0])
    change: list[str] = field(default_factory=list)
    """Settings as `key=value`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """Everything a run needs."""

    name: str = "run"
    """The run's folder is runs/NAME."""
    label: str = ""
    """Printed over the report, such as `demonstration`."""
    arms: list[str] = field(default_factory=lambda: ["start", "static", "interactive", "calibrated", "oracle"])
    seeds: list[int] = field(default_factory=lambda: [0])
    deterministic: bool = False
    """Turns in waves of fixed order: the same seed gives the same run, a little slower."""
    restarts: int = 3
    """How often a run starts its parts again and goes on from the last checkpoint, when the learner or the replay store
    died. Replicas of policy and simulator are replaced without that."""
    reuse_fits: bool = True
    """Take the fits that a run begins with (cold start, upbringing, proxy) from an earlier run on this machine, where
    nothing that bears on them differs. They are kept in ``~/.cache/calibrated_rl/fits``."""
    task: str = "calibrated_rl.tasks.front_desk:FrontDesk"
    task_config: dict[str, Any] = field(default_factory=dict)
    human: str = ""
    """Import path of a scripted population; empty where people are known from logs alone."""
    human_config: dict[str, Any] = field(default_factory=dict)
    logs: dict[str, Any] = field(default_factory=lambda: {"reader": "calibrated_rl.logs.scripted:ScriptedLogs"})
    """`reader` is its import path; the rest is the reader's own config."""
    policy: ModelConfig = field(default_factory=ModelConfig)
    simulator: ModelConfig = field(default_factory=ModelConfig)
    proxy: ProxyConfig = field(default_factory=ProxyConfig)
    upbringing: UpbringingConfig = field(default_factory=UpbringingConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    shift: ShiftConfig = field(default_factory=ShiftConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    control_arms: list[str] = field(default_factory=list)
    """Further arms of a study."""
    control_seeds: list[int] = field(default_factory=lambda: [0])
    """Their seeds."""
    variants: dict[str, VariantConfig] = field(default_factory=dict)


ARMS = (
    "start", "cloned", "static", "interactive", "calibrated_once", "calibrated", "calibrated_on_policy",
    "calibrated_more_logs", "oracle",
)  # fmt: skip
NEEDS_HUMAN = ("oracle", "calibrated_on_policy")


def load_config(file: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file and what changes it into a config.

    Args:
        overrides: ``key=value``, or further YAML files (such as ``configs/hardware/one_gpu.yaml``), which are laid
            over ``file`` in their order; ``key=value`` has the last word.

    Raises:
        UserError: no such file, not YAML, an unknown key or a wrong type, or a secret that others can read; names key,
            place and nearest key.
    """
    path = Path(file)
    files = [path, *(Path(text) for text in overrides if "=" not in text and text.endswith((".yaml", ".yml")))]
    pairs = [text for text in overrides if Path(text) not in files]
    for text in pairs:
        if "=" not in text:
            raise UserError(f"'{text}' is neither key=value nor a YAML file")
    sources = [(str(each), _read(each)) for each in files]
    for each, (where, source) in zip(files, sources, strict=True):
        refuse_readable_secrets(source, where, each)
    if pairs:
        sources.append(("command line", _settings(pairs)))
        refuse_readable_secrets(sources[-1][1], "command line")
    merged = OmegaConf.structured(RunConfig)
    for where, source in sources:
        try:
            merged = OmegaConf.merge(merged, source)
        except OmegaConfBaseException as error:
            raise UserError(describe_config_error(error, RunConfig, where)) from error
    try:
        config = OmegaConf.to_object(keep_references(merged))
    except OmegaConfBaseException as error:
        raise UserError(describe_config_error(error, RunConfig, str(path))) from error
    assert isinstance(config, RunConfig)
    check(config, str(path))
    return config


def _settings(pairs: Sequence[str]) -> Any:
    for text in pairs:
        try:
            OmegaConf.from_dotlist([text])
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"command line: '{text}' is not key=value with a value in YAML: {reason}") from error
    return OmegaConf.from_dotlist(list(pairs))


def _read(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"there is no config file {path}")
    try:
        return OmegaConf.load(path)
    except (OSError, yaml.YAMLError, OmegaConfBaseException, RecursionError) as error:
        raise UserError(f"{path}: not readable as YAML: {str(error).splitlines()[0]}") from error


def to_yaml(config: RunConfig) -> str:
    """All settings as a file that ``load_config`` reads, without the secrets among them."""
    return str(OmegaConf.to_yaml(OmegaConf.create(settings_of(config))))


def settings_of(config: RunConfig) -> dict[str, Any]:
    """All settings as plain data, without the secrets among them."""
    settings: dict[str, Any] = masked(OmegaConf.to_container(OmegaConf.structured(config)))
    return settings


def variants_of(config: RunConfig, file: str | Path, overrides: Sequence[str]) -> dict[str, RunConfig]:
    """The side experiments of a study as configs of their own, each in a folder below the study's.

    Raises:
        UserError: as ``load_config``.
    """
    return {
        name: load_config(
            file,
            [
                *overrides,
                f"name={config.name}/variants/{name}",
                f"arms=[{','.join(variant.arms)}]",
                f"seeds=[{','.join(map(str, variant.seeds))}]",
                "control_arms=[]",
                *variant.change,
            ],
        )
        for name, variant in config.variants.items()
    }


def check(config: RunConfig, where: str) -> None:
    """Refuse what the types allow and the run could not do.

    Raises:
        UserError: names the arm or the key.
    """
    for arm in (*config.arms, *config.control_arms):
        if arm not in ARMS:
            close = difflib.get_close_matches(arm, ARMS, n=1)
            raise UserError(f"{where}: unknown arm '{arm}'" + (f"; did you mean '{close[0]}'?" if close else ""))
        if arm in NEEDS_HUMAN and not config.human:
            raise UserError(f"{where}: the arm '{arm}' needs a scripted human, and `human` is empty")
        if arm == "calibrated_more_logs" and config.calibration.reserve < 1:
            raise UserError(f"{where}: the arm '{arm}' needs calibration.reserve above 0")
    for role, side in (("policy", config.policy), ("simulator", config.simulator)):
        fewest, most = side.replica_bounds
        if not 1 <= fewest <= side.replicas <= most:
            raise UserError(
                f"{where}: {role}.replicas is {side.replicas}, {role}.scaling allows {fewest} to {most}: it must start "
                "with a number that is allowed, at least 1"
            )
        if config.deterministic and fewest < most:
            raise UserError(
                f"{where}: {role}.scaling allows {fewest} to {most} replicas, and `deterministic` is true: batches "
                "hang on the number of replicas, so the run would not be the same again; give up one of the two"
            )
    for role in ("policy", "simulator", *(("proxy",) if config.proxy.model else ())):
        if not getattr(config, role).engine.kv_cache_mib:
            _check_that_memory_can_be_planned(config, f"{where}: {role}.engine.kv_cache_mib is 0")
    if config.training.max_staleness < 0:
        raise UserError(f"{where}: training.max_staleness is {config.training.max_staleness}: it must not be negative")
    if config.training.extra_groups < 0:
        raise UserError(f"{where}: training.extra_groups is {config.training.extra_groups}: it must not be negative")
    if config.training.max_staleness and config.deterministic:
        raise UserError(
            f"{where}: training.max_staleness is {config.training.max_staleness}, and `deterministic` is true: which "
            "weights say a turn would hang on the clock, so the run would not be the same again; give up one of the two"
        )
    if config.training.checkpoints_kept < 1:
        raise UserError(f"{where}: training.checkpoints_kept is {config.training.checkpoints_kept}: at least 1 stays")
    if config.training.checkpoint_store:
        check_address(config.training.checkpoint_store)
    if config.evaluation.split not in ("held_out", "tuning"):
        raise UserError(f"{where}: evaluation.split is '{config.evaluation.split}': write held_out or tuning")
    if config.proxy.model and config.human:
        raise UserError(f"{where}: proxy.model is for tasks without a scripted human; leave one of the two empty")
    if config.proxy.model and config.proxy.model in (config.simulator.model, config.policy.model):
        raise UserError(f"{where}: the proxy must be a model of another family than policy and simulator")
    if config.calibration.source not in ("logs", "upbringing"):
        raise UserError(f"{where}: calibration.source is '{config.calibration.source}': write logs or upbringing")
    if config.calibration.source == "upbringing" and not config.upbringing.human:
        raise UserError(f"{where}: calibration.source is upbringing, and `upbringing.human` is empty")


def _check_that_memory_can_be_planned(config: RunConfig, what: str) -> None:
    if config.deterministic:
        raise UserError(
            f"{what}, and `deterministic` is true: batches may hang on what is free, so the run would not be the same "
            "again; give the cache a size"
        )
    engines = [config.policy.engine, config.simulator.engine] + ([config.proxy.engine] if config.proxy.model else [])
    apart = any(engine.num_gpus >= 1 or engine.labels for engine in engines)
    if config.learner.ranks > 1 or config.learner.labels or apart or len({e.num_gpus > 0 for e in engines}) > 1:
        raise UserError(f"{what}: it is planned only for a device that learner and engines share; give it a size")
