"""Does a policy still speak like people? The share of its turns that a classifier takes for a person's.

A logistic regression on hashed words and pairs of words of single turns, without their histories, is fitted to tell the
policy's turns in evaluated dialogues from those that people in its seat said in held-out logs, both sides weighing the
same; each turn is judged by a fit that has not seen its dialogue. 0.5 is chance: the two cannot be told apart; near 0
the policy has left human language. The classifier is the arm's own, so that the shares of arms compare how far each has
gone, not which words it uses.
"""

from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import LogisticRegression

from calibrated_rl.data.dialogue import Dialogue, Side
from calibrated_rl.shift.sizes import FOLDS
from calibrated_rl.tasks.base import Task, secret_after

FEATURES = 2**14
"""Buckets of the hash; a negotiation's words and pairs of words fill a third of them."""


def called_human(task: Task, logs: Sequence[Dialogue], dialogues: Sequence[Dialogue]) -> dict[str, float]:
    """The share of the policy's turns in ``dialogues`` that are called human, by scenario; turns that the other side
    does not hear are left out. Empty where there are fewer than ``FOLDS`` dialogues of either side."""
    people, policy = (_turns(task, each) for each in (logs, dialogues))
    if min(len({name for name, _ in people}), len({name for name, _ in policy})) < FOLDS:
        return {}
    rows = [*people, *policy]
    is_human = np.arange(len(rows)) < len(people)
    names = list(dict.fromkeys(name for name, _ in rows))
    place = np.random.default_rng(0).permutation(len(names)) % FOLDS
    fold_of = dict(zip(names, place, strict=True))
    fold = np.asarray([fold_of[name] for name, _ in rows])
    words = HashingVectorizer(n_features=FEATURES, ngram_range=(1, 2), alternate_sign=False, token_pattern=r"\S+")
    features = words.transform([text for _, text in rows])
    called = np.zeros(len(rows), np.bool_)
    for number in range(FOLDS):
        train, test = fold != number, fold == number
        model = LogisticRegression(C=5.0, solver="liblinear", class_weight="balanced")
        called[test] = model.fit(features[train], is_human[train]).predict(features[test])
    shares: dict[str, list[bool]] = {}
    for (name, _), is_called in zip(rows[len(people) :], called[len(people) :], strict=True):
        shares.setdefault(name, []).append(bool(is_called))
    return {name: float(np.mean(values)) for name, values in shares.items()}


def _turns(task: Task, dialogues: Sequence[Dialogue]) -> list[tuple[str, str]]:
    """Scenario and text of each turn of the policy's side that is heard."""
    secret = secret_after(task)
    return [
        (dialogue.scenario.id, turn.text)
        for dialogue in dialogues
        for turn in dialogue.turns[1:]
        if turn.side is Side.POLICY and turn.text.strip() and not (secret and turn.text.startswith(secret))
    ]
