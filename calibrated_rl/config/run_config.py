"""The whole configuration of a run: composes the parts' own configs and loads YAML, strictly."""

import itertools
import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml  # type: ignore[import-untyped]
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from calibrated_rl.calibration.config import SFTConfig
from calibrated_rl.components.component import describe_config_error
from calibrated_rl.components.short_names import short_names
from calibrated_rl.config.arms import builtin_arms
from calibrated_rl.config.checks import problems_of_learning, problems_of_parts, problems_of_sizes, problems_together
from calibrated_rl.errors import UserError, printable
from calibrated_rl.inference.config import EngineConfig, SamplingConfig
from calibrated_rl.inference.scaling import ScalingConfig
from calibrated_rl.learner import advantages
from calibrated_rl.learner.config import AdamWConfig, LearnerConfig
from calibrated_rl.replay.config import ReplayConfig
from calibrated_rl.settings.fields import (
    IMPORT_PATH,
    Key,
    Name,
    NotAllowed,
    NotNegative,
    OneOf,
    PartPath,
    PartPathOrNone,
    Pattern,
    Positive,
    Problem,
    Range,
    Seed,
    converted,
    dotted,
    from_plain,
    refuse,
)
from calibrated_rl.settings.moved import old_keys, up_to_date
from calibrated_rl.settings.secrets import HIDDEN, keep_references, masked, refuse_readable_secrets
from calibrated_rl.settings.yaml_files import Source, laid_over, parse_yaml, places, read_yaml
from calibrated_rl.shift import estimators
from calibrated_rl.shift.sizes import FOLDS, least_to_halve

ArmName = Annotated[str, OneOf(builtin_arms(), otherwise=IMPORT_PATH)]
"""An arm that the package brings, or the import path of another one; see ``arms.py``."""
AdvantageName = Annotated[str, OneOf(short_names(advantages.__name__), otherwise=IMPORT_PATH)]
"""A module of ``learner/advantages/``, or the import path of another advantage."""
EstimatorName = Annotated[str, OneOf(short_names(estimators.__name__), otherwise=IMPORT_PATH)]
"""A module of ``shift/estimators/``, or the import path of another estimator."""
_SEGMENT = r"(?!\.)[\w.+=@%, -]{1,100}(?<![ .])"
MOST_DOTS = 64
"""In a key; Python could not follow much deeper ones."""
OF_STUDY = ("name", "variants", "control_arms", "control_seeds")
"""Settings that a variant cannot change: its folder is below the study's."""
RunName = Annotated[str, Pattern(rf"{_SEGMENT}(/{_SEGMENT})*", "a name for a folder, or names joined by /, without ..")]
Date = Annotated[str, Pattern(r"(\d{4}-\d\d-\d\d)?", "a day as YYYY-MM-DD, or nothing for today")]
VariantName = Annotated[str, Pattern(rf"(?!main$){_SEGMENT}", "a name for a folder, and not main")]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """One side's model, its replicas, and how it speaks."""

    model: Name = "tiny"
    """`tiny` (made on the spot), a packaged name such as smollm2-135m, a folder, or a hub name."""
    chat_template: str = ""
    """File with another chat template (Jinja) than the model comes with; empty: the model's own. The run folder keeps
    a copy, and saved models have it."""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Variables of the chat template, such as `enable_thinking: false`; those that it does not read are refused."""
    replicas: Positive = 1
    """vLLM replicas, at the start."""
    scaling: ScalingConfig = field(default_factory=ScalingConfig)
    """How far their number may change while an arm trains."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    warm_start: SFTConfig = field(default_factory=SFTConfig)
    """Training before everything else: the policy's warm start, the tiny simulator's own pretraining."""

    @property
    def replica_bounds(self) -> tuple[int, int]:
        """Fewest and most replicas."""
        return self.scaling.minimum or self.replicas, self.scaling.maximum or self.replicas


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainingConfig:
    """Whom the uncalibrated simulator learned from, where it is trained on the spot."""

    human: PartPathOrNone = ""
    """Import path of the population; empty: the simulator's model is used as it comes."""
    human_config: dict[str, Any] = field(default_factory=dict)
    """The population's own settings."""
    logs: dict[str, Any] = field(default_factory=dict)
    """How many dialogues of each split, as for scripted logs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyConfig:
    """A stand-in for held-out people where they are known from logs alone: a model of another family, trained
    on held-out human turns and on nothing else. What it says of an arm is said of the proxy, not of people."""

    model: str = ""
    """As for the simulator, of another family; empty: no proxy, so arms are not judged where there is no human."""
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
    """Updates between re-calibrations of the arm `calibrated`; 0: only once, before training."""
    source: Literal["logs", "pretraining"] = "logs"
    """`logs`, or for a placebo `pretraining`: the logs that the uncalibrated simulator comes from."""
    human_turns: Positive = 200
    """Further human turns at each re-calibration of `calibrated_on_policy` and `calibrated_more_logs`. Each counts on
    average as much as a logged turn at the same place in its dialogue."""
    reserve: NotNegative = 0
    """Calibration logs held back from all arms, for `calibrated_more_logs` alone."""
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
    """The first so many optimizer steps ramp the learning rate up linearly."""
    optimizer: AdamWConfig = field(default_factory=AdamWConfig)
    extra_groups: NotNegative = 0
    """How many further groups an update may ask for, at most, in place of groups whose rewards are all equal: these
    teach nothing (dynamic sampling, DAPO, arXiv 2503.14476). 0: they are learned from as they are."""
    max_staleness: NotNegative = 0
    """By how many updates the weights that sampled a turn may lag behind those that learn from it. 0: rollouts and
    learning take turns. Above 0, rollouts of whole dialogues run on while the learner steps; not with
    `deterministic`."""
    minibatches: Positive = 1
    """Optimizer steps that one update's dialogues are cut into."""
    checkpoint_every: NotNegative = 5
    """Updates between checkpoints, from which a stopped run goes on; 0: an arm that was stopped starts over."""
    checkpoints_kept: Positive = 2
    """How many of an arm's last checkpoints stay until it is done; beside them stays the best by the reward of the
    arm's own dialogues."""
    checkpoint_store: str = ""
    """Where each checkpoint goes, too, with all of the run folder that it takes to go on from an empty one:
    `s3://BUCKET/PREFIX` (options `region`, `endpoint_override` and `scheme` after a `?`), `gs://BUCKET/PREFIX` or
    `file:///PATH`. Credentials come from the environment. Empty: nowhere."""
    loss: PartPath = "calibrated_rl.learner.losses.grpo:GRPO"
    """What the policy learns by."""
    loss_config: dict[str, Any] = field(default_factory=dict)
    """The loss's own settings."""
    advantage: AdvantageName = "grpo"
    """`grpo`, `dr_grpo` or `rloo` (modules of `learner/advantages/`), or the import path of another one."""
    advantage_config: dict[str, Any] = field(default_factory=dict)
    """The advantage's own settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShiftConfig:
    """How far training is from real dialogues, measured while it goes on."""

    every: NotNegative = 10
    """Updates between measurements; 0: never."""
    dialogues: Positive = 40
    """Monitor scenarios on which it is measured, at most."""
    null_halvings: NotNegative = 3
    """Random halvings of the people's replies for the null band, which is taken at an arm's first measurement."""
    estimators: list[EstimatorName] = field(
        default_factory=lambda: ["likeness", "coverage", "lengths", "act_divergence"]
    )
    """Modules of `shift/estimators/`, or import paths of others: what the dialogues of the simulator and of people are
    compared by, before and after calibration."""
    draws: Positive = 4
    """Replies of the simulator to each held-out history, before and after calibration: the share that ends the
    dialogue is its probability of ending it. 1: the decision to end is not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationConfig:
    """The held-out evaluation."""

    scenarios: Positive = 200
    """Held-out people an arm meets."""
    shifted: NotNegative = 100
    """People of the shifted population; 0 skips them."""
    logs: Annotated[int, Range(at_least=least_to_halve(FOLDS))] = 200
    """Held-out human dialogues on which simulators are measured."""
    profile: Positive = 200
    """Dialogues on monitor scenarios from which the simulator's behaviour is described, at most."""
    split: Literal["held_out", "tuning"] = "held_out"
    """`held_out` for what is reported, `tuning` to choose hyperparameters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportConfig:
    """What the report shows beside what it always shows."""

    metrics: list[Name] = field(default_factory=list)
    """Metrics of training, such as those of a loss of your own, that get a panel among the curves, ahead of the
    others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantConfig:
    """A side experiment of a study: the same run with a few settings changed, in a folder of its own."""

    arms: list[ArmName] = field(default_factory=lambda: ["interactive", "calibrated"])
    """What is run of it."""
    seeds: list[Seed] = field(default_factory=lambda: [0])
    """Their seeds."""
    change: list[Name] = field(default_factory=list)
    """Settings as `key=value`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """Everything a run needs."""

    name: RunName = "run"
    """The run's folder is runs/NAME."""
    label: str = ""
    """Printed over the report, such as `demonstration`."""
    date: Date = ""
    """What chat templates take for today, as YYYY-MM-DD: some print the date in every prompt. Empty: the day on which
    the run is begun; it stands in the run folder's config.yaml, and resuming and evaluating use it on any other day."""
    arms: list[ArmName] = field(default_factory=lambda: ["start", "static", "interactive", "calibrated", "oracle"])
    """What is trained and compared."""
    seeds: list[Seed] = field(default_factory=lambda: [0])
    """Each arm is trained once with each."""
    deterministic: bool = False
    """Turns in lockstep, in a fixed order: the same seed gives the same run, a little slower."""
    restarts: NotNegative = 3
    """How often a run starts its parts again and goes on from the last checkpoint, when the learner or the replay store
    died. Replicas of policy and simulator are replaced without that."""
    reuse_fits: bool = True
    """Take the fits that a run begins with (warm start, pretraining, proxy) from an earlier run on this machine, where
    nothing that bears on them differs. They are kept in ``~/.cache/calibrated_rl/fits``."""
    task: PartPath = "calibrated_rl.examples.front_desk:FrontDesk"
    """Which scenarios there are, when a dialogue ends, what it was worth."""
    task_config: dict[str, Any] = field(default_factory=dict)
    """The task's own settings."""
    human: PartPathOrNone = ""
    """Import path of a scripted population; empty where people are known from logs alone."""
    human_config: dict[str, Any] = field(default_factory=dict)
    """The population's own settings."""
    logs: dict[str, Any] = field(default_factory=lambda: {"reader": "calibrated_rl.logs.scripted:ScriptedLogs"})
    """`reader` is its import path; the rest is the reader's own config."""
    policy: ModelConfig = field(default_factory=ModelConfig)
    simulator: ModelConfig = field(default_factory=ModelConfig)
    proxy: ProxyConfig = field(default_factory=ProxyConfig)
    pretraining: PretrainingConfig = field(default_factory=PretrainingConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    shift: ShiftConfig = field(default_factory=ShiftConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    control_arms: list[ArmName] = field(default_factory=list)
    """Further arms of a study."""
    control_seeds: list[Seed] = field(default_factory=lambda: [0])
    """Their seeds."""
    variants: dict[VariantName, VariantConfig] = field(default_factory=dict)


ConfigLike = RunConfig | str | os.PathLike[str]
"""A config, or the YAML file that has one."""


def load_config(file: ConfigLike, overrides: Sequence[str] = (), *, saved: bool = False) -> RunConfig:
    """Read a YAML file and what changes it into a config. Nothing of a run is loaded or started for that.

    Args:
        file: a YAML file; a config made in Python is checked like one, and changed in the same way.
        overrides: ``key=value``, or further YAML files (such as ``calibrated_rl/config/hardware/one_gpu.yaml``), which
            are laid over ``file`` in their order; ``key=value`` has the last word.
        saved: the settings of a run that is there already, to look at it or to judge its policies. What only training
            needs is not asked for then: sizes of logs, and parts by import path, which need not be here. What an
            earlier version called otherwise is read (``settings/moved.py``).

    Raises:
        UserError: no such file, not YAML (``yaml_files.py``), settings that are not allowed (``settings.py``,
            ``config_check.py``), those of variants too, or a secret that others can read. Names for each of them place,
            key, and what is allowed.
    """
    sources = _sources(file, overrides)
    config = _merged(sources, saved)
    for name, variant in config.variants.items():
        key: Key = ("variants", name, "change")
        place = places(sources)(key)
        if wrong := [text for text in variant.change if "=" not in text]:
            raise UserError(f"{place}: {dotted(key)} has '{printable(wrong[0])}': write key=value")
        if own := [text for text in variant.change if re.split(r"[.=\[]", text.strip())[0].strip() in OF_STUDY]:
            raise UserError(f"{place}: {dotted(key)} has '{printable(own[0])}', which is the study's alone")
        own_run, change = _as_run(config.name, name, variant)
        change = [text for text in change if text.partition("=")[2] != HIDDEN]
        at = f"{places(sources)(key[:2])}: {dotted(key[:2])}"
        _merged([*sources, settings_of_pairs(own_run, at), settings_of_pairs(change, f"{place}: {dotted(key)}")], saved)
    return config


def _sources(base: ConfigLike, overrides: Sequence[str]) -> list[Source]:
    files = [Path(text) for text in overrides if "=" not in text and text.endswith((".yaml", ".yml"))]
    pairs = [text for text in overrides if Path(text) not in files]
    for text in pairs:
        if "=" not in text:
            raise UserError(f"'{printable(text)}' is neither key=value nor a YAML file")
    sources = []
    if isinstance(base, RunConfig):
        sources.append(Source(name="config", values=asdict(base)))
    else:
        files.insert(0, Path(base))
    for each in files:
        sources.append(read_yaml(each))
        refuse_readable_secrets(sources[-1].values, sources[-1].name, each)
    if pairs:
        sources.append(settings_of_pairs(pairs, "command line"))
        refuse_readable_secrets(sources[-1].values, "command line")
    return sources


def _merged(sources: Sequence[Source], saved: bool) -> RunConfig:
    where = places(sources)
    merged: Any = asdict(RunConfig())
    for source in sources:
        if saved:
            merged = laid_over(merged, up_to_date(source.values))
            continue
        refuse([Problem(key, f"is called {new} now") for key, new in old_keys(source.values)], where)
        merged = laid_over(merged, source.values)
    try:
        plain = OmegaConf.to_container(keep_references(OmegaConf.create(merged)), resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(describe_config_error(error, where)) from error
    try:
        config = from_plain(RunConfig, plain)  # type: ignore[arg-type]
    except NotAllowed as error:
        refuse(error.problems, where)
    refuse(list(problems_together(config)), where)
    if not saved:
        refuse([*problems_of_sizes(config), *problems_of_parts(config)], where)
        refuse(list(problems_of_learning(config)), where)
    return config  # type: ignore[no-any-return]


def settings_of_pairs(pairs: Sequence[str], where: str) -> Source:
    """What ``key=value`` say, with the values in YAML; the last word counts where a key is given twice.

    Args:
        where: the place in messages, such as ``command line``.

    Raises:
        UserError: one is something else.
    """
    values: Any = {}
    for text in pairs:
        if "=" not in text:
            raise UserError(f"{where}: '{printable(text)}' is not key=value")
        key, _, value = (part.strip() for part in text.partition("="))
        if not all(key.split(".")):
            raise UserError(f"{where}: '{printable(text)}' is not key=value: a part of the key is empty")
        if key.count(".") > MOST_DOTS:
            raise UserError(f"{where}: '{printable(text)}': no key has so many parts")
        try:
            # Only to refuse what a file may not say either: keys that stand twice, or are no text.
            parse_yaml(f"value: {value}", where)
            own = OmegaConf.to_container(OmegaConf.from_dotlist([f"{key}={value}"]))
        except UserError as error:
            reason = str(error).removeprefix(where).partition(": ")[2]
            raise UserError(
                f"{where}: '{printable(text)}' is not key=value with a value in YAML: {reason}"
            ) from error
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"{where}: '{printable(text)}' is not key=value with a value in YAML: {printable(reason)}"
            ) from error
        values = laid_over(values, own)
    return Source(name=where, values=values)


def check(config: RunConfig, where: str) -> None:
    """For a config made in Python: refuse what its settings must not be, each alone or together (``config_check.py``).

    Raises:
        UserError: names each.
    """
    try:
        converted(RunConfig, config, ())
    except NotAllowed as error:
        refuse(error.problems, lambda key: where)
    refuse(list(problems_together(config)), lambda key: where)


def to_yaml(config: RunConfig) -> str:
    """All settings as a file that ``load_config`` reads, without the secrets among them."""
    return str(OmegaConf.to_yaml(OmegaConf.create(settings_of(config))))


def settings_of(config: RunConfig) -> dict[str, Any]:
    """All settings as plain data, without the secrets among them."""
    settings: dict[str, Any] = masked(asdict(config))
    return settings


def variants_of(config: RunConfig, file: ConfigLike, overrides: Sequence[str]) -> dict[str, RunConfig]:
    """The side experiments of a study as configs of their own, each in a folder below the study's.

    Raises:
        UserError: as ``load_config``.
    """
    return {
        name: _merged(_sources(file, [*overrides, *itertools.chain(*_as_run(config.name, name, variant))]), saved=False)
        for name, variant in config.variants.items()
    }


def _as_run(study: str, name: str, variant: VariantConfig) -> tuple[list[str], list[str]]:
    """What makes a variant out of its study, as ``key=value``: its name, arms and seeds, and what it changes."""
    return [
        f"name={json.dumps(f'{study}/variants/{name}')}",
        f"arms=[{','.join(variant.arms)}]",
        f"seeds=[{','.join(map(str, variant.seeds))}]",
        "control_arms=[]",
    ], list(variant.change)
