"""A proxy that is a recurrent network with attention: long short-term memory over the words of the dialogue, whose
states look back at all earlier ones (dot-product attention, Luong et al. 2015, arXiv 1508.04025, the general form)."""

import torch
from torch import Tensor, nn

from calibrated_rl.users.proxies.neural import NeuralProxy, WordNetwork


class AttentiveProxy(NeuralProxy):
    """Long short-term memory with attention to the words before."""

    def network(self, vocabulary: int) -> WordNetwork:
        return _Attentive(vocabulary, self.config.embedding, self.config.hidden, self.config.dropout)


class _Attentive(WordNetwork):
    def __init__(self, vocabulary: int, embedding: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, embedding)
        self.units = nn.LSTM(embedding, hidden, batch_first=True)
        self.look = nn.Linear(hidden, hidden, bias=False)
        self.to_embedding = nn.Linear(2 * hidden + embedding, embedding)
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        self.dropout = nn.Dropout(dropout)

    def forward(self, words_BT: Tensor, goal: int) -> Tensor:
        embedded_BTE = self.dropout(self.embed(words_BT))
        states_BTH, _ = self.units(embedded_BTE)
        scores_BTT = self.look(states_BTH) @ states_BTH.transpose(1, 2)
        later = torch.ones(scores_BTT.shape[1:], dtype=torch.bool).triu(1)
        shares_BTT = scores_BTT.masked_fill(later, float("-inf")).softmax(-1)
        # The word *after* the one that is looked at is what copying needs: it is beside the state.
        following_BTE = torch.cat([embedded_BTE[:, 1:], embedded_BTE[:, -1:]], dim=1)
        shares_of_following = shares_BTT.masked_fill(torch.eye(len(later), dtype=torch.bool), 0.0)
        return self._logits(states_BTH, shares_BTT @ states_BTH, shares_of_following @ following_BTE)

    def read(self, words_T: Tensor, goal: int) -> tuple[Tensor, tuple[Tensor, Tensor, tuple[Tensor, Tensor]]]:
        embedded_TE = self.embed(words_T)
        states_BTH, last = self.units(embedded_TE[None])
        return self._look_back(states_BTH[0], embedded_TE), (states_BTH[0], embedded_TE, last)

    def step(
        self, word: int, state: tuple[Tensor, Tensor, tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, tuple[Tensor, Tensor, tuple[Tensor, Tensor]]]:
        states_TH, embedded_TE, last = state
        embedded_1E = self.embed(torch.tensor([word]))
        states_BTH, last = self.units(embedded_1E[None], last)
        states_TH = torch.cat([states_TH, states_BTH[0]])
        embedded_TE = torch.cat([embedded_TE, embedded_1E])
        return self._look_back(states_TH, embedded_TE), (states_TH, embedded_TE, last)

    def _look_back(self, states_TH: Tensor, embedded_TE: Tensor) -> Tensor:
        """Logits [V] after the last word."""
        shares_T = (states_TH @ self.look(states_TH[-1])).softmax(-1)
        following_E = shares_T[:-1] @ embedded_TE[1:]
        return self._logits(states_TH[-1], shares_T @ states_TH, following_E)

    def _logits(self, states: Tensor, context: Tensor, following: Tensor) -> Tensor:
        out = self.to_embedding(torch.cat([self.dropout(states), context, following], dim=-1))
        return nn.functional.linear(self.dropout(out), self.embed.weight, self.bias)
