"""Supervised fine-tuning on one side's turns of human logs: calibration, warm start, a tiny model's pretraining.

Minimises the weighted negative log-likelihood of that side's tokens, and keeps the weights of the epoch
that did best on the monitor split. Which turns count, and how much, is already decided in the samples.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from calibrated_rl.calibration.config import SFTConfig
from calibrated_rl.chat.tokens import ChatTokens, view_of
from calibrated_rl.data.dialogue import Dialogue, Side, Source, TokenSequence
from calibrated_rl.learner.group import LearnerGroup
from calibrated_rl.learner.sample import Sample

T = TypeVar("T")
SFT_LOSS = "calibrated_rl.learner.losses.sft:SFT"


def log_view(log: Dialogue, side: Side, tokens: ChatTokens) -> TokenSequence:
    """A logged dialogue as ``side``'s token sequence, its own turns masked for loss; in a log that is the answer of a
    human to a policy's dialogue with a simulator, neither what that policy nor what that simulator said."""
    view = view_of(tokens, log.scenario, side, log.turns).sequence()
    made_up = turns_of_models(log)
    return view.with_mask(view.mask & ~np.isin(view.turns, made_up)) if made_up else view


def turns_of_models(log: Dialogue) -> list[int]:
    """Turns that models said, in a log."""
    sources = (Source.POLICY, Source.SIMULATOR)
    return [i for i, turn in enumerate(log.turns) if turn.source in sources] if log.kind == "log" else []


def log_samples(logs: Sequence[Dialogue], side: Side, tokens: ChatTokens) -> list[Sample]:
    """The views of those logged dialogues in which ``side`` has turns to learn from."""
    return [
        Sample(tokens=log_view(log, side, tokens), name=log.id)
        for log in logs
        if any(turn.side is side for i, turn in enumerate(log.turns) if i and i not in turns_of_models(log))
    ]


def sample_items(items: Sequence[T], limit: int, seed: int) -> Sequence[T]:
    """At most ``limit`` of ``items`` (0: all), drawn by ``seed``, in their order."""
    if not 0 < limit < len(items):
        return items
    return [items[i] for i in sorted(np.random.default_rng(seed).permutation(len(items))[:limit])]


def shuffled(samples: Sequence[Sample], seed: int) -> Iterator[Sample]:
    """``samples`` over and over, in a new random order each time."""
    random = np.random.default_rng(seed)
    while True:
        yield from (samples[i] for i in random.permutation(len(samples)))


def fine_tune(
    learner: LearnerGroup,
    slot: str,
    base: Path,
    train: Sequence[Sample],
    monitor: Sequence[Sample],
    config: SFTConfig,
    folder: Path,
    seed: int,
    progress: Callable[[int, int], None] = lambda steps, all_steps: None,
) -> dict[str, float]:
    """Restart ``slot`` from ``base``, fit it, and leave the best epoch in the slot and in ``folder``.

    Returns:
        Monitor likelihood before and after (``nll_before``, ``nll_after``, nats a token) and ``epochs``.
    """
    monitor = monitor[: config.most_monitored or len(monitor)]
    before, after, epochs = keep_best(
        learner, slot, base, train, config, folder, seed, progress, loss=SFT_LOSS,
        error=lambda: learner.evaluate(slot, monitor)["weighted_nll"],
    )  # fmt: skip
    return {"nll_before": before, "nll_after": after, "epochs": float(epochs)}


def keep_best(
    learner: LearnerGroup,
    slot: str,
    base: Path,
    train: Sequence[Sample],
    config: SFTConfig,
    folder: Path,
    seed: int,
    progress: Callable[[int, int], None],
    *,
    loss: str,
    error: Callable[[], float],
    value_head: bool = False,
) -> tuple[float, float, int]:
    """Restart ``slot`` from ``base``, fit it to ``train``, and leave the best epoch in the slot and in ``folder``.

    Args:
        loss: import path.
        error: of the model in the slot; the lower, the better.
        value_head: whether the model has one.

    Returns:
        The error before and after, and the number of epochs.
    """
    optimizer = config.optimizer.at(config.learning_rate, config.warmup_steps)

    def load(source: Path) -> None:
        full = not config.adapters
        learner.load(slot, source, optimizer=optimizer, seed=seed, full_finetuning=full, value_head=value_head)

    load(base)
    random = np.random.default_rng(seed)
    before = best = error()
    learner.save(slot, folder)
    epochs_without_gain = epochs = steps = 0
    all_steps = config.epochs * -(-len(train) // config.batch_dialogues)
    for _ in range(config.epochs):
        order = random.permutation(len(train))
        for start in range(0, len(order), config.batch_dialogues):
            batch = [train[i] for i in order[start : start + config.batch_dialogues]]
            remaining = max(0.05, 1.0 - steps / all_steps) if config.decay else 1.0
            learner.step(slot, batch, loss, learning_rate=config.learning_rate * remaining)
            steps += 1
            progress(steps, all_steps)
        epochs += 1
        now = error()
        if now < best or config.keep == "last":
            best, epochs_without_gain = now, 0
            learner.save(slot, folder)
        else:
            epochs_without_gain += 1
            if epochs_without_gain >= config.patience:
                break
    if epochs_without_gain:
        load(folder)
    return before, best, epochs
