"""A loss with checks: what it raises names the user's line, what it returns is of the right kind.

Whether a loss is finite is checked during the step (``rank.py``); this module checks types and shapes.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from calibrated_rl.components.plain_data import NotPlain, kind_of, real
from calibrated_rl.components.user_code import call, described
from calibrated_rl.errors import UserError
from calibrated_rl.learner.losses.base import Loss, LossInputs, LossOutput
from calibrated_rl.learner.out_of_memory import is_out_of_memory


def output_of(loss: Loss, inputs: LossInputs) -> LossOutput:
    """``loss(inputs)``.

    Raises:
        UserError: the loss failed, or it returned something else than a scalar with a gradient and scalar metrics.
    """
    output = call(type(loss), lambda: _described(loss), loss, inputs, passes=is_out_of_memory)
    try:
        _check(output, inputs)
    except NotPlain as problem:
        raise UserError(f"{_described(loss)}: {problem}") from None
    return output


def _described(loss: Loss) -> str:
    return described(type(loss), "loss", "__call__")


def _check(output: Any, inputs: LossInputs) -> None:
    if not isinstance(output, LossOutput):
        raise NotPlain("it", f"is {kind_of(output)}: it must be a LossOutput")
    value = output.loss
    if not isinstance(value, Tensor):
        raise NotPlain("loss", f"is {kind_of(value)}: it must be a scalar tensor")
    if value.ndim:
        raise NotPlain("loss", f"has the shape {list(value.shape)}: it must be a scalar; sum it up over the tokens")
    if not value.is_floating_point():
        raise NotPlain("loss", f"is of {value.dtype}: it must be of a floating type")
    trained = "logprobs" if inputs.values is None else "values"
    if getattr(inputs, trained).requires_grad and not value.requires_grad:
        raise NotPlain("loss", f"has no gradient: it was detached, or made without inputs.{trained}")
    if value.device != inputs.logprobs.device:
        raise NotPlain("loss", f"is on {value.device}, and its inputs on {inputs.logprobs.device}")
    for field in ("means", "maxima"):
        if not isinstance(metrics := getattr(output, field), Mapping):
            raise NotPlain(field, f"is {kind_of(metrics)}: it must be a dict")
        for name, metric in metrics.items():
            path = f"{field}[{name!r}]"
            if not isinstance(name, str):
                raise NotPlain(field, f"has the key {name!r}: names are strings")
            if field == "means" and not (isinstance(metric, tuple | list) and len(metric) == 2):
                raise NotPlain(path, f"is {kind_of(metric)}: it must be a pair of sum and count")
            for number in metric if field == "means" else (metric,):
                _check_scalar(number, path)


def _check_scalar(value: Any, place: str) -> None:
    if not isinstance(value, Tensor):
        real(value, place)
    elif value.numel() != 1 or value.is_complex():
        raise NotPlain(place, f"is a tensor of shape {list(value.shape)} and {value.dtype}: it must be a scalar")
