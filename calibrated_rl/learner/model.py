"""A causal language model that returns log-probs of selected tokens of packed sequences.

``log p(x_{t+1} | x_≤t)``: only positions whose next token is scored reach the vocabulary projection (``head.py``), and
no sequence attends to another (``attention.py``).
"""

import os
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from calibrated_rl.errors import UserError
from calibrated_rl.learner.attention import NAME, Layout, attend
from calibrated_rl.learner.head import ScoringHead
from calibrated_rl.learner.probe import Probe
from calibrated_rl.models.supported import check_config, longest_short
from calibrated_rl.storage.files import COMPILED


class TokenLogProbs(nn.Module):
    """A Hugging Face causal language model whose forward returns log-probs and entropies of selected tokens.

    Raises:
        UserError: the model computes attention, positions or logits in a way that is not supported here.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        from transformers import AttentionInterface

        # Here, not at import: it loads the whole compiler, for which a job's own process would wait 2 s.
        AttentionInterface.register(NAME, torch.compiler.disable(attend))
        self.model = model
        self._recomputed: list[nn.Module] = []
        check_config(model.config)
        config = model.config.get_text_config()  # type: ignore[union-attr,operator]
        # Flash attention, too, gets windows as arguments and no mask.
        if not model.is_backend_compatible() or not model._supports_flash_attn:  # type: ignore[operator]
            raise UserError(f"models of type {config.model_type} are not supported: their attention needs a mask")
        head = model.get_output_embeddings()  # type: ignore[operator]
        if not isinstance(head, nn.Linear):
            raise UserError(f"models of type {config.model_type} are not supported: their head is no linear map")
        self.longest = longest_short(config)
        """Most tokens of a sequence; None: as many as there are positions."""
        probe = Probe.of(model)
        config._attn_implementation = NAME
        softcap = getattr(config, "final_logit_softcapping", None)
        model.set_output_embeddings(ScoringHead(head, softcap))  # type: ignore[operator]
        self.eval()
        if probe is not None:
            probe.compare(self)

    def train(self, mode: bool = True) -> "TokenLogProbs":
        """Whatever DeepSpeed requests, the model itself stays in evaluation mode, as in the engines that sample: no
        dropout of any kind, no noise in routers. Otherwise the ratio of new to old probabilities would measure the
        noise."""
        super().train(mode)
        self.model.eval()
        for layer in self._recomputed:
            layer.training = mode  # transformers recomputes a layer only in training mode, see below
        return self

    def recompute_activations(self) -> None:
        """Keep only the inputs of each layer for the backward pass.

        Raises:
            UserError: the model has no layers that transformers can do this for.
        """
        from transformers.modeling_layers import GradientCheckpointingLayer

        model: Any = self.model
        layers = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
        if not layers or not model.supports_gradient_checkpointing:
            raise UserError(
                f"learner.gradient_checkpointing: models of type {model.config.model_type} cannot be recomputed layer "
                "by layer; leave it false"
            )
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self._recomputed = layers
        for layer in layers:
            layer._gradient_checkpointing_func = partial(_checkpoint_quietly, layer, layer._gradient_checkpointing_func)
        self.train(self.training)

    def compile_parts(self) -> None:
        """Let torch compile the layers, one by one because all are alike, and the loss; attention stays as it is.
        Compiled code is cached for the next run."""
        self.compile_layers()
        self.model.get_output_embeddings().compile_chunks()  # type: ignore[operator]

    def compile_layers(self) -> None:
        """``compile_parts`` without the loss."""
        # A folder for each instruction set: home folders may be shared, and code is compiled for this machine's CPU.
        folder = f"{COMPILED}/learner-{zlib.crc32(cpu_instructions()):08x}"
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.path.expanduser(folder))
        for layer in self.model.get_decoder().layers:  # type: ignore[operator,union-attr]
            layer.compile(dynamic=True)

    def own_parameters(self) -> dict[str, Any]:
        """Trained parameters by name that are no part of the Hugging Face model: none."""
        return {}

    def forward(
        self, input_ids_T: Tensor, position_ids_T: Tensor, select_N: Tensor, targets_N: Tensor, layout: Layout,
        temperature: float = 1.0, entropy_gradient: bool = False,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """See ``log_probs``."""
        return self.log_probs(input_ids_T, position_ids_T, select_N, targets_N, layout, temperature, entropy_gradient)

    def log_probs(
        self,
        input_ids_T: Tensor,
        position_ids_T: Tensor,
        select_N: Tensor,
        targets_N: Tensor,
        layout: Layout,
        temperature: float = 1.0,
        entropy_gradient: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Return log-probs [N] and entropies [N] of the next-token distributions in nats, float32.

        Args:
            select_N: index into [T] of the positions whose next token is scored.
            targets_N: those next tokens.
            layout: which tokens attend to which.
            temperature: divides the logits, as it did when the tokens were sampled.
            entropy_gradient: whether the entropies carry gradient.
        """
        hidden_TD = self.hidden_states(input_ids_T, position_ids_T, layout)
        head = self.model.get_output_embeddings()  # type: ignore[operator]
        scores: tuple[Tensor, Tensor] = head(
            hidden_TD.index_select(0, select_N), targets_N, temperature, entropy_gradient
        )
        return scores

    def hidden_states(self, input_ids_T: Tensor, position_ids_T: Tensor, layout: Layout) -> Tensor:
        """[T, D] of the last layer."""
        decoder = self.model.get_decoder()  # type: ignore[operator]
        hidden_1TD: Tensor = decoder(
            input_ids=input_ids_T[None], position_ids=position_ids_T[None], use_cache=False, layout=layout
        ).last_hidden_state
        return hidden_1TD[0]


def _checkpoint_quietly(
    layer: nn.Module, checkpoint: Callable[..., Any], forward: Callable[..., Any], *arguments: Any
) -> Any:
    """Compute ``call``, all of ``layer``, by ``checkpoint``, with the layer in evaluation mode both times."""

    def in_eval_mode(*arguments: Any) -> Any:
        layer.training = False
        try:
            return forward(*arguments)
        finally:
            layer.training = True

    return checkpoint(in_eval_mode, *arguments)


def cpu_instructions() -> bytes:
    """The instruction sets of the first CPU, as Linux lists them."""
    lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    return next((line for line in lines if line.startswith((b"flags", b"Features"))), b"")
