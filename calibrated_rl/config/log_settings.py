"""The settings of a run's log reader."""

from dataclasses import fields
from typing import Any

from calibrated_rl.components.component import import_path
from calibrated_rl.config.run_config import RunConfig


def log_settings(config: RunConfig) -> dict[str, Any]:
    """The log reader's own settings; logs of a scripted human are by default those of the run's own human."""
    settings = {key: value for key, value in config.logs.items() if key != "reader"}
    reader_keys = {field.name for field in fields(import_path(str(config.logs["reader"])).Config)}
    if config.human and "human" in reader_keys and "human" not in settings:
        settings |= {"human": config.human, "human_config": config.human_config}
    return settings
