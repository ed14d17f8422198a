"""Asks humans where it helps most: picks histories of the current policy for them to reply to."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from calibrated_rl.api.settings import allowed
from calibrated_rl.config.arms import CALIBRATED
from calibrated_rl.errors import UserError
from calibrated_rl.settings.fields import NotNegative, Positive, Seed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from calibrated_rl.evaluation.asking import Visit
    from calibrated_rl.run.inputs import RunInputs

logger = logging.getLogger(__name__)

UPDATES = 5
"""Default number of last updates whose dialogues are looked at, at most."""
CANDIDATES = 4
"""Default number of histories that are looked at, for each that is picked."""
DRAWS = 4
"""Default number of replies of each simulator to each history."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What ``ask`` has picked."""

    file: Path
    """JSON Lines with an empty last turn each (``answer``: with the human's reply); ``calibration.asked`` reads it."""
    count: int
    candidates: int
    """Histories that were looked at."""
    simulators: Sequence[str]
    """Names of those that were compared; empty: none were, it was picked at random."""
    disagreement: float | None
    """Mean of the histories that were picked, in nats."""
    disagreement_of_all: float | None


def ask(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    count: int,
    arm: str = "",
    at_random: bool = False,
    answer: bool = False,
    updates: int = UPDATES,
    candidates: int = 0,
    draws: int = DRAWS,
    seed: int = 0,
    overrides: Sequence[str] = (),
) -> Asked:
    """Pick the histories of a run's current policy on which a human's reply would help most, and write them to a file.
    The run need not be finished. Starts the simulator's engine, and Ray as ``compare`` does.

    Args:
        run: its folder.
        out: the file, which must not exist.
        count: histories; fewer where the policy came to fewer.
        arm: ARM-SEED; empty: the first ``calibrated`` one, else the first.
        at_random: pick at random among the same histories; starts nothing.
        answer: let the run's scripted human reply.
        updates: dialogues of at most so many of the last updates are looked at.
        candidates: histories that are looked at, drawn at random; 0: four times ``count``.
        draws: replies of each simulator to each of these.
        overrides: settings that replace the run's own, as ``key=value``.

    Raises:
        UserError: the run has no such arm, no dialogues or no simulators to compare, or ``out`` exists.
        PartLost: an engine died.
    """
    for name, hint, value in (
        ("count", Positive, count), ("updates", Positive, updates), ("draws", Positive, draws), ("seed", Seed, seed),
        ("candidates", NotNegative, candidates),
    ):  # fmt: skip
        allowed(name, hint, value)
    from calibrated_rl.config.load import load_config
    from calibrated_rl.evaluation.asking import choose, committee, latest_visits, sampled
    from calibrated_rl.logs.asked import asked_line, write_lines
    from calibrated_rl.rollout.conversation import stable_seed
    from calibrated_rl.run.inputs import read_inputs
    from calibrated_rl.run.saved_run import config_file
    from calibrated_rl.runtime.progress import Progress

    folder, file, progress = Path(run), Path(out), Progress()
    config = load_config(config_file(folder), list(overrides), saved=True)
    if file.exists():
        raise UserError(f"{file} exists, and humans may have replied in it: name another file")
    if answer and not config.human:
        raise UserError(f"{folder}: the run has no scripted human (`human` is empty) that could answer")
    name = arm_name(folder, arm)
    most_visits = candidates or CANDIDATES * count
    visits = sampled(latest_visits(folder / "replay" / name, most_visits, updates), most_visits, seed)
    if len(visits) < count:
        logger.warning(f"{name}: its last {updates} updates have only {len(visits)} histories, fewer than {count}")
    members = [] if at_random else committee(folder, name)
    inputs = read_inputs(config, folder, progress, training=False)
    disagreement_N = None if at_random else _disagreements(inputs, members, visits, draws)
    picked = choose(visits, disagreement_N, count, seed)
    lines = []
    for visit in picked:
        scenario, history, reply = visit.dialogue.scenario, visit.history, ""
        if answer:
            assert inputs.human is not None
            reply = inputs.human.sample(scenario, history, stable_seed("ask", seed, visit.dialogue.id, visit.index))
        lines.append(asked_line(f"ask-{visit.dialogue.id}-{visit.index}", scenario, history, reply))
    write_lines(file, lines)
    progress.close()
    means: list[float | None] = [None, None]
    if disagreement_N is not None:
        by_place = {(v.dialogue.id, v.index): d for v, d in zip(visits, disagreement_N, strict=True)}
        means = [
            float(sum(by_place[v.dialogue.id, v.index] for v in of) / len(of)) for of in (picked, visits)
        ]  # fmt: skip
    return Asked(
        file=file.resolve(), count=len(picked), candidates=len(visits), simulators=[m.name for m in members],
        disagreement=means[0], disagreement_of_all=means[1],
    )  # fmt: skip


def arm_name(folder: Path, arm: str) -> str:
    """The arm and seed whose dialogues are looked at.

    Raises:
        UserError: there is none of this name; lists the existing ones.
    """
    names = sorted(path.name for path in (folder / "replay").glob("*-*") if path.is_dir())
    if not names:
        raise UserError(f"{folder} has no dialogues of training: there is no replay/ARM-SEED in it")
    if arm and arm not in names:
        raise UserError(f"{folder} has no dialogues of '{arm}'; there are: {', '.join(names)}")
    return arm or next((name for name in names if name.startswith(CALIBRATED)), names[0])


def _disagreements(
    inputs: "RunInputs", members: Sequence[Path], visits: "Sequence[Visit]", draws: int
) -> "NDArray[np.float64]":
    from calibrated_rl.evaluation.asking import disagreements
    from calibrated_rl.learner.slots import SIMULATOR
    from calibrated_rl.run.base_models import prepare_models
    from calibrated_rl.run.cluster import start_cluster
    from calibrated_rl.run.machine import start_ray
    from calibrated_rl.run.saved_run import check_engines_fit

    simulator = inputs.config.simulator
    models = prepare_models(inputs)
    check_engines_fit({SIMULATOR: (simulator.engine, members[0])})
    start_ray()
    logger.info(f"starting the simulator's engine, to compare {', '.join(member.name for member in members)}")
    cluster = start_cluster(inputs, models, {SIMULATOR: members[0]})
    try:
        ticks = inputs.progress.ticks("comparing simulators", len(members) ** 2 * len(visits) * draws)
        return disagreements(cluster, members, visits, draws, simulator.sampling.max_turn_tokens, ticks)
    finally:
        cluster.close()
