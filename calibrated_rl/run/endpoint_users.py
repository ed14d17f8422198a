"""The users of a run that are behind endpoints."""

from calibrated_rl.endpoints.config import endpoint_name
from calibrated_rl.endpoints.user import EndpointUser
from calibrated_rl.run.inputs import RunInputs
from calibrated_rl.tasks.base import secret_after


def endpoint_simulator(inputs: RunInputs) -> EndpointUser | None:
    """The simulator, where it is behind an endpoint."""
    return _user(inputs, inputs.config.simulator.model, same_for_all=False)


def endpoint_proxy(inputs: RunInputs, name: str) -> EndpointUser | None:
    """The user ``name`` of the evaluation, where it is behind an endpoint: the same for all arms."""
    return _user(inputs, inputs.config.proxies[name].get("model"), same_for_all=True)


def _user(inputs: RunInputs, model: object, *, same_for_all: bool) -> EndpointUser | None:
    name = endpoint_name(model)
    if name is None:
        return None
    sampling = inputs.config.simulator.sampling
    return EndpointUser(
        inputs.endpoints.client(name), temperature=sampling.temperature, max_tokens=sampling.max_turn_tokens,
        secret_after=secret_after(inputs.task), same_for_all=same_for_all,
    )  # fmt: skip
