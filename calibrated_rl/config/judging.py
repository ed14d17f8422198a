"""The settings of a judge alone: three keys of a run's config, in a file of their own or in that of a run."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from calibrated_rl.components.component import describe_config_error
from calibrated_rl.config.run_config import RunConfig
from calibrated_rl.config.sections import EndpointLabel
from calibrated_rl.endpoints.config import EndpointConfig
from calibrated_rl.errors import UserError
from calibrated_rl.settings.fields import NotAllowed, PartPath, from_plain, refuse, unknown_key
from calibrated_rl.settings.secrets import keep_references, refuse_readable_secrets
from calibrated_rl.settings.yaml_files import places, read_yaml


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgingConfig:
    """A judge, and the endpoints that it asks; as in ``RunConfig``."""

    judge: PartPath
    judge_config: dict[str, Any] = field(default_factory=dict)
    endpoints: dict[EndpointLabel, EndpointConfig] = field(default_factory=dict)


def load_judging(file: Path) -> JudgingConfig:
    """Read ``judge``, ``judge_config`` and ``endpoints`` from a file; all else that a run's config may have is left.

    Raises:
        UserError: there is no such file, or no judge in it; or as ``load_config``.
    """
    source = read_yaml(file)
    locate = places([source])
    refuse_readable_secrets(source.values, source.name, file)
    known = {each.name for each in fields(RunConfig)}
    if unknown := [name for name in source.values if name not in known]:
        raise UserError(f"{locate((unknown[0],))}: {unknown_key(RunConfig, unknown[0], ())}")
    if not source.values.get("judge"):
        raise UserError(f"{file} names no judge: write judge: package.module:Class, judge_config and endpoints")
    try:
        values: Any = OmegaConf.to_container(keep_references(OmegaConf.create(source.values)), resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(describe_config_error(error, locate)) from error
    wanted: Mapping[str, Any] = {each.name: values[each.name] for each in fields(JudgingConfig) if each.name in values}
    try:
        config: JudgingConfig = from_plain(JudgingConfig, wanted)
    except NotAllowed as error:
        refuse(error.problems, locate)
    return config
