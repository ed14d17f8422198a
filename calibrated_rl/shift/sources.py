"""Sets of dialogues by their names, read into the one dialogue schema.

A source is

- a file of logs of any known format, or a folder or glob of such (``logs/reading.py``);
- CaSiNo as published: its folder, or a file named ``casino*.json``;
- any other file or folder of logs, with a reader for it (``LogFiles``); one of its splits as ``FILE@held_out``;
- a run folder, its ``replay`` folder or one folder in that, followed by ``@ARM`` where it contains several arms: the
  rollouts of that arm (``runs/dev@calibrated``, all its seeds together), its evaluation dialogues by their full name
  (``runs/dev@calibrated/held_out``), or the logs that the run was given (``runs/dev@logs``; those of one split:
  ``runs/dev@logs/held_out``).

Nothing is written; broken lines and segments are counted and left out.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from glob import has_magic
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from calibrated_rl.components.component import import_path
from calibrated_rl.components.user_code import UserCodeError
from calibrated_rl.data.dialogue import Dialogue, Outcome, Scenario, Side, Source, Split, Turn
from calibrated_rl.errors import UserError, first_line
from calibrated_rl.logs.checked import build_reader
from calibrated_rl.logs.jsonl import annotations_of
from calibrated_rl.logs.places import is_log_folder
from calibrated_rl.logs.reading import read_logs
from calibrated_rl.logs.record import JsonlRecord
from calibrated_rl.replay.schema import from_table
from calibrated_rl.replay.segments import RefusedSegment, list_segments, read_segment
from calibrated_rl.settings.yaml_files import read_yaml
from calibrated_rl.shift.base import MatchedReplies
from calibrated_rl.shift.interface import DialogueSets
from calibrated_rl.tasks.base import Task
from calibrated_rl.tasks.checked import build_task

logger = logging.getLogger(__name__)

FILE_READERS = ("calibrated_rl.examples.casino.reader:CasinoLogs",)
"""Import paths of readers that recognise their own files (``logs.base.FileReader``)."""
LOGS = "logs"
"""Name of a run's human logs, in the place of an arm."""


@dataclass(frozen=True, kw_only=True)
class SourceDialogues:
    """What a source contains."""

    name: str
    dialogues: list[Dialogue]
    """With ``annotations["acts"]`` where a task is known that tells them (CaSiNo, the task of a run)."""
    left_out: int = 0
    """Lines, records or segments that could not be used."""


@dataclass(frozen=True, kw_only=True)
class LogFiles:
    """How to read log files of a format that this module does not know."""

    reader: str
    """Import path of a log reader. Its ``Config`` has a ``path``, which is the file."""
    reader_config: Mapping[str, Any] = field(default_factory=dict)
    """Its other settings."""
    task: str = ""
    """Import path of the task that the logs are of; empty: the reader needs none, and dialogue acts are not known."""
    task_config: Mapping[str, Any] = field(default_factory=dict)


def read_source(name: str, log_files: LogFiles | None = None) -> SourceDialogues:
    """The dialogues of the source called ``name``.

    Args:
        log_files: how it is read unless it is of a run; None: by its kind.

    Raises:
        UserError: there is no such source, it is of no known kind, or it contains no usable dialogue.
    """
    path, arm = _place(name)
    if not path.exists():
        if not arm and has_magic(name):
            return _logs(name, name)
        raise UserError(f"there is no file or folder {path}")
    if log_files is not None and not is_of_run(name):
        return _by_reader(name, path, arm, log_files)
    for file_reader in () if arm else map(import_path, FILE_READERS):
        if file_reader.recognises(path):
            logs = file_reader.whole(path)
            return SourceDialogues(name=name, dialogues=logs.read(Split.CALIBRATION), left_out=len(logs.problems))
    folder = path / "replay" if (path / "replay").is_dir() else path
    if folder.is_dir() and not (folder == path and not arm and not is_of_run(name) and is_log_folder(path)):
        return _replay(name, folder, arm)
    if arm:
        raise UserError(f"{path} is a file; only a run folder has arms (@{arm})")
    return _logs(name, str(path))


def _logs(name: str, files: str) -> SourceDialogues:
    records, reading = read_logs([files])
    return SourceDialogues(name=name, dialogues=[_dialogue(r) for r in records], left_out=len(reading.problems))


def is_of_run(name: str) -> bool:
    """Whether ``name`` is a run folder, its ``replay`` folder or a folder in that, with or without ``@ARM``."""
    path, _ = _place(name)
    return path.is_dir() and ((path / "replay").is_dir() or any(list_segments(store)[0] for store in _stores(path)))


def run_folder(name: str) -> Path | None:
    """The folder of the run that the source called ``name`` is of; None where it is of none, or its settings are not
    there."""
    path, _ = _place(name)
    if not path.is_dir() or not is_of_run(name):
        return None
    return next((folder for folder in (path, *path.resolve().parents[:2]) if (folder / "config.yaml").is_file()), None)


def _place(name: str) -> tuple[Path, str]:
    """File or folder, and the text behind the ``@``."""
    if "@" not in name or Path(name).expanduser().exists():
        return Path(name).expanduser(), ""
    text, _, arm = name.rpartition("@")
    return Path(text).expanduser(), arm


def _by_reader(name: str, path: Path, only_split: str, log_files: LogFiles) -> SourceDialogues:
    """``path`` as a log reader reads it: all splits that have dialogues, or ``only_split``."""
    if only_split and only_split not in list(Split):
        raise UserError(f"{name}: there is no split '{only_split}'; there are {', '.join(Split)}")
    config = getattr(import_path(log_files.reader), "Config", None)
    if is_dataclass(config) and "path" not in (each.name for each in fields(config)):
        raise UserError(f"the reader {log_files.reader}: its Config has no 'path' for the file")
    task = build_task(log_files.task, log_files.task_config, "task_config") if log_files.task else None
    logs = build_reader(log_files.reader, {**log_files.reader_config, "path": str(path)}, "reader_config", task)
    dialogues: list[Dialogue] = []
    refusals: list[UserError] = []
    for split in [Split(only_split)] if only_split else Split:
        try:
            dialogues += logs.read(split)
        except UserCodeError:
            raise
        except UserError as error:  # it may have none in this split
            refusals.append(error)
    if not dialogues:
        raise refusals[0]
    if task is not None:
        dialogues = [d if "acts" in d.annotations else with_acts(d, task) for d in dialogues]
    return SourceDialogues(name=name, dialogues=dialogues, left_out=len(logs.problems))


def _stores(folder: Path) -> list[Path]:
    return [store for store in (folder, *sorted(folder.iterdir())) if store.is_dir()]


def _replay(name: str, folder: Path, arm: str) -> SourceDialogues:
    dialogues: list[Dialogue] = []
    arms_found: set[str] = set()
    left_out = 0
    split = arm.removeprefix(f"{LOGS}/") if arm.startswith(f"{LOGS}/") else ""
    arm = LOGS if split else arm
    for store in _stores(folder):
        for number in list_segments(store)[0]:
            try:
                table = read_segment(store, number)
            except RefusedSegment:
                left_out += 1
                continue
            kinds = table.column("kind").to_pylist()
            arms = [
                LOGS if k == "log" else row_arm
                for k, row_arm in zip(kinds, table.column("arm").to_pylist(), strict=True)
            ]
            arms_found |= set(arms)
            is_wanted = [row_arm == arm if arm else k == "rollout" for k, row_arm in zip(kinds, arms, strict=True)]
            selected = from_table(table.filter(pa.array(is_wanted)))
            dialogues += [d for d in selected if not split or d.scenario.split.value == split]
    if not arms_found:
        raise UserError(f"{folder} contains no dialogues: it is neither CaSiNo, nor a run's replay, nor a run folder")
    choices = ", ".join(sorted(arms_found))
    if not dialogues:
        description = f"of '{arm}{split and '/'}{split}'" if arm else "from training"
        raise UserError(f"{folder} contains no dialogues {description}; there are {choices}")
    if len(mixed := {dialogue.arm for dialogue in dialogues}) > 1:
        raise UserError(f"{folder} contains the dialogues of {len(mixed)} arms; name one as {folder}@ARM of {choices}")
    task = _task_of(folder)
    if task is not None:
        dialogues = [with_acts(dialogue, task) for dialogue in dialogues]
    return SourceDialogues(name=name, dialogues=dialogues, left_out=left_out)


def _task_of(folder: Path) -> Task | None:
    """The task of the run that a replay folder belongs to. None where the folder belongs to no run, or, with a warning,
    where the task cannot be built: then dialogue acts are not known."""
    settings = next((f / "config.yaml" for f in (folder, *folder.parents[:2]) if (f / "config.yaml").is_file()), None)
    if settings is None:
        return None
    try:
        config = read_yaml(settings).values
        return build_task(config["task"], config.get("task_config"), str(settings))
    except (OSError, KeyError, TypeError, UserError) as error:
        logger.warning(f"{folder}: without dialogue acts, because the run's task cannot be built: {first_line(error)}")
        return None


def with_acts(dialogue: Dialogue, task: Task) -> Dialogue:
    """The same with the acts of all its turns, in the words of ``task``, as ``annotations["acts"]``."""
    acts = [list(task.acts(dialogue.scenario, dialogue.turns, i)) for i in range(len(dialogue.turns))]
    return replace(dialogue, annotations={**dialogue.annotations, "acts": acts})


def _dialogue(record: JsonlRecord) -> Dialogue:
    optional = record.optional
    greeted = record.turns[0][0] is Side.POLICY
    turns = [Turn(side=side, text=text, source=Source.LOG) for side, text in record.turns]
    scenario = Scenario(
        id=record.id,
        split=record.split or Split.HELD_OUT,
        policy_instructions=optional.get("policy_instructions", ""),
        user_instructions=optional.get("user_instructions", ""),
        greeting=turns[0].text if greeted else "",
        goal=optional.get("goal", {}),
    )
    outcome = None
    if "reward" in optional:
        outcome = Outcome(reward=float(optional["reward"]), success=bool(optional["success"]))
    return Dialogue(
        id=f"log-{record.id}",
        task="",
        scenario=scenario,
        turns=tuple(turns),
        ending=str(optional.get("ending", "log_end")),
        outcome=outcome,
        kind="log",
        annotations=annotations_of(record),
    )


def sample_dialogues(dialogues: Sequence[Dialogue], limit: int, seed: int) -> list[Dialogue]:
    """At most ``limit`` dialogues drawn at random, in the order they had; all where ``limit`` is 0."""
    if not limit or len(dialogues) <= limit:
        return list(dialogues)
    indices = np.random.default_rng((seed, 6)).permutation(len(dialogues))[:limit]
    return [dialogues[i] for i in sorted(indices)]


def matched_replies(sets: DialogueSets) -> MatchedReplies:
    """Replies of both sides to the same history: same scenario id and the same texts before, turn by turn.

    Of several dialogues of a scenario on one side the first that fits is taken. The result can be empty.
    """
    Key = tuple[str, tuple[tuple[Side, str], ...]]
    by_history: dict[Key, tuple[Dialogue, int]] = {}
    for dialogue in sets.simulator:
        for index in dialogue.user_turn_indices():
            by_history.setdefault(_key(dialogue, index), (dialogue, index))
    rows = []
    for dialogue in sets.human:
        for ordinal, index in enumerate(dialogue.user_turn_indices(), start=1):
            match = by_history.pop(_key(dialogue, index), None)
            if match is not None:
                rows.append((dialogue, index, ordinal, *match))
    human_acts = [acts[i] if (acts := sets.acts(d)) else () for d, i, *_ in rows]
    simulator_acts = [acts[i] if (acts := sets.acts(d)) else () for *_, d, i in rows]
    acts_known = all(human_acts) and all(simulator_acts)
    return MatchedReplies(
        histories=[d.turns[:i] for d, i, *_ in rows],
        human=[d.turns[i].text for d, i, *_ in rows],
        simulator=[d.turns[i].text for *_, d, i in rows],
        turn=[ordinal for _, _, ordinal, *_ in rows],
        dialogue=[d.scenario.id for d, *_ in rows],
        human_acts=human_acts if acts_known else (),
        simulator_acts=simulator_acts if acts_known else (),
    )


def _key(dialogue: Dialogue, index: int) -> tuple[str, tuple[tuple[Side, str], ...]]:
    return dialogue.scenario.id, tuple((turn.side, turn.text) for turn in dialogue.turns[:index])
