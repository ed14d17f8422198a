"""A proxy that is a convolutional network: gated causal convolutions over words (Dauphin et al. 2017, arXiv
1612.08083), each with twice the reach of the one before, and residual connections. The goal, which dialogues outgrow
the reach of, is added to every word."""

import torch
from torch import Tensor, nn

from calibrated_rl.users.proxies.neural import NeuralProxy, WordNetwork

KERNEL = 3
LAYERS = 6
"""Their reach is ``1 + (KERNEL - 1) * (2 ** LAYERS - 1)``, 127 words."""
MOST_GOAL_WORDS = 64
"""Positions in a goal that are told apart."""


class ConvolutionalProxy(NeuralProxy):
    """Gated convolutions over words."""

    def network(self, vocabulary: int) -> WordNetwork:
        return _Convolutional(vocabulary, self.config.embedding, self.config.hidden, self.config.dropout)


class _Convolutional(WordNetwork):
    def __init__(self, vocabulary: int, embedding: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, embedding)
        self.place = nn.Embedding(MOST_GOAL_WORDS, embedding)
        self.goal = nn.Sequential(nn.Linear(embedding, hidden), nn.ReLU(), nn.Linear(hidden, hidden))
        self.enter = nn.Linear(embedding, hidden)
        self.layers = nn.ModuleList(
            nn.Conv1d(hidden, 2 * hidden, KERNEL, dilation=2**number) for number in range(LAYERS)
        )
        self.to_embedding = nn.Linear(hidden, embedding)
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        self.dropout = nn.Dropout(dropout)

    def forward(self, words_BT: Tensor, goal: int) -> Tensor:
        return self._logits(self._read(words_BT, self._goal(words_BT[:, :goal]))[0])

    def read(self, words_T: Tensor, goal: int) -> tuple[Tensor, tuple[Tensor, list[Tensor]]]:
        goal_BH = self._goal(words_T[None, :goal])
        out_BHT, pasts = self._read(words_T[None], goal_BH)
        return self._logits(out_BHT[:, :, -1:])[0, 0], (goal_BH, pasts)

    def step(self, word: int, state: tuple[Tensor, list[Tensor]]) -> tuple[Tensor, tuple[Tensor, list[Tensor]]]:
        goal_BH, pasts = state
        out_BHT, pasts = self._read(torch.tensor([[word]]), goal_BH, pasts)
        return self._logits(out_BHT)[0, 0], (goal_BH, pasts)

    def _goal(self, words_BG: Tensor) -> Tensor:
        places = torch.arange(words_BG.shape[1]).clamp(max=MOST_GOAL_WORDS - 1)
        # A product of word and place, so that the sum tells which number stands where.
        return self.goal((self.embed(words_BG) * self.place(places)).sum(1))  # type: ignore[no-any-return]

    def _read(
        self, words_BT: Tensor, goal_BH: Tensor, pasts: "list[Tensor] | None" = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Output [B, H, T], and of each layer the inputs that its next output needs."""
        inner_BHT = (self.enter(self.dropout(self.embed(words_BT))) + goal_BH[:, None]).transpose(1, 2)
        inputs = []
        for number, layer in enumerate(self.layers):
            reach = (KERNEL - 1) * 2**number
            past = inner_BHT.new_zeros(*inner_BHT.shape[:2], reach) if pasts is None else pasts[number]
            wide_BHT = torch.cat([past, inner_BHT], dim=2)
            inputs.append(wide_BHT[:, :, -reach:])
            inner_BHT = inner_BHT + self.dropout(nn.functional.glu(layer(wide_BHT), dim=1))
        return inner_BHT, inputs

    def _logits(self, out_BHT: Tensor) -> Tensor:
        out = self.to_embedding(self.dropout(out_BHT.transpose(1, 2)))
        return nn.functional.linear(self.dropout(out), self.embed.weight, self.bias)
