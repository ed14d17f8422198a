"""Settings of a run that have no effect beside its other ones."""

from collections.abc import Iterator

from calibrated_rl.config.arms import Arm, existing_arms
from calibrated_rl.config.endpoint_checks import endpoint_keys
from calibrated_rl.config.run_config import RunConfig
from calibrated_rl.endpoints.config import endpoint_name


def settings_without_effect(config: RunConfig) -> Iterator[str]:
    """Settings that have no effect, a line each. They are logged, not refused: ``key=value`` can empty `human`, but
    cannot remove the settings of a YAML file that belong to it."""
    if config.human_config and not config.human:
        yield "human_config has no effect: `human` is empty"
    if config.judge_config and not config.judge:
        yield "judge_config has no effect: `judge` is empty"
    pretraining = config.pretraining
    if pretraining.human_config and not pretraining.human:
        yield "pretraining.human_config has no effect: `pretraining.human` is empty"
    if pretraining.logs and not pretraining.chosen:
        yield "pretraining.logs has no effect: `pretraining.human` and `pretraining.reader` are empty"
    if config.calibration.asked and config.calibration.source == "pretraining":
        yield "calibration.asked has no effect: calibration.source is pretraining"
    if config.calibration.asked and not any(arm.calibrates != "never" for arm in _arms(config)):
        yield "calibration.asked has no effect: no arm aligns its simulator"
    if config.health.thresholds and not any(arm.meets == "simulator" for arm in _arms(config)):
        yield "health.thresholds has no effect: no arm meets a simulator"
    trigger = config.calibration.trigger
    if trigger.on and not calibrates_again(config):
        yield "calibration.trigger has no effect: no arm aligns its simulator again"
    for name in () if trigger.on else ("at_least", "at_most"):
        if getattr(trigger, name) != getattr(type(trigger)(), name):
            yield f"calibration.trigger.{name} has no effect: neither shift nor effective_share is set"
    used = {endpoint_name(model) for _, model in endpoint_keys(config)}
    for name in config.endpoints:
        if name not in used:
            yield f"endpoints.{name} has no effect: nothing names endpoint:{name}"
    if not config.proxy.model:
        default = type(config.proxy)()
        for name in ("chat_template", "chat_template_kwargs", "sft"):  # hardware files have its engine
            if getattr(config.proxy, name) != getattr(default, name):
                yield f"proxy.{name} has no effect: `proxy.model` is empty"


def calibrates_again(config: RunConfig) -> bool:
    """Whether an arm of the run aligns its simulator during training."""
    return any(arm.calibrates == "again" for arm in _arms(config))


def _arms(config: RunConfig) -> list[type[Arm]]:
    return list(existing_arms([*config.arms, *config.control_arms]))
