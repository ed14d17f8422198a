"""A proxy that is a recurrent network: one layer of gated recurrent units (Cho et al. 2014, arXiv 1406.1078) over the
words of the dialogue, with the goal, read by units of its own, beside every word: the shape of the model of Lewis et
al. 2017 (arXiv 1706.05125, section 3), which reads the goal alike."""

import torch
from torch import Tensor, nn

from calibrated_rl.users.proxies.neural import NeuralProxy, WordNetwork


class RecurrentProxy(NeuralProxy):
    """Gated recurrent units over words."""

    def network(self, vocabulary: int) -> WordNetwork:
        return _Recurrent(vocabulary, self.config.embedding, self.config.hidden, self.config.dropout)


class _Recurrent(WordNetwork):
    def __init__(self, vocabulary: int, embedding: int, hidden: int, dropout: float) -> None:
        super().__init__()
        goal_size = embedding // 2
        self.embed = nn.Embedding(vocabulary, embedding)
        self.goal = nn.GRU(embedding, goal_size, batch_first=True)
        self.units = nn.GRU(embedding + goal_size, hidden, batch_first=True)
        self.to_embedding = nn.Linear(hidden + goal_size, embedding)
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        self.dropout = nn.Dropout(dropout)

    def forward(self, words_BT: Tensor, goal: int) -> Tensor:
        goal_BG = self._goal(words_BT[:, :goal])
        states_BTH, _ = self._read(words_BT, goal_BG, None)
        return self._logits(states_BTH, goal_BG)

    def read(self, words_T: Tensor, goal: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        goal_BG = self._goal(words_T[None, :goal])
        states_BTH, last = self._read(words_T[None], goal_BG, None)
        return self._logits(states_BTH[:, -1:], goal_BG)[0, 0], (goal_BG, last)

    def step(self, word: int, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        goal_BG, last = state
        states_BTH, last = self._read(torch.tensor([[word]]), goal_BG, last)
        return self._logits(states_BTH, goal_BG)[0, 0], (goal_BG, last)

    def _goal(self, words_BG: Tensor) -> Tensor:
        _, last = self.goal(self.embed(words_BG))
        return last[0]  # type: ignore[no-any-return]

    def _read(self, words_BT: Tensor, goal_BG: Tensor, last: Tensor | None) -> tuple[Tensor, Tensor]:
        goal_BTG = goal_BG[:, None].expand(-1, words_BT.shape[1], -1)
        inputs = torch.cat([self.dropout(self.embed(words_BT)), goal_BTG], dim=-1)
        states_BTH, last = self.units(inputs, last)
        return states_BTH, last

    def _logits(self, states_BTH: Tensor, goal_BG: Tensor) -> Tensor:
        goal_BTG = goal_BG[:, None].expand(-1, states_BTH.shape[1], -1)
        out = self.to_embedding(torch.cat([self.dropout(states_BTH), goal_BTG], dim=-1))
        return nn.functional.linear(self.dropout(out), self.embed.weight, self.bias)
