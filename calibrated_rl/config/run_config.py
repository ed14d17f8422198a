"""The whole configuration of a run: composes the parts' own configs and loads YAML, strictly."""

import itertools
import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from calibrated_rl.components.component import describe_config_error
from calibrated_rl.config.checks import problems_of_learning, problems_of_parts, problems_of_sizes, problems_together
from calibrated_rl.config.sections import (
    ArmName,
    CalibrationConfig,
    Date,
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
from calibrated_rl.errors import UserError, printable
from calibrated_rl.learner.config import LearnerConfig
from calibrated_rl.replay.config import ReplayConfig
from calibrated_rl.settings.fields import (
    Key,
    NotAllowed,
    NotNegative,
    PartPath,
    PartPathOrNone,
    Problem,
    Seed,
    converted,
    dotted,
    from_plain,
    refuse,
)
from calibrated_rl.settings.moved import old_names, up_to_date
from calibrated_rl.settings.secrets import HIDDEN, keep_references, masked, refuse_readable_secrets
from calibrated_rl.settings.yaml_files import Source, laid_over, parse_yaml, places, read_yaml

MOST_DOTS = 64
"""In a key; Python could not follow much deeper ones."""
OF_STUDY = ("name", "variants", "control_arms", "control_seeds")
"""Settings that a variant cannot change: its folder is below the study's."""


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
        refuse([Problem(key, text) for key, text in old_names(source.values)], where)
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
