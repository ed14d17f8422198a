"""Sets of dialogues named on the command line, read into the one dialogue schema.

A source is

- a file of JSON Lines (``logs/jsonl.py`` has the format);
- CaSiNo as published: its folder, or a file named ``casino*.json``;
- a run folder, its ``replay`` folder or one folder in that, followed by ``@ARM`` where it holds several arms: the
  rollouts of that arm (``runs/dev@calibrated``, all its seeds together), its evaluation dialogues by their full name
  (``runs/dev@calibrated/held_out``), or the logs that the run was given (``runs/dev@logs``; those of one split:
  ``runs/dev@logs/held_out``).

Nothing is written; broken lines and segments are counted and left out.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from calibrated_rl.data.dialogue import Dialogue, Outcome, Scenario, Side, Source, Split, Turn
from calibrated_rl.errors import UserError, first_line
from calibrated_rl.examples.casino.reader import CasinoLogs
from calibrated_rl.examples.casino.records import FILE
from calibrated_rl.examples.casino.task import Casino
from calibrated_rl.logs.jsonl import JsonlRecord, read_jsonl
from calibrated_rl.replay.schema import from_table
from calibrated_rl.replay.segments import RefusedSegment, list_segments, read_segment
from calibrated_rl.settings.yaml_files import read_yaml
from calibrated_rl.shift.base import MatchedReplies
from calibrated_rl.shift.interface import DialogueSets
from calibrated_rl.tasks.base import Task
from calibrated_rl.tasks.checked import build_task

LOGS = "logs"
"""What a run's human logs are called where an arm would stand."""


@dataclass(frozen=True, kw_only=True)
class SourceDialogues:
    """What a source holds."""

    name: str
    dialogues: list[Dialogue]
    """With ``annotations["acts"]`` where a task is known that tells them (CaSiNo, the task of a run)."""
    left_out: int = 0
    """Lines, records or segments that could not be used."""


def read_source(name: str) -> SourceDialogues:
    """The dialogues of the source called ``name``.

    Raises:
        UserError: there is no such source, it is of no known kind, or it holds no usable dialogue.
    """
    text, arm = name, ""
    if "@" in name and not Path(name).expanduser().exists():
        text, _, arm = name.rpartition("@")
    path = Path(text).expanduser()
    if not path.exists():
        raise UserError(f"there is no file or folder {path}")
    casino = (path / FILE).is_file() if path.is_dir() else path.name.startswith("casino") and path.suffix == ".json"
    if casino and not arm:
        return _casino(name, path)
    folder = path / "replay" if (path / "replay").is_dir() else path
    if folder.is_dir():
        return _replay(name, folder, arm)
    if arm:
        raise UserError(f"{path} is a file; only a run folder has arms (@{arm})")
    records, problems = read_jsonl(path)
    return SourceDialogues(name=name, dialogues=[_dialogue(record) for record in records], left_out=len(problems))


def _casino(name: str, path: Path) -> SourceDialogues:
    whole = {"path": str(path), "held_out": 0, "monitor": 0, "tuning": 0}
    task = Casino(Casino.Config(**whole))  # type: ignore[arg-type]
    logs = CasinoLogs(CasinoLogs.Config(**whole), task=task)  # type: ignore[arg-type]
    dialogues = logs.read(Split.CALIBRATION)
    return SourceDialogues(name=name, dialogues=dialogues, left_out=len(logs.problems))


def _replay(name: str, folder: Path, arm: str) -> SourceDialogues:
    stores = [store for store in (folder, *sorted(folder.iterdir())) if store.is_dir()]
    dialogues: list[Dialogue] = []
    there: set[str] = set()
    left_out = 0
    split = arm.removeprefix(f"{LOGS}/") if arm.startswith(f"{LOGS}/") else ""
    arm = LOGS if split else arm
    for store in stores:
        for number in list_segments(store)[0]:
            try:
                table = read_segment(store, number)
            except RefusedSegment:
                left_out += 1
                continue
            kinds = table.column("kind").to_pylist()
            arms = [LOGS if k == "log" else own for k, own in zip(kinds, table.column("arm").to_pylist(), strict=True)]
            there |= set(arms)
            wanted = [own == arm if arm else k == "rollout" for k, own in zip(kinds, arms, strict=True)]
            found = from_table(table.filter(pa.array(wanted)))
            dialogues += [d for d in found if not split or d.scenario.split.value == split]
    if not there:
        raise UserError(f"{folder} holds no dialogues: it is neither CaSiNo, nor a run's replay, nor a run folder")
    choices = ", ".join(sorted(there))
    if not dialogues:
        what = f"of '{arm}{split and '/'}{split}'" if arm else "from training"
        raise UserError(f"{folder} holds no dialogues {what}; there are {choices}")
    if len(mixed := {dialogue.arm for dialogue in dialogues}) > 1:
        raise UserError(f"{folder} holds the dialogues of {len(mixed)} arms; name one as {folder}@ARM of {choices}")
    task = _task_of(folder)
    if task is not None:
        dialogues = [with_acts(dialogue, task) for dialogue in dialogues]
    return SourceDialogues(name=name, dialogues=dialogues, left_out=left_out)


def _task_of(folder: Path) -> Task | None:
    """The task of the run that a replay folder belongs to. None where it stands alone, or, with a warning, where the
    task needs what is not there: then nobody tells dialogue acts."""
    settings = next((f / "config.yaml" for f in (folder, *folder.parents[:2]) if (f / "config.yaml").is_file()), None)
    if settings is None:
        return None
    try:
        config = read_yaml(settings).values
        return build_task(config["task"], config.get("task_config"), str(settings))
    except (OSError, KeyError, TypeError, UserError) as error:
        logging.warning(f"{folder}: without dialogue acts, because the run's task cannot be made: {first_line(error)}")
        return None


def with_acts(dialogue: Dialogue, task: Task) -> Dialogue:
    """The same with the acts of all its turns, in the words of ``task``, as ``annotations["acts"]``."""
    acts = [list(task.acts(dialogue.scenario, dialogue.turns, i)) for i in range(len(dialogue.turns))]
    return replace(dialogue, annotations={**dialogue.annotations, "acts": acts})


def _dialogue(record: JsonlRecord) -> Dialogue:
    told = record.optional
    greeted = record.turns[0][0] is Side.POLICY
    turns = [Turn(side=side, text=text, source=Source.LOG) for side, text in record.turns]
    scenario = Scenario(
        id=record.id,
        split=record.split or Split.HELD_OUT,
        policy_instructions=told.get("policy_instructions", ""),
        user_instructions=told.get("user_instructions", ""),
        greeting=turns[0].text if greeted else "",
        goal=told.get("goal", {}),
    )
    outcome = None
    if "reward" in told:
        outcome = Outcome(reward=float(told["reward"]), success=bool(told["success"]))
    return Dialogue(
        id=f"log-{record.id}",
        task="",
        scenario=scenario,
        turns=tuple(turns),
        ending=str(told.get("ending", "log_end")),
        outcome=outcome,
        kind="log",
    )


def some(dialogues: Sequence[Dialogue], limit: int, seed: int) -> list[Dialogue]:
    """At most ``limit`` dialogues drawn at random, in the order they had; all where ``limit`` is 0."""
    if not limit or len(dialogues) <= limit:
        return list(dialogues)
    chosen = np.random.default_rng((seed, 6)).permutation(len(dialogues))[:limit]
    return [dialogues[i] for i in sorted(chosen)]


def matched_replies(sets: DialogueSets) -> MatchedReplies:
    """Replies of both sides to the same history: same scenario id and the same texts before, turn by turn.

    Of several dialogues of a scenario on one side the first that fits is taken. The result can be empty.
    """
    Key = tuple[str, tuple[tuple[Side, str], ...]]
    others: dict[Key, tuple[Dialogue, int]] = {}
    for dialogue in sets.simulator:
        for index in dialogue.user_turn_indices():
            others.setdefault(_key(dialogue, index), (dialogue, index))
    rows = []
    for dialogue in sets.human:
        for ordinal, index in enumerate(dialogue.user_turn_indices(), start=1):
            found = others.pop(_key(dialogue, index), None)
            if found is not None:
                rows.append((dialogue, index, ordinal, *found))
    human_acts = [acts[i] if (acts := sets.acts(d)) else () for d, i, *_ in rows]
    simulator_acts = [acts[i] if (acts := sets.acts(d)) else () for *_, d, i in rows]
    known = all(human_acts) and all(simulator_acts)
    return MatchedReplies(
        histories=[d.turns[:i] for d, i, *_ in rows],
        human=[d.turns[i].text for d, i, *_ in rows],
        simulator=[d.turns[i].text for *_, d, i in rows],
        turn=[ordinal for _, _, ordinal, *_ in rows],
        dialogue=[d.scenario.id for d, *_ in rows],
        human_acts=human_acts if known else (),
        simulator_acts=simulator_acts if known else (),
    )


def _key(dialogue: Dialogue, index: int) -> tuple[str, tuple[tuple[Side, str], ...]]:
    return dialogue.scenario.id, tuple((turn.side, turn.text) for turn in dialogue.turns[:index])
