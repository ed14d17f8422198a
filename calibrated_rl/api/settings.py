"""A config for the functions of this folder: a file or a ``RunConfig``, with overrides."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from calibrated_rl.config import load
from calibrated_rl.config.load import ConfigLike, variants_of
from calibrated_rl.config.run_config import RunConfig
from calibrated_rl.errors import UserError
from calibrated_rl.run.machine import Hardware, hardware_file
from calibrated_rl.settings.fields import NotAllowed, converted


def load_config(config: ConfigLike, overrides: Sequence[str] = (), *, hardware: Hardware | None = None) -> RunConfig:
    """Read a config; nothing of a run is loaded or started for that.

    Args:
        config: a YAML file, or a config that ``overrides`` are merged over.
        overrides: ``key=value``, or further YAML files, which are merged over ``config`` in their order.
        hardware: settings of ``calibrated_rl/config/hardware`` merged over ``config``, below ``overrides``; None: none
            of them.

    Raises:
        UserError: names each setting that is not allowed, with its location.
    """
    return load.load_config(config, _laid_over(overrides, hardware))


def _laid_over(overrides: Sequence[str], hardware: Hardware | None) -> list[str]:
    if isinstance(overrides, str):
        raise UserError(f"overrides is '{overrides}': write a list, ['{overrides}']")
    layers = [str(text) for text in overrides]
    return layers if hardware is None else [hardware_file(allowed("hardware", Hardware, hardware)), *layers]


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """A config with all overrides, ready to run."""

    config: RunConfig
    variants: dict[str, RunConfig] = field(default_factory=dict)
    """Its side experiments, as configs of their own."""
    note: str = ""
    """A warning about the config; empty: none."""


def settings_to_run(
    config: ConfigLike, overrides: Sequence[str], hardware: Hardware | None, *, side_experiments: bool
) -> Resolved:
    """A config that is ready to run: a file is overridden by the settings of the hardware (None: found on this
    machine), a ``RunConfig`` is taken as it is unless ``hardware`` is named.

    Raises:
        UserError: as ``load_config``.
    """
    requested = load_config(config, overrides)  # reports mistakes before devices are detected
    if hardware is None and not isinstance(config, RunConfig):
        hardware = "auto"
    laid_over = _laid_over(overrides, hardware)
    resolved = load.load_config(config, laid_over)
    note = ""
    if requested.deterministic and not resolved.deterministic:
        note = f"deterministic is turned off by {laid_over[0]}: the same seed will not give the same run"
    variants = variants_of(resolved, config, laid_over) if side_experiments else {}
    return Resolved(config=resolved, variants=variants, note=note)


def allowed(name: str, hint: Any, value: Any) -> Any:
    """``value`` of the argument ``name``, converted by the annotation ``hint``, by the rules for settings.

    Raises:
        UserError: it is something else.
    """
    try:
        return converted(hint, value, (name,))
    except NotAllowed as refused:
        raise UserError("\n".join(map(str, refused.problems))) from refused
