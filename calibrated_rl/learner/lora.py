"""Low-rank adapters: a model is trained by two small matrices beside each linear map, and its own weights stay.

``y = W x + b + (alpha / rank) B A x`` (Hu et al. 2021, "LoRA", section 4.1), with ``A`` [rank, in] drawn and ``B``
[out, rank] zero at first, so that training begins at the model itself.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.functional import linear

from calibrated_rl.errors import UserError
from calibrated_rl.learner.config import LoRAConfig
from calibrated_rl.weights import A, B


class AdaptedLinear(nn.Linear):
    """A linear map with an adapter. Its own parameters are those of the map it replaces, under the same names."""

    def __init__(self, plain: nn.Linear, config: LoRAConfig, random: torch.Generator) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.scale = plain.in_features, plain.out_features, config.scale
        self.weight = plain.weight
        self.register_parameter("bias", plain.bias)
        # Drawn on the CPU in float32, so that it is the same on every rank and for every dtype and device.
        drawn = torch.rand(config.rank, plain.in_features, generator=random) * 2 - 1
        self.lora_A = nn.Parameter((drawn / math.sqrt(plain.in_features)).to(plain.weight))
        self.lora_B = nn.Parameter(plain.weight.new_zeros(plain.out_features, config.rank))

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias) + self.scale * linear(linear(input, self.lora_A), self.lora_B)


def adapt(model: nn.Module, config: LoRAConfig, seed: int) -> None:
    """Freeze ``model`` and give its linear maps adapters.

    Raises:
        UserError: it has no linear map of a name in ``config.targets``, or none in its layers.
    """
    model.requires_grad_(False)
    layers = getattr(model.get_decoder(), "layers", nn.ModuleList())  # type: ignore[operator]
    maps = {name: module for name, module in layers.named_modules() if isinstance(module, nn.Linear)}
    known = sorted({name.rpartition(".")[2] for name in maps})
    if not known:
        raise UserError(f"learner.lora: {type(model).__name__} has no layers with linear maps to adapt")
    for target in config.targets:
        if target not in known:
            raise UserError(f"learner.lora: the model has no linear map '{target}'; it has {', '.join(known)}")
    random = torch.Generator().manual_seed(seed)
    for name, plain in maps.items():
        parent, _, own = name.rpartition(".")
        if not config.targets or own in config.targets:
            setattr(layers.get_submodule(parent), own, AdaptedLinear(plain, config, random))


def is_adapter(parameter: str) -> bool:
    """Whether the parameter of this name belongs to an adapter."""
    return parameter.endswith((A, B))


def peft_files(adapters: Mapping[str, Tensor], config: LoRAConfig, base: str) -> dict[str, bytes]:
    """The adapters as files that the library PEFT, and servers that read its format, can load.

    Args:
        base: folder or hub name of the model that they were trained on.
    """
    targets = sorted({name.split(".")[-2] for name in adapters})
    described: dict[str, Any] = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": config.rank,
        "lora_alpha": config.alpha, "target_modules": targets, "lora_dropout": 0.0, "bias": "none",
    }  # fmt: skip
    tensors = {f"base_model.model.{name}.weight": tensor.contiguous() for name, tensor in adapters.items()}
    return {
        "adapter_config.json": json.dumps(described, indent=1).encode(),
        "adapter_model.safetensors": save(tensors, metadata={"format": "pt"}),
    }
