"""The state of AdamW as full tensors by the names of the parameters, whatever the ranks and the ZeRO stage.

DeepSpeed's form of it depends on the layout: stage 0 by parameter, stages 1 and 2 in one flat share a rank, stage 3 as
a share of every parameter. This module reads and writes any of them, with DeepSpeed's own helpers
(``deepspeed.utils.tensor_fragment``) where the stage has them.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

MASTER = "master"
"""The float32 weights behind a bfloat16 model. Parameters trained in float32, such as adapters, have none."""
MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's running means of the gradients and of their squares, under torch's names."""


def gather(engine: Any, parameters: Mapping[str, Any], keep: bool) -> tuple[dict[str, Tensor], int]:
    """Take the state of all ``parameters`` off the engine. All ranks must call it.

    Args:
        parameters: trainable parameters by name, in the same order on all ranks.
        keep: whether this rank gets the result; the others get an empty one.

    Returns:
        ``{kind}.{name}`` to a float32 copy on the CPU in the shape of the parameter, and AdamW's count of steps (0:
        it has not stepped, and there are no moments).
    """
    adam_state = engine.basic_optimizer.state.get(_stepped(engine)[0], {})
    step = int(adam_state["step"]) if adam_state else 0
    full_tensors = _full_tensors(engine)
    state: dict[str, Tensor] = {}
    for kind in kinds(engine, step):
        for name, parameter in parameters.items():
            value = _get(engine, full_tensors, parameter, kind)
            if keep:
                state[f"{kind}.{name}"] = value.detach().to("cpu", torch.float32, copy=True).contiguous()
    return state, step


def scatter(engine: Any, parameters: Mapping[str, Any], values: Mapping[str, Tensor], step: int) -> None:
    """Put what ``gather`` returned into an engine that has taken no step; each rank takes its share.

    The weights in the model's own dtype are not touched: they must have been loaded.
    """
    if step:
        _begin(engine, step)
    full_tensors = _full_tensors(engine)
    for kind in kinds(engine, step):
        for name, parameter in parameters.items():
            _set(engine, full_tensors, parameter, kind, values[f"{kind}.{name}"])


def kinds(engine: Any, step: int) -> tuple[str, ...]:
    """The kinds of state of each parameter after ``step`` steps."""
    trained = (parameter for parameter in engine.module.parameters() if parameter.requires_grad)
    master = () if all(parameter.dtype == torch.float32 for parameter in trained) else (MASTER,)
    return (*master, *(MOMENTS if step else ()))


def _stepped(engine: Any) -> list[Tensor]:
    """The tensors that AdamW itself steps on; under ZeRO this rank's shares of the weights."""
    wrapper = engine.optimizer
    if wrapper is engine.basic_optimizer:
        return [parameter for group in wrapper.param_groups for parameter in group["params"]]
    if engine.zero_optimization_stage() == 3:
        return list(wrapper.fp32_partitioned_groups_flat)
    if engine.zero_optimization_stage():
        return list(wrapper.single_partition_of_fp32_groups)
    return [tensor for group in wrapper.fp32_groups for tensor in group]


def _full_tensors(engine: Any) -> dict[int, Tensor]:
    """Where nothing is sharded: the tensor that AdamW steps on for each parameter, by the parameter's ``id``."""
    if engine.zero_optimization_stage():
        return {}
    wrapper = engine.optimizer
    stepped_tensors = _stepped(engine)
    if wrapper is engine.basic_optimizer:
        return {id(parameter): parameter for parameter in stepped_tensors}
    return {
        id(parameter): tensor
        for parameter, tensor in zip((p for group in wrapper.fp16_groups for p in group), stepped_tensors, strict=True)
    }


def _begin(engine: Any, step: int) -> None:
    """Give AdamW the memory that it would make for itself at its first step."""
    for tensor in _stepped(engine):
        engine.basic_optimizer.state[tensor] = {
            "step": torch.tensor(float(step)),
            **{moment: torch.zeros_like(tensor, requires_grad=False) for moment in MOMENTS},
        }
    if engine.zero_optimization_stage() in (1, 2):
        # Else the helpers find no moments before the first step, in which DeepSpeed creates this link.
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def _get(engine: Any, full_tensors: Mapping[int, Tensor], parameter: Any, kind: str) -> Tensor:
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    if full_tensors:
        tensor = full_tensors[id(parameter)]
        if kind == MASTER:
            return tensor
        # AdamW has no state of a parameter that never had a gradient.
        moment: Tensor = engine.basic_optimizer.state[tensor].get(kind, torch.zeros_like(tensor))
        return moment
    value = safe_get_full_fp32_param(parameter) if kind == MASTER else safe_get_full_optimizer_state(parameter, kind)
    assert value is not None, "DeepSpeed does not know a parameter of its own model"
    return value


def _set(engine: Any, full_tensors: Mapping[int, Tensor], parameter: Any, kind: str, value: Tensor) -> None:
    from deepspeed.utils import (
        safe_set_full_fp32_param,
        safe_set_full_optimizer_state,
        safe_set_local_fp32_param,
        safe_set_local_optimizer_state,
    )

    if full_tensors:
        tensor = full_tensors[id(parameter)]
        target = tensor if kind == MASTER else engine.basic_optimizer.state[tensor][kind]
        target.data.copy_(value)
    elif hasattr(parameter, "ds_id"):
        # The helper for whole tensors cannot set those whose size the ranks do not divide: shares are padded.
        share = parameter.ds_tensor.numel()
        first = torch.distributed.get_rank() * share
        share_values = torch.zeros(share)
        values = value.flatten()[first : first + share]
        share_values[: len(values)] = values
        if kind == MASTER:
            safe_set_local_fp32_param(parameter, share_values)
        else:
            safe_set_local_optimizer_state(parameter, share_values, kind)
    elif kind == MASTER:
        safe_set_full_fp32_param(parameter, value)
    else:
        safe_set_full_optimizer_state(parameter, value, kind)
