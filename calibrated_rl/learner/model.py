"""A causal language model that gives log-probs of chosen tokens of packed sequences.

``log p(x_{t+1} | x_≤t)``: only positions whose next token is scored reach the vocabulary projection (``head.py``), and
no sequence sees another (``attention.py``).
"""

import os
import zlib
from pathlib import Path

import torch
from torch import Tensor, nn

from calibrated_rl.errors import UserError
from calibrated_rl.files import COMPILED
from calibrated_rl.learner.attention import NAME, Layout, attend
from calibrated_rl.learner.head import ScoringHead


class TokenLogProbs(nn.Module):
    """A Hugging Face causal language model whose forward gives log-probs and entropies of chosen tokens.

    Raises:
        UserError: the model computes attention or logits in a way that is not known here.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        from transformers import AttentionInterface

        # Here, not where it is defined: it loads the whole compiler, for which a job's own process would wait 2 s.
        AttentionInterface.register(NAME, torch.compiler.disable(attend))
        self.model = model
        config = model.config.get_text_config()  # type: ignore[union-attr,operator]
        for name in ("logit_scale", "logits_scaling"):
            if getattr(config, name, None) not in (None, 1, 1.0):
                raise UserError(f"models that set '{name}' ({config.model_type}) are not supported")
        if getattr(config, "attn_logit_softcapping", None) is not None:
            raise UserError(f"models that set 'attn_logit_softcapping' ({config.model_type}) are not supported")
        # Flash attention, too, is told windows in words and gets no mask.
        if not model.is_backend_compatible() or not model._supports_flash_attn:  # type: ignore[operator]
            raise UserError(f"models of type {config.model_type} are not supported: their attention needs a mask")
        mixers = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
        if mixers:
            raise UserError(f"models with layers of type {', '.join(sorted(mixers))} are not supported")
        config._attn_implementation = NAME
        head = model.get_output_embeddings()  # type: ignore[operator]
        if not isinstance(head, nn.Linear):
            raise UserError(f"models of type {config.model_type} are not supported: their head is no linear map")
        softcap = getattr(config, "final_logit_softcapping", None)
        model.set_output_embeddings(ScoringHead(head, softcap))  # type: ignore[operator]

    def compile_parts(self) -> None:
        """Let torch compile the layers, one by one because all are alike, and the loss; attention stays as it is.
        What is compiled is kept for the next run."""
        # By what the CPU can do: home folders may be shared, and code is compiled for the CPU at hand.
        folder = f"{COMPILED}/learner-{zlib.crc32(cpu_instructions()):08x}"
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.path.expanduser(folder))
        for layer in self.model.get_decoder().layers:  # type: ignore[operator,union-attr]
            layer.compile(dynamic=True)
        self.model.get_output_embeddings().compile_strips()  # type: ignore[operator]

    def forward(
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
            layout: which tokens see which.
            temperature: divides the logits, as it did when the tokens were sampled.
            entropy_gradient: whether the entropies carry gradient.
        """
        decoder = self.model.get_decoder()  # type: ignore[operator]
        hidden_1TD = decoder(
            input_ids=input_ids_T[None], position_ids=position_ids_T[None], use_cache=False, layout=layout
        ).last_hidden_state
        head = self.model.get_output_embeddings()  # type: ignore[operator]
        scores: tuple[Tensor, Tensor] = head(
            hidden_1TD[0].index_select(0, select_N), targets_N, temperature, entropy_gradient
        )
        return scores


def cpu_instructions() -> bytes:
    """What Linux says that the first CPU can do."""
    lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    return next((line for line in lines if line.startswith((b"flags", b"Features"))), b"")
