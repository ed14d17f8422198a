"""Classifier two-sample test, family of token models: a small network trained from scratch on the words themselves.

Unlike the hashed bag of words it sees their order, and unlike a frozen encoder it can learn any marking of them. Seen
are the reply and the policy's turn before it, each as its first tokens; a token is a word or a punctuation mark, and
its number is a hash (no vocabulary is fitted). Each text goes through an embedding, a convolution of width 3, and a
maximum and a mean over its tokens (in the manner of Kim, "Convolutional Neural Networks for Sentence Classification",
EMNLP 2014); reply ``r`` and question ``q`` meet as ``[r, q, r * q]`` before the last two layers, so that a reply can be
scored by what it answers. How long to train is the choice that the training folds make.
"""

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from calibrated_rl.errors import UserError
from calibrated_rl.settings.fields import NotNegative, Positive, Range
from calibrated_rl.shift.two_sample.features import last_policy
from calibrated_rl.shift.two_sample.labelled import LabelledReplies
from calibrated_rl.shift.two_sample.replies import FamilyConfig, ReplyTest
from calibrated_rl.shift.two_sample.test import Fit, Floats, Model, Rows

_TOKEN = re.compile(r"\w+|[^\w\s]|\n")
_TURNS = 8
"""Turns from here on share one embedding."""
_BATCH = 64


def token_ids(texts: Sequence[str], length: int, vocabulary: int) -> NDArray[np.int64]:
    """The first ``length`` tokens of each text as numbers from 1 to ``vocabulary - 1``, then 0: [N, length].

    Case is preserved: whether human users type capitals is part of how they talk.
    """
    ids = np.zeros((len(texts), length), np.int64)
    for row, text in zip(ids, texts, strict=True):
        for i, match in zip(range(length), _TOKEN.finditer(text), strict=False):
            code = zlib.crc32(match[0].encode("utf-8", errors="replace"))
            row[i] = 1 + code % (vocabulary - 1)
    return ids


class _Network(nn.Module):
    def __init__(self, vocabulary: int, width: int, turns: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width, padding_idx=0)
        self.turn = nn.Embedding(turns + 1, width)
        self.order = nn.Conv1d(width, width, kernel_size=3, padding=1)
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(7 * width, 2 * width), nn.ReLU(), nn.Linear(2 * width, 1))

    def _text(self, ids_BT: Tensor) -> Tensor:
        own_BT1 = (ids_BT > 0).float().unsqueeze(-1)
        seen_BTD = torch.relu(self.order(self.words(ids_BT).transpose(1, 2))).transpose(1, 2) * own_BT1
        mean_BD = seen_BTD.sum(1) / own_BT1.sum(1).clamp(min=1)
        return torch.cat([seen_BTD.amax(1), mean_BD], dim=1)

    def forward(self, reply_BT: Tensor, question_BT: Tensor, turn_B: Tensor) -> Tensor:
        """Logit [B] of "the simulator's"."""
        reply, question = self._text(reply_BT), self._text(question_BT)
        features = torch.cat([reply, question, reply * question, self.turn(turn_B)], dim=1)
        logit_B: Tensor = self.head(features).squeeze(1)
        return logit_B


class TokenTest(ReplyTest):
    """``tokens_accuracy``, ``tokens_auc``, ``tokens_tv``; see the module's docstring.

    Raises:
        UserError: a size is not positive.
    """

    name = "tokens"
    classifiers = ("convolutional",)

    @dataclass(frozen=True, kw_only=True)
    class Config(FamilyConfig):
        null_halvings: NotNegative = 3
        """Random halvings of the human dialogues for the null band; each trains the network again."""
        reply_tokens: Positive = 40
        """Tokens of the reply that are seen."""
        question_tokens: Positive = 24
        """Tokens of the policy's turn before it that are seen."""
        vocabulary: Annotated[int, Range(at_least=2)] = 4096
        """Numbers that words are hashed to."""
        width: Positive = 24
        """Size of embeddings and convolution."""
        epochs: tuple[Positive, ...] = (4, 12)
        """Lengths of training to choose from."""
        learning_rate: Annotated[float, Range(above=0, at_most=1)] = 0.004
        """Of the network."""

    def __init__(self, config: Config | None = None) -> None:
        self.config = config = config or self.Config()
        super().__init__(config)
        if not config.epochs:
            raise UserError("tokens: 'epochs' names no length of training")

    def see(self, data: LabelledReplies) -> tuple[Any, Floats]:
        c = self.config
        reply = token_ids(data.replies, c.reply_tokens, c.vocabulary)
        question = token_ids([last_policy(h) for h in data.histories], c.question_tokens, c.vocabulary)
        turn = np.minimum(np.asarray(data.turn, np.int64), _TURNS)[:, None]
        return np.concatenate([reply, question, turn], axis=1), np.zeros((len(turn), 0))

    def families(self) -> Mapping[str, Fit]:
        return {f"{epochs} epochs": partial(self._fit, epochs=epochs) for epochs in self.config.epochs}

    def _fit(self, train: Rows, epochs: int) -> Model:
        inputs = self._split(train)
        label = torch.from_numpy(train.label).float()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            network = _Network(self.config.vocabulary, self.config.width, _TURNS)
            optimiser = torch.optim.AdamW(network.parameters(), self.config.learning_rate, weight_decay=0.05)
            network.train()
            for _ in range(epochs):
                for rows in torch.randperm(len(label)).split(_BATCH):
                    logit = network(*(column[rows] for column in inputs))
                    loss = nn.functional.binary_cross_entropy_with_logits(logit, label[rows])
                    optimiser.zero_grad()
                    loss.backward()
                    optimiser.step()
        network.eval()
        return partial(self._score, network)

    @torch.no_grad()
    def _score(self, network: _Network, data: Rows) -> Floats:
        # Rounded, since the last bits of a score depend on the rows beside it and replies alike must score alike.
        score_N: Floats = network(*self._split(data)).sigmoid().double().numpy().round(5)
        return score_N

    def _split(self, data: Rows) -> tuple[Tensor, Tensor, Tensor]:
        ids, end = torch.from_numpy(data.text), self.config.reply_tokens
        return ids[:, :end], ids[:, end:-1], ids[:, -1]
