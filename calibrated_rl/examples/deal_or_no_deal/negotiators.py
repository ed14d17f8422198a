"""Proxies that negotiate: the talk is that of a neural proxy (``users/proxies/``), the entries are chosen apart.

A few hundred dialogues teach a small network to talk, and not to keep account: left to itself it mostly enters
something else than what was agreed. So its entry is the likeliest by a conditional logit (McFadden 1974) over all
entries that the items allow and ``no agreement``, ``P(entry) ~ exp(weights . features(entry, talk))``, fitted to the
entries of the same people as the network. Features are of what was offered, read by rule (``deals.read_offer``), and of
the own points; the other side's entry is not among them.
"""

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from calibrated_rl.data.dialogue import Dialogue, Scenario, Side, Turn
from calibrated_rl.errors import UserError
from calibrated_rl.examples.deal_or_no_deal.deals import (
    ENTRY,
    Counts,
    Entry,
    Refusal,
    accepts,
    entry_text,
    is_entry,
    points,
    read_entry,
    read_offer,
    refuses,
    rest_of,
)
from calibrated_rl.examples.deal_or_no_deal.task import counts_of, values_of
from calibrated_rl.users.proxies.attentive import AttentiveProxy
from calibrated_rl.users.proxies.base import Proxy
from calibrated_rl.users.proxies.convolutional import ConvolutionalProxy
from calibrated_rl.users.proxies.recurrent import RecurrentProxy

FEATURES = 15
STEPS, RATE, PENALTY = 400, 0.05, 1e-3
FILE = "entries.json"


def candidates(counts: Counts) -> list[Entry]:
    """All that can be entered; who disconnects is taken to have entered no agreement."""
    shares = itertools.product(*(range(count + 1) for count in counts))
    return [Refusal.NO_AGREEMENT, *((book, hat, ball) for book, hat, ball in shares)]


def features(scenario: Scenario, turns: Sequence[Turn]) -> NDArray[np.float64]:
    """[C, FEATURES] of each candidate of the user of ``scenario`` after the talk in ``turns``."""
    counts, values = counts_of(scenario), values_of(scenario, Side.USER)
    talk = [turn for turn in turns if turn.text and not is_entry(turn.text)]
    offered = [
        (turn.side, number, share if turn.side is Side.USER else rest_of(share, counts))
        for number, turn in enumerate(talk)
        if (share := read_offer(turn.text, counts)) is not None
    ]
    by_side = {side: [share for speaker, _, share in offered if speaker is side] for side in Side}
    latest = offered[-1] if offered else None
    taken = latest is not None and any(accepts(turn.text) for turn in talk[latest[1] + 1 :])
    last = talk[-1].text if talk else ""
    refused = [float(refuses(last)), float("no deal" in last), float(any("no deal" in turn.text for turn in talk))]
    rows = []
    for entry in candidates(counts):
        if isinstance(entry, Refusal):
            rows.append([0.0] * 10 + [1.0, *refused, len(talk) / 10])
            continue
        worth = points(entry, values)
        apart = sum(abs(a - b) for a, b in zip(entry, latest[2], strict=True)) if latest else 0
        is_latest = latest is not None and entry == latest[2]
        rows.append(
            [
                float(is_latest), float(taken and is_latest),
                float(entry in by_side[Side.USER][-1:]), float(entry in by_side[Side.POLICY][-1:]),
                float(any(entry == share for *_, share in offered[:-1])), float(apart), float(taken) * apart,
                worth / 10, float(worth == 0), float(worth == 10), 0.0, 0.0, 0.0, 0.0, 0.0,
            ]
        )  # fmt: skip
    return np.asarray(rows)


class EntryChoice:
    """The conditional logit."""

    def __init__(self) -> None:
        self.weights = np.zeros(FEATURES)

    def fit(self, dialogues: Sequence[Dialogue]) -> float:
        """Fit to the users' entries in ``dialogues``; returns the share of them that is the likeliest candidate."""
        cases = [case for dialogue in dialogues if (case := _case(dialogue)) is not None]
        if not cases:
            raise UserError("none of the dialogues that a proxy is fitted to has an entry of the user's")
        size = max(len(rows) for rows, _ in cases)
        inputs = np.zeros((len(cases), size, FEATURES))
        allowed = np.zeros((len(cases), size), np.bool_)
        for number, (rows, _) in enumerate(cases):
            inputs[number, : len(rows)], allowed[number, : len(rows)] = rows, True
        inputs_NCF, allowed_NC = torch.from_numpy(inputs), torch.from_numpy(allowed)
        chosen_N = torch.tensor([chosen for _, chosen in cases])
        weights = torch.zeros(FEATURES, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.Adam([weights], lr=RATE)
        for _ in range(STEPS):
            scores_NC = (inputs_NCF @ weights).masked_fill(~allowed_NC, float("-inf"))
            loss = torch.nn.functional.cross_entropy(scores_NC, chosen_N) + PENALTY * weights.square().sum()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        self.weights = weights.detach().numpy()
        return float((scores_NC.argmax(1) == chosen_N).double().mean())

    def likeliest(self, scenario: Scenario, turns: Sequence[Turn]) -> Entry:
        """What the user of ``scenario`` enters after ``turns``."""
        return candidates(counts_of(scenario))[int(np.argmax(features(scenario, turns) @ self.weights))]


def _case(dialogue: Dialogue) -> tuple[NDArray[np.float64], int] | None:
    """The features of what the user could have entered, and the number of what it did."""
    for index in dialogue.user_turn_indices():
        if is_entry(text := dialogue.turns[index].text) and (entry := read_entry(text)) is not None:
            chosen: Entry = Refusal.NO_AGREEMENT if isinstance(entry, Refusal) else entry
            options = candidates(counts_of(dialogue.scenario))
            return features(dialogue.scenario, dialogue.turns[:index]), options.index(chosen)
    return None


class _Negotiator(Proxy):
    """Beside a neural proxy: fits the entries with the network, and enters for it."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._entries = EntryChoice()

    def fit(
        self, train: Sequence[Dialogue], monitor: Sequence[Dialogue], seed: int, progress: Callable[[int, int], None]
    ) -> dict[str, float]:
        metrics = super().fit(train, monitor, seed, progress)  # type: ignore[safe-super]
        return metrics | {"entries": self._entries.fit(train)}

    def reply(self, scenario: Scenario, turns: Sequence[Turn], seed: int, begin: str = "") -> str:
        text = begin or super().reply(scenario, turns, seed)  # type: ignore[safe-super]
        if not text.startswith(ENTRY):
            return text
        return entry_text(self._entries.likeliest(scenario, turns))

    def save(self, folder: Path) -> None:
        super().save(folder)  # type: ignore[safe-super]
        (folder / FILE).write_text(json.dumps(self._entries.weights.tolist()), encoding="utf-8")

    def load(self, folder: Path) -> None:
        super().load(folder)  # type: ignore[safe-super]
        self._entries.weights = np.asarray(json.loads((folder / FILE).read_text(encoding="utf-8")))


class RecurrentNegotiator(_Negotiator, RecurrentProxy):
    """Talks as ``RecurrentProxy``."""


class AttentiveNegotiator(_Negotiator, AttentiveProxy):
    """Talks as ``AttentiveProxy``."""


class ConvolutionalNegotiator(_Negotiator, ConvolutionalProxy):
    """Talks as ``ConvolutionalProxy``."""
