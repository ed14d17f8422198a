"""What the neural proxies share: fitting a network of words to held-out dialogues, and speaking with it.

Minimises the negative log-likelihood of the words of *both* sides (the other side's words teach the language, too, and
double what it is learned from), stops on the perplexity of the user's own words on the monitor part, and keeps the best
epoch. Plain torch on the CPU; the same seed gives the same proxy.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from calibrated_rl.data.dialogue import Dialogue, Scenario, Turn
from calibrated_rl.errors import UserError
from calibrated_rl.settings.fields import Name, Positive, Range, Share, check_settings
from calibrated_rl.users.proxies.base import Proxy
from calibrated_rl.users.proxies.words import (
    END,
    MARKS,
    OWN,
    Vocabulary,
    WordSequence,
    exchanged,
    renaming,
    word_sequence,
)

State = Any
"""What a network has read so far."""


class WordNetwork(nn.Module, ABC):
    """A network that gives, at each word of a sequence, the logits of the next."""

    @abstractmethod
    def forward(self, words_BT: Tensor, goal: int) -> Tensor:
        """Logits [B, T, V]; the first ``goal`` words of each sequence are its goal."""

    @abstractmethod
    def read(self, words_T: Tensor, goal: int) -> tuple[Tensor, State]:
        """The logits [V] of the word after ``words_T``, and the state from which ``step`` continues."""

    @abstractmethod
    def step(self, word: int, state: State) -> tuple[Tensor, State]:
        """The same after one further word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NeuralConfig:
    """Size and fitting of a neural proxy."""

    embedding: Positive = 128
    """Size of a word's embedding."""
    hidden: Positive = 256
    """Size of the states."""
    dropout: Share = 0.3
    """Of embeddings and of states, while it is fitted."""
    epochs: Positive = 30
    """Passes over its dialogues, at most."""
    patience: Positive = 3
    """Epochs without a lower perplexity before it stops."""
    batch: Positive = 32
    """Dialogues a step."""
    learning_rate: Annotated[float, Range(above=0, at_most=1)] = 2e-3
    """Of Adam; falls linearly to a tenth."""
    least: Positive = 2
    """How often a word must occur to be known."""
    exchangeable: list[list[Name]] = field(default_factory=list)
    """Groups of words that play the same part, such as `[[book, books], [hat, hats]]`: in each epoch each dialogue's
    are exchanged with each other at random, everywhere in it. As many examples more as there are orders."""
    longest: Positive = 48
    """Words of a turn, at most."""
    temperature: Annotated[float, Range(above=0, at_most=2)] = 1.0
    """At which it speaks."""


class NeuralProxy(Proxy):
    """Fits and speaks with the network that a subclass makes.

    Raises:
        UserError: the groups of ``exchangeable`` differ in length.
    """

    Config: ClassVar[type[NeuralConfig]] = NeuralConfig

    def __init__(self, config: NeuralConfig, *, secret_after: str = "") -> None:
        check_settings(config, type(self).__name__)
        if len({len(group) for group in config.exchangeable}) > 1:
            raise UserError(f"{type(self).__name__}: the groups of 'exchangeable' must have equally many words")
        self.config, self.secret_after = config, secret_after
        self._vocabulary: Vocabulary | None = None
        self._network: WordNetwork | None = None

    @abstractmethod
    def network(self, vocabulary: int) -> WordNetwork:
        """A fresh network for so many words."""

    # ---- fitting -------------------------------------------------------------------------------------

    def fit(
        self, train: Sequence[Dialogue], monitor: Sequence[Dialogue], seed: int, progress: Callable[[int, int], None]
    ) -> dict[str, float]:
        config = self.config
        self._vocabulary = Vocabulary.of(train, config.least)
        samples, monitored = ([self._sequence(d.scenario, d.turns) for d in logs] for logs in (train, monitor))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = self._network = self.network(len(self._vocabulary))
            optimizer = torch.optim.Adam(network.parameters(), lr=config.learning_rate)
            random = np.random.default_rng(seed)
            best, without_gain, epochs = float("inf"), 0, 0
            weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
            for epoch in range(config.epochs):
                for group in optimizer.param_groups:
                    group["lr"] = config.learning_rate * (1 - 0.9 * epoch / config.epochs)
                self._epoch(network, optimizer, samples, random)
                epochs, perplexity = epoch + 1, self._perplexity(network, monitored)
                progress(epochs, config.epochs)
                if perplexity < best:
                    best, without_gain = perplexity, 0
                    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
                elif (without_gain := without_gain + 1) >= config.patience:
                    break
            network.load_state_dict(weights)
        network.eval()
        return {"perplexity": best, "epochs": float(epochs), "dialogues": float(len(train)),
                "words": float(len(self._vocabulary)),
                "parameters": float(sum(p.numel() for p in network.parameters()))}  # fmt: skip

    def _epoch(
        self, network: WordNetwork, optimizer: torch.optim.Optimizer, samples: Sequence[WordSequence],
        random: np.random.Generator,
    ) -> None:  # fmt: skip
        network.train()
        groups = self.config.exchangeable
        for batch in _batches(samples, self.config.batch, random):
            names = [renaming(groups, random.permutation(len(groups)).tolist()) for _ in batch]
            loss, count = self._loss(network, batch, names, own=False)
            optimizer.zero_grad()
            (loss / count).backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()

    def _perplexity(self, network: WordNetwork, samples: Sequence[WordSequence]) -> float:
        network.eval()
        loss, count = 0.0, 0
        with torch.no_grad():
            for batch in _batches(samples, self.config.batch, None):
                batch_loss, batch_count = self._loss(network, batch, [{}] * len(batch), own=True)
                loss, count = loss + float(batch_loss), count + batch_count
        return float(np.exp(loss / max(1, count)))

    def _loss(
        self, network: WordNetwork, batch: Sequence[WordSequence], names: Sequence[dict[str, str]], *, own: bool
    ) -> tuple[Tensor, int]:
        """Sum of the negative log-likelihoods, and over how many words; ``own``: of the user's words alone."""
        assert self._vocabulary is not None
        rows = [
            self._vocabulary.numbers(exchanged(sequence.words, renamed))
            for sequence, renamed in zip(batch, names, strict=True)
        ]
        words_BT = _padded(rows, np.int64)
        counted_BT = _padded([sequence.own if own else sequence.said for sequence in batch], np.bool_)
        logits_BTV = network(words_BT, batch[0].goal)
        counted_BT = counted_BT[:, 1:]
        loss = nn.functional.cross_entropy(logits_BTV[:, :-1][counted_BT], words_BT[:, 1:][counted_BT], reduction="sum")
        return loss, int(counted_BT.sum())

    def _sequence(self, scenario: Scenario, turns: Sequence[Turn]) -> WordSequence:
        return word_sequence(scenario, turns, self.secret_after)

    # ---- speaking ------------------------------------------------------------------------------------

    def reply(self, scenario: Scenario, turns: Sequence[Turn], seed: int, begin: str = "") -> str:
        vocabulary, network = self._vocabulary, self._network
        assert vocabulary is not None and network is not None, "it has been fitted or loaded"
        sequence = self._sequence(scenario, turns)
        random, end = np.random.default_rng(seed), vocabulary.number(END)
        refused = [vocabulary.number(mark) for mark in MARKS if mark != END]
        numbers = torch.from_numpy(vocabulary.numbers([*sequence.words, OWN, *begin.split()]))
        spoken: list[int] = []
        with torch.inference_mode():
            logits_V, state = network.read(numbers, sequence.goal)
            while len(spoken) < self.config.longest:
                scores = logits_V.double().numpy() / self.config.temperature
                scores[refused if spoken else [*refused, end]] = -np.inf
                word = _draw(scores, random)
                if word == end:
                    break
                spoken.append(word)
                logits_V, state = network.step(word, state)
        return " ".join([*begin.split(), *(vocabulary.words[word] for word in spoken)])

    # ---- on disk -------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        assert self._vocabulary is not None and self._network is not None
        content = {"config": asdict(self.config), "words": self._vocabulary.words}
        (folder / "proxy.json").write_text(json.dumps(content), encoding="utf-8")
        save_file(
            {name: tensor.contiguous() for name, tensor in self._network.state_dict().items()},
            folder / "model.safetensors",
        )

    def load(self, folder: Path) -> None:
        content = json.loads((folder / "proxy.json").read_text(encoding="utf-8"))
        self._vocabulary = Vocabulary(content["words"])
        self._network = self.network(len(self._vocabulary))
        self._network.load_state_dict(load_file(folder / "model.safetensors"))
        self._network.eval()


def _draw(scores: NDArray[np.float64], random: np.random.Generator) -> int:
    """One index, with the probabilities of the softmax of ``scores``."""
    shares = np.exp(scores - scores.max())
    return int(np.searchsorted(np.cumsum(shares), random.random() * shares.sum()))


def _batches(
    samples: Sequence[WordSequence], size: int, random: np.random.Generator | None
) -> "list[list[WordSequence]]":
    """Batches of sequences with goals of one length and of similar lengths, in random order if there is ``random``."""
    noise = np.zeros(len(samples)) if random is None else random.uniform(0, 8, len(samples))
    order = sorted(range(len(samples)), key=lambda i: (samples[i].goal, len(samples[i].words) + noise[i]))
    batches: list[list[WordSequence]] = []
    for i in order:
        if not batches or len(batches[-1]) == size or batches[-1][0].goal != samples[i].goal:
            batches.append([])
        batches[-1].append(samples[i])
    return batches if random is None else [batches[i] for i in random.permutation(len(batches))]


def _padded(rows: Sequence[NDArray[Any]], dtype: Any) -> Tensor:
    padded = np.zeros((len(rows), max(map(len, rows))), dtype)
    for row, values in zip(padded, rows, strict=True):
        row[: len(values)] = values
    return torch.from_numpy(padded)
