"""Low-rank adapters: training changes two small matrices beside each linear map, and the model's own weights stay.

``y = W x + b + (alpha / rank) B A x`` (Hu et al. 2021, "LoRA", section 4.1), with ``A`` [rank, in] drawn and ``B``
[out, rank] zero at first, so that training begins at the model itself. Both are float32, whatever the model's dtype.

Engines get the weights merged. In float32 that is the same up to rounding. In bfloat16 it is not: ``W + s B A`` has to
be rounded, and separate products are not. So there the learner computes with the very weights that the engine gets
(``merging.py``), bit for bit. Rounding has no gradient; that of ``A`` and ``B`` is taken as if there were none
(straight-through, Bengio et al. 2013, arXiv 1308.3432): with ``g`` the gradient of ``y``,
``∂B = s gᵀ (x Aᵀ)`` and ``∂A = s (g B)ᵀ x``.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from calibrated_rl.errors import UserError
from calibrated_rl.learner.config import LoRAConfig
from calibrated_rl.models.shape import read_config
from calibrated_rl.settings.fields import nearest
from calibrated_rl.weight_sync.lora import A, B
from calibrated_rl.weight_sync.merging import merged_weight


class LoRALinear(nn.Linear):
    """A linear map with an adapter. Its own parameters are those of the map it replaces, under the same names."""

    def __init__(self, plain: nn.Linear, config: LoRAConfig, random: torch.Generator) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.scale = plain.in_features, plain.out_features, config.scale
        self.weight = plain.weight
        self.register_parameter("bias", plain.bias)
        # Drawn on the CPU in float32, so that it is the same on every rank and for every dtype and device.
        uniform = torch.rand(config.rank, plain.in_features, generator=random) * 2 - 1
        device = plain.weight.device
        self.lora_A = nn.Parameter((uniform / math.sqrt(plain.in_features)).to(device))
        self.lora_B = nn.Parameter(torch.zeros(plain.out_features, config.rank, device=device))

    def forward(self, input: Tensor) -> Tensor:
        if self.weight.dtype == torch.float32:
            change = linear(linear(input, self.lora_A), self.lora_B)
            return linear(input, self.weight, self.bias) + self.scale * change
        result: Tensor = _MergedLinear.apply(input, self.weight, self.bias, self.lora_A, self.lora_B, self.scale)
        return result


class _MergedLinear(torch.autograd.Function):
    """The linear map of the merged weights. They are recomputed for the backward pass: keeping them would take the
    memory of the model once more."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
    ) -> Tensor:
        ctx.save_for_backward(input, weight, a, b)
        ctx.scale = scale
        return linear(input, merged_weight(weight, a, b, scale), bias)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, by_output: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, a, b = ctx.saved_tensors
        by_input = by_output @ merged_weight(weight, a, b, ctx.scale) if ctx.needs_input_grad[0] else None
        # Added up over the tokens in float32.
        x_TI, g_TO = input.flatten(0, -2).float(), by_output.flatten(0, -2).float()
        by_a = ctx.scale * (g_TO @ b).t() @ x_TI
        by_b = ctx.scale * g_TO.t() @ (x_TI @ a.t())
        return by_input, None, None, by_a, by_b, None


def add_adapters(model: nn.Module, config: LoRAConfig, seed: int) -> None:
    """Freeze ``model`` and give its linear maps adapters.

    Raises:
        UserError: it has no linear map of a name in ``config.targets``, or none in its layers.
    """
    model.requires_grad_(False)
    layers, maps = _linear_maps(model, config)
    random = torch.Generator().manual_seed(seed)
    for name, plain in maps.items():
        parent, _, last_name = name.rpartition(".")
        if not config.targets or last_name in config.targets:
            setattr(layers.get_submodule(parent), last_name, LoRALinear(plain, config, random))


def check_targets(folder: Path, config: LoRAConfig) -> None:
    """Refuse adapters that the model in ``folder`` has no linear maps for, before anything is started or loaded.

    Raises:
        UserError: as ``add_adapters`` and ``read_config``.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(read_config(folder), trust_remote_code=False)
    _linear_maps(model, config)


def _linear_maps(model: nn.Module, config: LoRAConfig) -> tuple[nn.Module, dict[str, nn.Linear]]:
    """The model's layers, and their linear maps by name; those of ``config.targets`` are among them."""
    layers: nn.Module = getattr(model.get_decoder(), "layers", nn.ModuleList())  # type: ignore[operator]
    maps = {name: module for name, module in layers.named_modules() if isinstance(module, nn.Linear)}
    map_names = sorted({name.rpartition(".")[2] for name in maps})
    if not map_names:
        raise UserError(f"learner.lora: {type(model).__name__} has no layers with linear maps to adapt")
    for target in config.targets:
        if target not in map_names:
            available = f"{', '.join(map_names)}{nearest(target, map_names)}"
            raise UserError(f"learner.lora: the model has no linear map '{target}'; it has {available}")
    return layers, maps


def is_adapter(parameter: str) -> bool:
    """Whether the parameter of this name belongs to an adapter."""
    return parameter.endswith((A, B))


def peft_files(adapters: Mapping[str, Tensor], config: LoRAConfig, base: str) -> dict[str, bytes]:
    """The adapters as files that the library PEFT, and servers that read its format, can load.

    Args:
        base: folder or hub name of the model that they were trained on.
    """
    targets = sorted({name.split(".")[-2] for name in adapters})
    config_json: dict[str, Any] = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": config.rank,
        "lora_alpha": config.alpha, "target_modules": targets, "lora_dropout": 0.0, "bias": "none",
    }  # fmt: skip
    tensors = {f"base_model.model.{name}.weight": tensor.contiguous() for name, tensor in adapters.items()}
    return {
        "adapter_config.json": json.dumps(config_json, indent=1).encode(),
        "adapter_model.safetensors": save(tensors, metadata={"format": "pt"}),
    }
