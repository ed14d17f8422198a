"""A causal language model with a value head: a number at selected tokens in the place of log-probs.

``v_t = w · h_t + b`` of the last hidden state ``h_t``. The head has parameters of its own beside the Hugging Face
model, whose weights alone are served: nothing that sends or saves those sees it. It begins with zeros, so that a new
one predicts 0 everywhere, whatever the model. The model's vocabulary projection is not computed and, where it has
weights of its own, not trained.

The learner reads at the position *before* each masked token, as it does for log-probs. So a mask on the first token of
a turn asks for the value of what comes before the turn; ``read_at`` gives the sequence that asks for the value at
chosen tokens themselves, such as those that end a turn.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from calibrated_rl.data.dialogue import TokenSequence
from calibrated_rl.learner.attention import Layout
from calibrated_rl.learner.model import TokenLogProbs

FILE = "value_head.safetensors"
"""Within the folder of a model in Hugging Face format, whose other readers ignore it."""
PREFIX = "value_head."


class TokenValues(TokenLogProbs):
    """A Hugging Face causal language model whose forward returns values of selected tokens.

    Raises:
        UserError: as ``TokenLogProbs``.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        config: Any = model.config
        embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
        # In float32, as adapters are; DeepSpeed rounds it with the model where it trains all in bfloat16.
        self.value_head = nn.Linear(config.get_text_config().hidden_size, 1).to(embedding.weight.device)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        projection = model.get_output_embeddings()  # type: ignore[operator]
        if projection.weight is not embedding.weight:
            projection.requires_grad_(False)

    def own_parameters(self) -> dict[str, Any]:
        return {PREFIX + name: parameter for name, parameter in self.value_head.named_parameters()}

    def read_head(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the head's weights from ``tensors``, as ``own_parameters`` names them."""
        for name, parameter in self.own_parameters().items():
            parameter.data.copy_(tensors[name])

    def compile_parts(self) -> None:
        self.compile_layers()

    def forward(
        self, input_ids_T: Tensor, position_ids_T: Tensor, select_N: Tensor, targets_N: Tensor, layout: Layout,
        temperature: float = 1.0, entropy_gradient: bool = False,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Return the values [N] at the positions ``select_N``, float32, and zeros [N] in the place of entropies. The
        other arguments are as in ``log_probs``; the tokens that follow and the temperature do not matter."""
        hidden_TD = self.hidden_states(input_ids_T, position_ids_T, layout)
        values_N = self.value_head(hidden_TD.index_select(0, select_N).to(self.value_head.weight.dtype))[:, 0].float()
        return values_N, torch.zeros_like(values_N)


def read_at(tokens: TokenSequence, positions: NDArray[np.bool_]) -> TokenSequence:
    """``tokens`` such that the learner reads at the tokens where ``positions`` [T] is True: each of them is followed by
    a masked one. One token more, which is never computed."""
    more = np.zeros(1, np.int32)
    return TokenSequence(
        ids=np.concatenate([tokens.ids, more]),
        mask=np.concatenate([np.zeros(1, np.bool_), positions]),
        logprobs=np.full(len(tokens) + 1, np.nan, np.float32),
        versions=np.full(len(tokens) + 1, -1, np.int32),
        turns=np.concatenate([more - 1, tokens.turns]),
    )
