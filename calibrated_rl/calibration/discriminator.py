"""A discriminator between human replies and a simulator's on the same histories: what a simulator is trained against.

It reads what the simulator reads, its instructions and the history as token ids, and one reply; its score is
``log P(human | history, reply) - log P(simulator | history, reply)``. Both replies are there to every history, so that
the best possible score is ``log p(reply | history) / q(reply | history)``, the log-ratio of the human's and the
simulator's probabilities (Goodfellow et al., "Generative Adversarial Nets", arXiv 1406.2661, proposition 1).

The family is *recurrent*: a GRU over the reply (Cho et al., arXiv 1406.1078), which begins from what the end of the
context says. Each word of the reply attends to the context by the product of their embeddings (as in Bahdanau et al.,
arXiv 1409.0473), which is seen in windows of a few tokens with their distance to the reply: so a word that stands there
too is seen with what stands around it. A reply is wrong, as a rule, because it does not fit. The classifiers that
*evaluate* simulators (``shift/``) are of other families and are fitted to held-out or monitor logs; those of this file
are fitted to the calibration split alone.

A reply counts by its text. Both replies are encoded alike, so that nothing is told by how sampled tokens were cut.

``CrossFitted`` scores each reply by a discriminator that was fitted to other dialogues (Chernozhukov et al., arXiv
1608.00060): one that has learned a dialogue by heart says nothing of the simulator.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from calibrated_rl.calibration.folds import fold_of
from calibrated_rl.errors import UserError
from calibrated_rl.settings.fields import Positive, Range, check_settings

FAMILY = "recurrent"
Floats = NDArray[np.float64]
Ids = NDArray[np.int32]
_SET_ASIDE = 10
"""One dialogue in so many of those fitted to chooses the epoch."""
_AROUND = 5
"""Tokens of the context that are read together."""
_LATEST = 16
"""Tokens at the end of the context that the reply is read after."""
_DISTANCES = 20
"""Kinds of distance to the reply, two for each doubling."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscriminatorConfig:
    """Size and training of the discriminator."""

    width: Annotated[int, Range(at_least=2)] = 48
    """Size of embeddings and states."""
    context_tokens: Annotated[int, Range(at_least=2)] = 192
    """Tokens before the reply that are read. Of more, the first half (instructions) and the last (the latest turns)."""
    epochs: Positive = 8
    """Passes over the replies, at most; the best on a tenth of the dialogues, which are set aside, is kept."""
    batch: Positive = 64
    """Histories an optimizer step, each with both replies."""
    learning_rate: Annotated[float, Range(above=0, at_most=1)] = 3e-3
    """Of its optimizer, AdamW."""
    folds: Annotated[int, Range(at_least=2)] = 2
    """Discriminators, each fitted to the dialogues of the other folds."""

    def __post_init__(self) -> None:
        check_settings(self, "discriminator")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReplyPair:
    """A history with the human's reply and one of the simulator's, as token ids."""

    dialogue: str
    """Id of the log that the history is of."""
    context: Ids
    """[C] instructions and history, up to where the reply begins."""
    human: Ids
    """[R]"""
    simulator: Ids
    """[R]"""

    @property
    def same(self) -> bool:
        """Whether both said the same."""
        return np.array_equal(self.human, self.simulator)


class _Network(nn.Module):
    def __init__(self, words: int, width: int) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width, padding_idx=0)
        self.distance = nn.Embedding(_DISTANCES, width)
        self.around = nn.Conv1d(width, width, kernel_size=_AROUND, padding=_AROUND // 2)
        self.latest = nn.Linear(width, width)
        self.reply = nn.GRU(2 * width + 1, width, batch_first=True)
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, 1))

    def states(self, context_BC: Tensor) -> Tensor:
        """[B, C, E] each token of the context with those around it, and its distance from the end."""
        own_BC = context_BC > 0
        to_end_BC = (own_BC.sum(1, keepdim=True) - torch.arange(context_BC.shape[1])).clamp(min=1)
        distance_BC = to_end_BC.float().log2().mul(2).long().clamp(max=_DISTANCES - 1)
        read_BCE = self.around(self.words(context_BC).transpose(1, 2)).transpose(1, 2) + self.distance(distance_BC)
        return torch.relu(read_BCE) * own_BC[:, :, None]

    def forward(self, context_BC: Tensor, states_BCE: Tensor, reply_BR: Tensor) -> Tensor:
        """Log-odds [B] of "the human's"."""
        reply_BRE, own_BR = self.words(reply_BR), reply_BR > 0
        likeness_BRC = reply_BRE @ self.words(context_BC).transpose(1, 2) / math.sqrt(reply_BRE.shape[2])
        attention_BRC = likeness_BRC.masked_fill((context_BC == 0)[:, None, :], -math.inf).softmax(2)
        repeated_BR1 = (reply_BR[:, :, None] == context_BC[:, None, :]).any(2, keepdim=True).float()
        ends_B1 = (context_BC > 0).sum(1, keepdim=True)
        is_latest_BC = (torch.arange(context_BC.shape[1]) >= ends_B1 - _LATEST).float()
        before_1BE = torch.tanh(self.latest((states_BCE * is_latest_BC[:, :, None]).amax(1)))[None]
        seen_BRD = torch.cat([reply_BRE, attention_BRC @ states_BCE, repeated_BR1], dim=2)
        read_BRE, _ = self.reply(seen_BRD, before_1BE)
        last_B1E = read_BRE.gather(1, (own_BR.sum(1) - 1)[:, None, None].expand(-1, 1, read_BRE.shape[2]))
        most_BE = read_BRE.masked_fill(~own_BR[:, :, None], -math.inf).amax(1)
        log_odds_B: Tensor = self.head(torch.cat([last_B1E[:, 0], most_BE], dim=1))[:, 0]
        return log_odds_B


class Discriminator:
    """Fitted to pairs; the same pairs and seed give the same scores on one machine.

    Raises:
        UserError: fewer than two dialogues.
    """

    def __init__(self, pairs: Sequence[ReplyPair], config: DiscriminatorConfig, seed: int) -> None:
        self._config = config
        ids = [part for pair in pairs for part in (pair.context, pair.human, pair.simulator)]
        self._vocabulary = np.unique(np.concatenate(ids)) if ids else np.zeros(0, np.int32)
        dialogues = sorted({pair.dialogue for pair in pairs})
        if len(dialogues) < 2:
            raise UserError("the discriminator needs replies of at least 2 dialogues in each fold: take more logs")
        order = np.random.default_rng(seed).permutation(len(dialogues))
        set_aside = {dialogues[i] for i in order[: max(1, len(dialogues) // _SET_ASIDE)]}
        chosen_on = [pair for pair in pairs if pair.dialogue in set_aside]
        fitted_to = [pair for pair in pairs if pair.dialogue not in set_aside]
        with _reproducible(seed):
            self._network = _Network(len(self._vocabulary) + 2, config.width)
            self._fit(fitted_to, chosen_on, np.random.default_rng((seed, 1)))

    def _fit(self, pairs: Sequence[ReplyPair], chosen_on: Sequence[ReplyPair], random: np.random.Generator) -> None:
        network, config = self._network, self._config
        optimizer = torch.optim.AdamW(network.parameters(), config.learning_rate, weight_decay=0.05)
        best, best_weights = math.inf, deepcopy(network.state_dict())
        for _ in range(config.epochs):
            network.train()
            for rows in np.array_split(random.permutation(len(pairs)), max(1, round(len(pairs) / config.batch))):
                loss = self._loss([pairs[i] for i in rows])
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()
            network.eval()
            with torch.no_grad():
                loss_set_aside = float(self._loss(chosen_on))
            if loss_set_aside < best:
                best, best_weights = loss_set_aside, deepcopy(network.state_dict())
        network.load_state_dict(best_weights)
        network.eval()

    def _loss(self, pairs: Sequence[ReplyPair]) -> Tensor:
        """Mean negative log-likelihood of who said what."""
        context = self._padded([self._cut(pair.context) for pair in pairs])
        states = self._network.states(context)
        human, simulator = (
            self._network(context, states, self._padded(replies))
            for replies in ([pair.human for pair in pairs], [pair.simulator for pair in pairs])
        )
        return (nn.functional.softplus(-human) + nn.functional.softplus(simulator)).mean() / 2

    def log_odds(self, contexts: Sequence[Ids], replies: Sequence[Ids]) -> Floats:
        """[N] log-odds in nats that a human gave the reply, 0 where both sides are as likely."""
        parts = [np.zeros(0)]
        with torch.no_grad(), _reproducible(0):
            for start in range(0, len(replies), 4 * self._config.batch):
                rows = slice(start, start + 4 * self._config.batch)
                context = self._padded([self._cut(each) for each in contexts[rows]])
                odds = self._network(context, self._network.states(context), self._padded(replies[rows]))
                parts.append(odds.double().numpy())
        # Rounded: the last bits depend on the rows beside it, and replies alike must score alike.
        return np.concatenate(parts).round(4)

    def _cut(self, context: Ids) -> Ids:
        most = self._config.context_tokens
        return (
            context if len(context) <= most else np.concatenate([context[: most // 2], context[-(most - most // 2) :]])
        )

    def _padded(self, texts: Sequence[Ids]) -> Tensor:
        """[B, T] numbers from 1, the last for what was not fitted to; then 0."""
        padded = np.zeros((len(texts), max(map(len, texts))), np.int64)
        for row, ids in zip(padded, texts, strict=True):
            place = np.searchsorted(self._vocabulary, ids).clip(max=len(self._vocabulary) - 1)
            row[: len(ids)] = np.where(self._vocabulary[place] == ids, place + 1, len(self._vocabulary) + 1)
        return torch.from_numpy(padded)


class CrossFitted:
    """One for each fold of the dialogues, fitted to those of the other folds. Raises as ``Discriminator``."""

    def __init__(self, pairs: Sequence[ReplyPair], config: DiscriminatorConfig, seed: int) -> None:
        self._folds = config.folds
        self._models = [
            Discriminator([pair for pair in pairs if fold_of(pair.dialogue, config.folds) != fold], config, seed + fold)
            for fold in range(config.folds)
        ]

    def log_odds(self, dialogues: Sequence[str], contexts: Sequence[Ids], replies: Sequence[Ids]) -> Floats:
        """[N] log-odds of replies in ``dialogues``, each from the discriminator that was not fitted to its dialogue."""
        folds, odds = np.array([fold_of(name, self._folds) for name in dialogues], np.int64), np.zeros(len(replies))
        for fold, model in enumerate(self._models):
            rows = np.flatnonzero(folds == fold)
            odds[rows] = model.log_odds([contexts[i] for i in rows], [replies[i] for i in rows])
        return odds


def told_apart(human: Floats, simulator: Floats) -> Floats:
    """[N] whether the human's of two replies has the higher log-odds: 1, 0, or a half where they are equal. The mean is
    the share of histories on which a judge that sees both replies points at the human's: 0.5 by chance."""
    return np.where(human == simulator, 0.5, human > simulator).astype(np.float64)


@contextmanager
def _reproducible(seed: int) -> Iterator[None]:
    """One thread and a random state of its own: scores do not depend on the machine's load."""
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)
