"""Reads the configuration of a run from YAML, strictly, and writes it."""

import itertools
import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from calibrated_rl.components.component import describe_config_error
from calibrated_rl.config.checks import problems_of_parts, problems_of_sizes, problems_together
from calibrated_rl.config.engine_checks import problems_of_engine_args
from calibrated_rl.config.learning_checks import problems_of_learning
from calibrated_rl.config.run_config import RunConfig
from calibrated_rl.config.sections import VariantConfig
from calibrated_rl.errors import UserError, printable
from calibrated_rl.settings.fields import Key, NotAllowed, Problem, converted, dotted, from_plain, refuse
from calibrated_rl.settings.moved import old_names, up_to_date
from calibrated_rl.settings.secrets import HIDDEN, keep_references, masked, refuse_readable_secrets
from calibrated_rl.settings.yaml_files import Source, laid_over, parse_yaml, places, read_yaml

MAX_DOTS = 64
"""In a key; much deeper ones would exceed Python's recursion limit."""
OF_STUDY = ("name", "variants", "control_arms", "control_seeds")
"""Settings that a variant cannot change: its folder is below the study's."""

ConfigLike = RunConfig | str | os.PathLike[str]
"""A config, or the YAML file that has one."""


def load_config(file: ConfigLike, overrides: Sequence[str] = (), *, saved: bool = False) -> RunConfig:
    """Read a YAML file and its overrides into a config. Nothing of a run is loaded or started.

    Args:
        file: a YAML file; a config made in Python is checked and overridden in the same way.
        overrides: ``key=value``, or further YAML files (such as ``calibrated_rl/config/hardware/one_gpu.yaml``), which
            override ``file`` in their order; ``key=value`` overrides all of them.
        saved: the settings of an existing run, to inspect it or to evaluate its policies. Checks that only training
            needs are skipped: sizes of logs, and parts by import path, which need not exist here. Old names of keys
            are accepted (``settings/moved.py``).

    Raises:
        UserError: no such file, not YAML (``yaml_files.py``), settings that are not allowed (``settings/``,
            ``checks.py``), those of variants too, or a secret that others can read. Names the location, the key and
            what is allowed.
    """
    sources = _sources(file, overrides)
    config = _merged(sources, saved)
    for name, variant in config.variants.items():
        key: Key = ("variants", name, "change")
        location = places(sources)(key)
        if not_pairs := [text for text in variant.change if "=" not in text]:
            raise UserError(f"{location}: {dotted(key)} has '{printable(not_pairs[0])}': write key=value")
        if study_keys := [text for text in variant.change if re.split(r"[.=\[]", text.strip())[0].strip() in OF_STUDY]:
            raise UserError(f"{location}: {dotted(key)} has '{printable(study_keys[0])}', which only the study may set")
        variant_settings, change = _as_run(config.name, name, variant)
        change = [text for text in change if text.partition("=")[2] != HIDDEN]
        variant_location = f"{places(sources)(key[:2])}: {dotted(key[:2])}"
        _merged(
            [
                *sources,
                settings_of_pairs(variant_settings, variant_location),
                settings_of_pairs(change, f"{location}: {dotted(key)}"),
            ],
            saved,
        )
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
    for file in files:
        sources.append(read_yaml(file))
        refuse_readable_secrets(sources[-1].values, sources[-1].name, file)
    if pairs:
        sources.append(settings_of_pairs(pairs, "command line"))
        refuse_readable_secrets(sources[-1].values, "command line")
    return sources


def _merged(sources: Sequence[Source], saved: bool) -> RunConfig:
    locate = places(sources)
    values: Any = asdict(RunConfig())
    for source in sources:
        if saved:
            values = laid_over(values, up_to_date(source.values))
            continue
        refuse([Problem(key, text) for key, text in old_names(source.values)], locate)
        values = laid_over(values, source.values)
    try:
        plain = OmegaConf.to_container(keep_references(OmegaConf.create(values)), resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(describe_config_error(error, locate)) from error
    try:
        config = from_plain(RunConfig, plain)  # type: ignore[arg-type]
    except NotAllowed as error:
        refuse(error.problems, locate)
    refuse(list(problems_together(config)), locate)
    if not saved:
        refuse([*problems_of_sizes(config), *problems_of_parts(config), *problems_of_engine_args(config)], locate)
        refuse(list(problems_of_learning(config)), locate)
    return config  # type: ignore[no-any-return]


def settings_of_pairs(pairs: Sequence[str], location: str) -> Source:
    """The settings of ``key=value`` pairs, with the values in YAML; of a repeated key the last one counts.

    Args:
        location: in messages, such as ``command line``.

    Raises:
        UserError: one is something else.
    """
    values: Any = {}
    for text in pairs:
        if "=" not in text:
            raise UserError(f"{location}: '{printable(text)}' is not key=value")
        key, _, value = (piece.strip() for piece in text.partition("="))
        if not all(key.split(".")):
            raise UserError(f"{location}: '{printable(text)}' is not key=value: a part of the key is empty")
        if key.count(".") > MAX_DOTS:
            raise UserError(f"{location}: '{printable(text)}': no key has so many parts")
        try:
            # Only to refuse what a file may not contain either: repeated keys, or keys that are no text.
            parse_yaml(f"value: {value}", location)
            pair_values = OmegaConf.to_container(OmegaConf.from_dotlist([f"{key}={value}"]))
        except UserError as error:
            reason = str(error).removeprefix(location).partition(": ")[2]
            raise UserError(
                f"{location}: '{printable(text)}' is not key=value with a value in YAML: {reason}"
            ) from error
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"{location}: '{printable(text)}' is not key=value with a value in YAML: {printable(reason)}"
            ) from error
        values = laid_over(values, pair_values)
    return Source(name=location, values=values)


def check(config: RunConfig, location: str) -> None:
    """For a config made in Python: refuse settings that are not allowed, alone or in combination (``checks.py``).

    Raises:
        UserError: names each.
    """
    try:
        converted(RunConfig, config, ())
    except NotAllowed as error:
        refuse(error.problems, lambda key: location)
    refuse(list(problems_together(config)), lambda key: location)


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
    """The overrides that make a variant of its study, as ``key=value``: its name, arms and seeds, and its changes."""
    return [
        f"name={json.dumps(f'{study}/variants/{name}')}",
        f"arms=[{','.join(variant.arms)}]",
        f"seeds=[{','.join(map(str, variant.seeds))}]",
        "control_arms=[]",
    ], list(variant.change)
