"""Checks of the settings that concern endpoints: what has no weights here is not trained, aligned or scored with."""

from collections.abc import Iterator

from calibrated_rl.config.arms import builtin_arms, existing_arms, find_arm
from calibrated_rl.config.run_config import RunConfig
from calibrated_rl.endpoints.config import endpoint_name
from calibrated_rl.errors import UserError
from calibrated_rl.settings.fields import Key, Problem, dotted, nearest


def problems_of_endpoints(config: RunConfig) -> Iterator[Problem]:
    """Endpoints that do not exist, or that are to do what they cannot."""
    uses: list[tuple[Key, str]] = []
    for key, model in endpoint_keys(config):
        name = endpoint_name(model)
        if name is None:
            continue
        if key[0] in ("policy", "proxy"):
            yield Problem(key, f"is '{model}': {_NOT_HERE[str(key[0])]}")
        elif name not in config.endpoints:
            known = ", ".join(config.endpoints) or "none"
            yield Problem(key, f"is '{model}', and `endpoints` has no '{name}'; there are: {known}"
                          f"{nearest(name, list(config.endpoints))}")  # fmt: skip
        else:
            uses.append((key, name))
    for name, settings in config.proxies.items():
        if endpoint_name(settings.get("model")) is not None and (other := sorted(settings.keys() - {"model"})):
            text = (
                "is for a proxy that is fitted; an endpoint has its settings in `endpoints`, and speaks with those of "
            )
            yield Problem(("proxies", name, other[0]), f"{text}simulator.sampling")
    yield from _evaluated_by_its_trainer(config, uses)
    if endpoint_name(config.simulator.model) is not None:
        yield from _cannot_be_calibrated(config)


def refuse_endpoint_simulator(config: RunConfig, purpose: str) -> None:
    """For what takes the simulator's weights.

    Args:
        purpose: what they are for, in the message.

    Raises:
        UserError: they are not here.
    """
    if endpoint_name(config.simulator.model) is not None:
        raise UserError(f"simulator.model is '{config.simulator.model}', whose weights are not here {purpose}")


def endpoint_keys(config: RunConfig) -> Iterator[tuple[Key, object]]:
    """The settings that may name an endpoint, with their values."""
    for role in ("policy", "simulator", "proxy"):
        yield (role, "model"), getattr(config, role).model
    for name, settings in config.proxies.items():
        yield ("proxies", name, "model"), settings.get("model")
    for name, value in config.judge_config.items() if config.judge else ():
        yield ("judge_config", name), value


def judges_of_their_own(config: RunConfig) -> Iterator[str]:
    """Users that are the judge's own model, a line each. It is logged, not refused: a judge scores what the policy says
    with any user, and no user learns from it. But models are known to favour what they would have said, so that a
    policy may learn to please this one alone, on both sides of the table."""
    judges = {
        name for key, model in endpoint_keys(config) if key[0] == "judge_config" and (name := _known(config, model))
    }
    for key, model in endpoint_keys(config):
        name = _known(config, model)
        if key[0] == "judge_config" or name is None:
            continue
        if any(_same(config, name, judge) for judge in judges):
            yield f"{dotted(key)} and the judge are the same model ({model}): what pleases it counts twice"


def _known(config: RunConfig, model: object) -> str | None:
    name = endpoint_name(model)
    return name if name in config.endpoints else None


def _same(config: RunConfig, first: str, second: str) -> bool:
    """Whether two endpoints are the same model at the same place."""
    one, other = config.endpoints[first], config.endpoints[second]
    return (one.base_url.rstrip("/"), one.model) == (other.base_url.rstrip("/"), other.model)


_NOT_HERE = {
    "policy": "a policy is trained, and an endpoint has no weights here; write a model",
    "proxy": "`proxy` is fitted to held-out people, and an endpoint has no weights here; write `proxies: {NAME: "
    "{model: endpoint:...}}`",
}


def _evaluated_by_its_trainer(config: RunConfig, uses: list[tuple[Key, str]]) -> Iterator[Problem]:
    trains = endpoint_name(config.simulator.model)
    if trains is None or trains not in config.endpoints:
        return
    for key, name in uses:
        if key[0] == "proxies" and _same(config, name, trains):
            yield Problem(key, "is the simulator's own endpoint: policies would be evaluated by whom they trained with")


def _cannot_be_calibrated(config: RunConfig) -> Iterator[Problem]:
    aligning = [arm.name for arm in existing_arms([*config.arms, *config.control_arms]) if arm.calibrates != "never"]
    if aligning:
        able = [arm for name in builtin_arms() if (arm := find_arm(name)).calibrates == "never"]
        working = sorted((arm for arm in able if config.human or not arm.needs_human()), key=lambda arm: arm.order)
        yield Problem(
            ("simulator", "model"),
            f"is '{config.simulator.model}', whose weights are not here: it cannot be calibrated, as "
            f"{', '.join(aligning)} would; arms that work with it: {', '.join(arm.name for arm in working)}",
        )
    for name in ("human", "reader"):
        if getattr(config.pretraining, name):
            text = "pretrains the simulator, and an endpoint has no weights here; leave it empty"
            yield Problem(("pretraining", name), text)
    if "simulator" in config.learner.lora:
        yield Problem(("learner", "lora", "simulator"), "trains the simulator, and an endpoint has no weights here")
