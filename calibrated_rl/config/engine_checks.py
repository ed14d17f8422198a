"""Checks of the engines' settings that depend on whom an engine serves; see ``checks.py``."""

from collections.abc import Iterator

from calibrated_rl.config.run_config import RunConfig
from calibrated_rl.endpoints.config import endpoint_name
from calibrated_rl.inference.config import EngineConfig
from calibrated_rl.inference.vllm_arguments import problems_of_args
from calibrated_rl.settings.fields import Problem


def engines_of(config: RunConfig) -> Iterator[tuple[str, EngineConfig]]:
    """The engines that a run starts, with the roles that they serve."""
    yield "policy", config.policy.engine
    if endpoint_name(config.simulator.model) is None:
        yield "simulator", config.simulator.engine
    if config.proxy.model:
        yield "proxy", config.proxy.engine


def problems_of_engine_args(config: RunConfig) -> Iterator[Problem]:
    """Arguments of vLLM that it does not have or that must not be set. Imports neither vLLM nor anything of it."""
    for role, engine in engines_of(config):
        for name, text in problems_of_args(role, engine):
            yield Problem((role, "engine", "args", name), text)


def problems_of_sampling(config: RunConfig) -> Iterator[Problem]:
    """Settings that reshape a distribution whose probabilities are needed, or that who speaks does not take."""
    for name in config.policy.sampling.reshaped:
        yield Problem(
            ("policy", "sampling", name), f"is {getattr(config.policy.sampling, name):g}: the learner's probabilities "
            "are of all tokens, so importance ratios and the loss would be biased; the held-out evaluation may sample "
            f"so: evaluation.sampling.{name}",
        )  # fmt: skip
    simulator = config.simulator.sampling
    if (endpoint := endpoint_name(config.simulator.model)) is not None:
        for name in simulator.reshaped:
            text = f"is for a model on replicas of ours; write endpoints.{endpoint}.parameters: {{{name}: ...}}"
            yield Problem(("simulator", "sampling", name), text)
    said_by = (
        (("evaluation", "sampling", "min_p"), config.evaluation.sampling, config.policy.engine),
        (("simulator", "sampling", "min_p"), simulator, config.simulator.engine),
    )
    for key, sampling, engine in said_by:
        if sampling.min_p and any(name.startswith("spec") for name in engine.args):
            yield Problem(key, f"is {sampling.min_p:g}, which vLLM does not take with speculative decoding")


def problem_of_method(config: RunConfig, method: object) -> Iterator[Problem]:
    """A calibration method that needs the probabilities of what the simulator says, where they are not known.

    Args:
        method: the class at ``calibration.method``, or an object of it.
    """
    reason, reshaped = getattr(method, "whole_distribution", ""), config.simulator.sampling.reshaped
    if reason and reshaped:
        yield Problem(
            ("calibration", "method"), f"{reason}: with simulator.sampling.{reshaped[0]} they are those of another "
            "distribution; leave it out, or take another method",
        )  # fmt: skip


def problems_of_ranks(config: RunConfig) -> Iterator[Problem]:
    """Weights in memory of the learner's GPU that ranks of an engine on other GPUs cannot read."""
    spread = [role for role, engine in engines_of(config) if engine.tensor_parallel > 1 and engine.num_gpus]
    if config.learner.share_weights and spread:
        text = f"is true, and the ranks of {spread[0]}.engine are on several GPUs, which do not read the learner's"
        yield Problem(("learner", "share_weights"), text)
