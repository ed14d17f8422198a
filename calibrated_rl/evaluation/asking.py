"""Histories of the current policy, and how far the simulators of a run disagree on each of them.

The simulators speak and score on one pool of replicas, one after the other, at temperature 1: there the engine's scores
are log-probs of what it draws.
"""

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibrated_rl.calibration.ensemble import members_of
from calibrated_rl.calibration.worth_asking import disagreement, most_worth_asking, similarity
from calibrated_rl.data.dialogue import Dialogue, Side, TokenSequence, Turn
from calibrated_rl.errors import UserError
from calibrated_rl.inference.config import SamplingConfig
from calibrated_rl.learner.slots import SIMULATOR
from calibrated_rl.replay.schema import from_table
from calibrated_rl.replay.segments import RefusedSegment, list_segments, read_segment
from calibrated_rl.rollout.collector import Collector
from calibrated_rl.run.cluster import Cluster
from calibrated_rl.runtime.event_loop import run_to_end

logger = logging.getLogger(__name__)

KEY = "ask"
"""Seeds all draws."""
MOST_MEMBERS = 3
"""Of several alignments the newest; each is served twice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """A history that the policy came to, and to which a user replied."""

    dialogue: Dialogue
    index: int
    """Of that reply in the dialogue's turns."""

    @property
    def history(self) -> tuple[Turn, ...]:
        """What a reply would answer; the last turn is the policy's."""
        return self.dialogue.turns[: self.index]


def committee(run: Path, arm: str) -> list[Path]:
    """Folders of the simulators whose disagreement counts, the newest first: the members of the arm's newest
    alignment if that made an ensemble, else its newest alignments, with that from before training; where there was one
    alone, that and the uncalibrated simulator, with a warning: they also disagree where the logs have taught the one
    what the other does not know, and where no reply is needed.

    Args:
        arm: ``ARM-SEED``.

    Raises:
        UserError: the run has no calibrated simulator.
    """
    models = run / "models"
    numbered = {
        int(m[1]): p for p in models.glob(f"{arm}-*") if (m := re.fullmatch(rf"{re.escape(arm)}-(\d+)", p.name))
    }
    alignments = [numbered[update] for update in sorted(numbered, reverse=True)] + [models / "calibrated"]
    aligned = [folder for folder in alignments if (folder / "fit.json").is_file()]
    if not aligned:
        raise UserError(f"{run} has no calibrated simulator yet: there is nothing whose replies could be doubted")
    if members := members_of(aligned[0]):
        return members
    if len(aligned) == 1:
        fitted = models / "uncalibrated"
        uncalibrated = fitted if fitted.is_dir() else models / "simulator_base"
        if not uncalibrated.is_dir():
            raise UserError(
                f"{run} has one simulator alone, {aligned[0].name}: it takes two that can disagree "
                "(calibration.every, an ensemble); --at-random needs none"
            )
        logger.warning(
            f"{aligned[0].name} was the only alignment: compared with the uncalibrated simulator, which also disagrees "
            "where the logs suffice"
        )
        return [aligned[0], uncalibrated]
    return aligned[:MOST_MEMBERS]


def latest_visits(replay: Path, enough: int, most_updates: int) -> list[Visit]:
    """Visits in the dialogues of an arm's last updates: as many updates as it takes to have ``enough``, at most
    ``most_updates``. The user's first turn answers the greeting, on which the logs have all they need: it is left out.

    Args:
        replay: the arm's folder in the replay store of a run.

    Raises:
        UserError: it has no dialogue in which a user replied to the policy.
    """
    by_update: dict[int, list[Dialogue]] = {}
    for number in list_segments(replay)[0] if replay.is_dir() else ():
        try:
            table = read_segment(replay, number)
        except RefusedSegment as refused:
            logger.warning(f"{replay}: left out: {refused}")
            continue
        for dialogue in from_table(table):
            if dialogue.kind == "rollout" and dialogue.ending != "one_turn":
                by_update.setdefault(dialogue.update, []).append(dialogue)
    visits: list[Visit] = []
    for update in sorted(by_update, reverse=True)[:most_updates]:
        dialogues = sorted(by_update[update], key=lambda dialogue: dialogue.id)
        of_update = [Visit(dialogue=d, index=index) for d in dialogues for index in d.user_turn_indices()[1:]]
        visits += [visit for visit in of_update if all(turn.text.strip() for turn in visit.history)]
        if len(visits) >= enough:
            break
    if not visits:
        raise UserError(f"{replay} has no dialogue of training in which a user replied to the policy")
    return visits


def sampled(visits: Sequence[Visit], most: int, seed: int) -> list[Visit]:
    """At most ``most`` of ``visits``, drawn at random, in their order."""
    indices = np.random.default_rng((seed, 11)).permutation(len(visits))[:most]
    return [visits[i] for i in sorted(indices)]


def disagreements(
    cluster: Cluster,
    members: Sequence[Path],
    visits: Sequence[Visit],
    draws: int,
    max_turn_tokens: int,
    ticks: Callable[[], None] = lambda: None,
) -> NDArray[np.float64]:
    """How far the simulators in the folders ``members`` disagree at each visit [N], in nats; 0 where one of them could
    not reply.

    Args:
        draws: replies of each simulator to each history.
        ticks: called once a history and simulator, when it has been scored.
    """
    pool, K, N = cluster.simulator, len(members), len(visits)
    sampling = SamplingConfig(temperature=1.0, max_turn_tokens=max_turn_tokens)
    collector = Collector(cluster.inputs.task, pool, sampling, sampling)  # no policy speaks here
    histories = [(visit.dialogue.scenario, visit.history) for visit in visits]
    replies: list[list[list[TokenSequence]]] = []
    for member in members:
        cluster.serve(SIMULATOR, member)
        drawn = run_to_end(collector.next_turns(pool, Side.USER, histories, draws, KEY))
        replies.append([[view.sequence() for _, view in of_history] for of_history in drawn])
    log_probs = np.full((N, K, draws, K), -np.inf)
    for scorer, member in enumerate(members):
        cluster.serve(SIMULATOR, member)
        places = [
            (n, k, m) for n in range(N) if all(replies[k][n] for k in range(K)) for k in range(K) for m in range(draws)
        ]
        scores = pool.score_all([replies[k][n][m].ids.tolist() for n, k, m in places], ticks)
        for (n, k, m), values in zip(places, scores, strict=True):
            log_probs[n, k, m, scorer] = values[replies[k][n][m].mask[1:]].sum(dtype=np.float64)
    complete = np.isfinite(log_probs).all(axis=(1, 2, 3))
    return np.array([disagreement(log_probs[n]) if complete[n] else 0.0 for n in range(N)])


def choose(visits: Sequence[Visit], disagreement_N: NDArray[np.float64] | None, count: int, seed: int) -> list[Visit]:
    """``count`` of ``visits`` (fewer where there are no more): those most worth asking about, the best first, or,
    without ``disagreement_N``, at random."""
    if disagreement_N is None:
        return [visits[i] for i in np.random.default_rng((seed, 12)).permutation(len(visits))[:count]]
    order = most_worth_asking(disagreement_N, similarity([visit.history for visit in visits]), count)
    return [visits[i] for i in order]
