"""Log-probs of chosen tokens under a causal language model, without ever holding the full logits.

``log p(x_{t+1} | x_≤t) = z_{x_{t+1}} / τ − logsumexp(z / τ)`` with ``z = lm_head(h_t)``. Only positions whose
next token is scored reach the head, in chunks; with more than one chunk each is recomputed in the backward
pass, so that at most one chunk's logits exist at a time. The softmax is taken in float32.
"""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from calibrated_rl.errors import UserError

CHUNK_POSITIONS = 2048
"""Logits of so many positions exist at once: 1.2 GB in float32 for a vocabulary of 150,000."""


class TokenLogProbs(nn.Module):
    """A Hugging Face causal language model whose forward gives log-probs and entropies of chosen tokens.

    Raises:
        UserError: the model scales its logits in a way that is not known here.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        config = model.config.get_text_config()  # type: ignore[union-attr,operator]
        for name in ("logit_scale", "logits_scaling"):
            if getattr(config, name, None) not in (None, 1, 1.0):
                raise UserError(f"models that set '{name}' ({config.model_type}) are not supported")
        self.softcap: float | None = getattr(config, "final_logit_softcapping", None)

    def forward(
        self,
        input_ids_BT: Tensor,
        position_ids_BT: Tensor,
        select_N: Tensor,
        targets_N: Tensor,
        temperature: float = 1.0,
        chunks: int = 1,
        entropy_gradient: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Return log-probs [N] and entropies [N] of the next-token distributions in nats, float32.

        Args:
            select_N: flat index into [B * T] of the positions whose next token is scored.
            targets_N: those next tokens.
            temperature: divides the logits, as it did when the tokens were sampled.
            chunks: how many pieces the positions are cut into; the same on all ranks, because under ZeRO-3
                each piece gathers the head.
            entropy_gradient: whether the entropies carry gradient.
        """
        decoder = self.model.get_decoder()  # type: ignore[operator]
        hidden_BTD = decoder(
            input_ids=input_ids_BT, position_ids=position_ids_BT, use_cache=False
        ).last_hidden_state
        hidden_ND = hidden_BTD.flatten(0, 1).index_select(0, select_N)
        if chunks == 1:
            return self._score(hidden_ND, targets_N, temperature, entropy_gradient)
        pairs = zip(hidden_ND.tensor_split(chunks), targets_N.tensor_split(chunks), strict=True)
        # Stopping a recomputation early would skip the hooks by which ZeRO-3 releases the head again.
        with set_checkpoint_early_stop(False):
            parts = [
                checkpoint(self._score, hidden, targets, temperature, entropy_gradient, use_reentrant=False)
                for hidden, targets in pairs
            ]
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])

    def _score(
        self, hidden_ND: Tensor, targets_N: Tensor, temperature: float, entropy_gradient: bool
    ) -> tuple[Tensor, Tensor]:
        logits_NV: Tensor = self.model.get_output_embeddings()(hidden_ND).float()  # type: ignore[operator]
        if self.softcap is not None:
            logits_NV = self.softcap * torch.tanh(logits_NV / self.softcap)
        if temperature != 1.0:
            logits_NV = logits_NV / temperature
        normaliser_N = torch.logsumexp(logits_NV, dim=-1)
        logprobs_N = logits_NV.gather(-1, targets_N[:, None])[:, 0] - normaliser_N
        with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
            probabilities_NV = torch.exp(logits_NV - normaliser_N[:, None])
            entropies_N = normaliser_N - (probabilities_NV * logits_NV).sum(-1)
        return logprobs_N, entropies_N
