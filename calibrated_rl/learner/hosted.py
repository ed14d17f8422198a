"""One named model on one rank: trainable under its own DeepSpeed engine, or frozen and not sharded."""

import gc
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from calibrated_rl.errors import UserError
from calibrated_rl.learner.accumulation import Float32Sums
from calibrated_rl.learner.attention import layout_of
from calibrated_rl.learner.config import LearnerConfig, OptimizerConfig
from calibrated_rl.learner.lora import LoRAConfig, add_adapters, is_adapter, peft_files
from calibrated_rl.learner.model import TokenLogProbs
from calibrated_rl.learner.out_of_memory import is_out_of_memory
from calibrated_rl.learner.packing import PackedBatch
from calibrated_rl.learner.value_head import FILE as HEAD_FILE
from calibrated_rl.learner.value_head import TokenValues
from calibrated_rl.learner.world import World
from calibrated_rl.storage.checksums import write_checksums
from calibrated_rl.weight_sync.lora import A, B, with_adapters_merged
from calibrated_rl.weight_sync.merging import arrived_change, merge_error
from calibrated_rl.weight_sync.tensors import Shape

TOKENIZER_FILES = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt",
    "chat_template*", "*.model",
)  # fmt: skip
FILES = ("config.json", "generation_config.json", *TOKENIZER_FILES)
"""The files of a model besides its weights."""
ADAPTER = "adapter"
"""Folder within a saved model, in PEFT's format."""


class HostedModel:
    """A model that a rank hosts.

    Raises:
        UserError: the folder has no model that transformers can load as a causal language model.
    """

    def __init__(
        self,
        path: Path,
        *,
        config: LearnerConfig,
        world: World,
        optimizer: OptimizerConfig | None,
        seed: int,
        lora: LoRAConfig | None = None,
        adapters: Path | None = None,
        base: str = "",
        value_head: bool = False,
    ) -> None:
        """
        Args:
            value_head: it predicts values in the place of tokens, by the head in the folder or, if there is none there,
                a new one.
            lora: only adapters are trained; not for a model without optimizer.
            adapters: file to read them from; None: they are initialised.
            base: folder or hub name of the adapters' base, for whoever loads them.
        """
        self.config = config
        self.lora, self.base = lora, base
        self.world = world
        self.optimizer = optimizer
        self.seed = seed
        self.order = np.random.default_rng(seed)
        """Shuffles minibatches; the same on all ranks."""
        self.steps = 0
        """Optimizer steps since loading."""
        self.module = (TokenValues if value_head else TokenLogProbs)(self._read(path))
        if isinstance(self.module, TokenValues) and (path / HEAD_FILE).is_file():
            self.module.read_head(load_file(path / HEAD_FILE))
        if lora is not None:
            add_adapters(self.module.model, lora, seed)
            if adapters is not None:
                self._read_adapters(adapters)
        if config.gradient_checkpointing:
            self.module.recompute_activations()
        if config.compile:
            self.module.compile_parts()
        self.files = {
            file.name: file.read_bytes() for pattern in FILES for file in sorted(path.glob(pattern)) if file.is_file()
        }
        """Config and tokenizer. In memory, because the checkpoint that the model came from may be removed before the
        model is saved."""
        self.sums: Float32Sums | None = None
        """Set where this and not DeepSpeed accumulates the gradients of micro-batches."""
        if optimizer is None:
            self.module.requires_grad_(False).eval().to(world.device)
            self.engine: Any = None
        else:
            self.engine = self._engine(optimizer)

    @property
    def vocabulary(self) -> int:
        """Number of words."""
        return int(self.module.model.config.get_text_config().vocab_size)  # type: ignore[union-attr,operator]

    @property
    def trainable(self) -> bool:
        return self.engine is not None

    @property
    def has_value_head(self) -> bool:
        return isinstance(self.module, TokenValues)

    @property
    def lora_scale(self) -> float | None:
        """What the product of an adapter's matrices is multiplied with; None: the model is not trained by adapters."""
        return None if self.lora is None else self.lora.scale

    @property
    def mixed(self) -> bool:
        """Whether the trained parameters are bfloat16, with float32 master weights in DeepSpeed. Adapters are float32
        themselves: engines and learner must merge the same numbers."""
        return self.config.dtype == "bfloat16" and self.lora is None

    def _read(self, path: Path) -> Any:
        from safetensors import SafetensorError
        from transformers import AutoModelForCausalLM

        if not (path / "config.json").is_file():
            raise UserError(f"{path} has no model: there is no config.json")
        try:
            model, loading_info = AutoModelForCausalLM.from_pretrained(
                path,
                output_loading_info=True,
                dtype=getattr(torch, self.config.dtype),
                attn_implementation="sdpa",
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            if is_out_of_memory(error):
                raise
            raise UserError(f"{path} cannot be loaded as a causal language model: {error}") from error
        if missing := sorted(loading_info["missing_keys"]):  # transformers initialises them, and only warns
            raise UserError(
                f"{path} lacks {len(missing)} of the weights that its config.json requires, such as {missing[0]}: "
                "it is another model's config, or not the whole model"
            )
        return model

    def _read_adapters(self, file: Path) -> None:
        """Load them before there is an engine, which may keep copies."""
        for name, value in load_file(file).items():
            self.module.model.get_parameter(name).data.copy_(value)  # type: ignore[operator]

    def _engine(self, settings: OptimizerConfig) -> Any:
        import deepspeed

        optimizer = torch.optim.AdamW(
            self.parameters().values(),
            lr=settings.learning_rate,
            betas=(settings.beta1, settings.beta2),
            eps=settings.epsilon,
            weight_decay=settings.weight_decay,
        )
        # DeepSpeed allocates and copies whole buckets, and its default of 5e8 elements is for large models.
        bucket = min(500_000_000, max(1_000_000, sum(p.numel() for p in self.parameters().values())))
        # One "accumulation step" for DeepSpeed: micro-batches vary in number and our losses are normalised
        # over the whole step, so its own division must not happen; boundaries are set by hand.
        options = {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": settings.max_grad_norm,
            "bf16": {"enabled": self.mixed},
            **({"data_types": {"grad_accum_dtype": "fp32"}} if self.config.zero_stage >= 2 else {}),
            "zero_optimization": {
                "stage": self.config.zero_stage,
                "reduce_bucket_size": bucket,
                "allgather_bucket_size": bucket,
            },
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 10**9,
        }
        if self.mixed and self.config.zero_stage < 2:
            self.sums = Float32Sums(self.parameters().values())
        engine, *_ = deepspeed.initialize(model=self.module, optimizer=optimizer, config=options)
        engine.train()
        return engine

    def close(self) -> None:
        """Free the engine's memory."""
        if self.engine is not None:
            self.engine.destroy()
        self.engine = None
        del self.module
        gc.collect()
        if self.world.cuda:
            torch.cuda.empty_cache()

    def __call__(
        self, packed: PackedBatch, *, temperature: float, entropy_gradient: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Log-probs [N] and entropies [N] of the scored tokens of ``packed``; of a model with a value head its values
        [N] before them, and zeros."""
        longest, sequence_length = self.module.longest, int(packed.position_ids.max(initial=-1)) + 1
        if longest is not None and sequence_length > longest:
            raise UserError(
                f"a sequence of {sequence_length} tokens is too long for a model with the rotary positions 'longrope': "
                f"from {longest} tokens on, others apply; shorten turns or dialogues"
            )
        forward = self.engine if self.engine is not None else self.module
        tensors = [
            torch.from_numpy(array).to(self.world.device)
            for array in (packed.input_ids, packed.position_ids, packed.select, packed.targets)
        ]
        layout = layout_of(packed, self.world.device, getattr(torch, self.config.dtype))
        result: tuple[Tensor, Tensor] = forward(*tensors, layout, temperature, entropy_gradient)
        return result

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Accumulate the gradient of this rank's share of the loss; ``last`` is its last of the step."""
        self.engine.set_gradient_accumulation_boundary(last)
        if self.sums is not None:
            self.sums.begin(last=last)
        # DeepSpeed averages over the ranks; the shares of the ranks are to be summed.
        self.engine.backward(loss * self.world.size)
        if self.sums is not None:
            self.sums.end()

    def drop_gradients(self) -> None:
        """Discard what ``backward`` has accumulated."""
        self.engine.zero_grad()
        if self.sums is not None:
            self.sums.drop()
        for parameter in self.parameters().values():
            parameter.grad = None

    def update(self, learning_rate: float | None) -> tuple[float, float] | None:
        """Take the optimizer step. Return the gradient's norm before clipping and the learning rate used; None if the
        norm is not finite: then weights and optimizer are as they were, on all ranks, and the gradient is dropped."""
        assert self.optimizer is not None
        rate = self.optimizer.learning_rate if learning_rate is None else learning_rate
        rate *= min(1.0, (self.steps + 1) / max(1, self.optimizer.warmup_steps))
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        if self.config.zero_stage == 0 and not self.mixed:
            # Here DeepSpeed hands the step to the plain optimizer and keeps no norm.
            gradients = [p.grad for p in self.parameters().values() if p.grad is not None]
            norm = float(torch.nn.utils.get_total_norm(gradients))
            if not math.isfinite(norm):
                self.drop_gradients()
                return None
            self.engine.step()
        else:
            self.engine.step()
            if not self.engine.was_step_applied():
                return None
            norm = float(self.engine.get_global_grad_norm())
        self.steps += 1
        return norm, rate

    @contextmanager
    def _whole(self, parameter: Any) -> Iterator[Tensor]:
        """The full parameter, gathered if it is sharded. All ranks must enter together."""
        if hasattr(parameter, "ds_id"):
            import deepspeed

            with deepspeed.zero.GatheredParameters([parameter]):
                yield parameter.data
        else:
            yield parameter.data

    def parameters(self) -> dict[str, Any]:
        """The trained parameters by Hugging Face names, tied ones once, and those of a value head; under ZeRO-3
        without values."""
        trained = {name: p for name, p in self.module.model.named_parameters() if p.requires_grad}
        return trained | self.module.own_parameters()

    def weights(self, *, copy: bool = True) -> dict[str, Tensor]:
        """Full weights on the CPU by their Hugging Face names, tied ones once; empty on ranks other than 0. With
        adapters, the weights of their base.

        All ranks must call it.

        Args:
            copy: the result stays as it is when the model changes; otherwise it looks into the model where it can.
        """
        return self._on_cpu(self._weights(), copy)

    def _weights(self) -> dict[str, Any]:
        named_parameters = self.module.model.named_parameters()
        return {name: parameter for name, parameter in named_parameters if not is_adapter(name)}

    def shapes(self) -> dict[str, Shape]:
        """Of the full weights."""
        return {
            name: tuple(getattr(parameter, "ds_shape", parameter.shape)) for name, parameter in self._weights().items()
        }

    def on_device(self) -> Iterator[tuple[str, Tensor]]:
        """The full weights one after the other, where they are; each only until the next. All ranks must go through
        them."""
        for name, parameter in self._weights().items():
            with self._whole(parameter) as full:
                yield name, full.detach()

    def adapters(self, *, copy: bool = True) -> dict[str, Tensor]:
        """The adapters' matrices, as ``weights``; none where all is trained."""
        named_parameters = self.module.model.named_parameters()
        return self._on_cpu({name: parameter for name, parameter in named_parameters if is_adapter(name)}, copy)

    def value_head(self) -> dict[str, Tensor]:
        """The weights of the value head, as ``weights``; none of a model without one."""
        return self._on_cpu(self.module.own_parameters(), copy=True)

    def merge_error(self) -> dict[str, float]:
        """Of a model in bfloat16 that is trained by adapters: how much of their change arrives when it is merged
        into the weights, as ``merging.merge_error`` measures it. Empty for other models, and before the first step.

        All ranks must call it.
        """
        if self.lora is None or self.config.dtype == "float32":
            return {}
        named_parameters, total = dict(self.module.model.named_parameters()), torch.zeros(3, dtype=torch.float64)
        for name in (name.removesuffix(A) for name in named_parameters if name.endswith(A)):
            with ExitStack() as gathered:
                weight, a, b = (
                    gathered.enter_context(self._whole(named_parameters[part])).detach()
                    for part in (f"{name}.weight", name + A, name + B)
                )
                total += arrived_change(weight, a, b, self.lora.scale).cpu()
        return merge_error(total)

    def _on_cpu(self, parameters: Mapping[str, Any], copy: bool) -> dict[str, Tensor]:
        weights: dict[str, Tensor] = {}
        for name, parameter in parameters.items():
            with self._whole(parameter) as full:
                if self.world.rank == 0:
                    was_gathered = hasattr(parameter, "ds_id")  # a gathered parameter is released when this block ends
                    weights[name] = full.detach().to("cpu", copy=copy or was_gathered).contiguous()
        return weights

    def save(self, folder: Path) -> None:
        """Write the model in Hugging Face format with the tokenizer it came with; whole or not at all. A model that
        was trained by adapters is written with them merged, and the adapters by themselves in the folder ``adapter``. A
        value head is in a file of its own.

        All ranks must call it.
        """
        weights, adapters, value_head = self.weights(), self.adapters(), self.value_head()
        if adapters and self.lora is not None:
            weights = with_adapters_merged(weights, adapters, self.lora.scale)
        if self.world.rank == 0:
            partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            self.module.model.save_pretrained(partial, state_dict=weights)  # type: ignore[operator]
            for name, content in self.files.items():
                if not (partial / name).exists():
                    (partial / name).write_bytes(content)
            if value_head:
                save_file(value_head, partial / HEAD_FILE)
            if adapters and self.lora is not None:
                (partial / ADAPTER).mkdir()
                for name, content in peft_files(adapters, self.lora, self.base).items():
                    (partial / ADAPTER / name).write_bytes(content)
            write_checksums(partial)
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
        self.world.barrier()
