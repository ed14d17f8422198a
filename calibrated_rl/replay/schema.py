"""The one Arrow schema of human logs, rollouts and evaluations: one row a ``Dialogue``.

``docs/replay.md`` explains it field by field; the same text is in the metadata of every field. Content that is
free-form (goal, persona, outcome details, annotations) is JSON in a string column, so that the schema is the
same for all tasks; JSON has no tuples and no keys other than strings.
"""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from calibrated_rl.data.dialogue import (
    Dialogue,
    Finish,
    Outcome,
    Scenario,
    Side,
    Source,
    Split,
    TokenSequence,
    Turn,
)

FORMAT_VERSION = 1
"""Increased whenever a reader of the old schema would misread or miss something."""
FORMAT_KEY = b"calibrated_rl.format"


def _field(name: str, kind: Any, doc: str, nullable: bool = False) -> Any:
    return pa.field(name, kind, nullable=nullable, metadata={"doc": doc})


TURN = pa.struct(
    [
        _field("side", pa.string(), "policy or user: who speaks"),
        _field("text", pa.string(), "what was said, for people, rewards and logs"),
        _field("source", pa.string(), "greeting, log, policy, simulator, scripted or person"),
        _field("finish", pa.string(), "stop, length or degenerate: how the turn's generation ended"),
        _field("simulator_version", pa.int32(), "simulator's weights that spoke it, else null", True),
        _field("flaw", pa.string(), "guardrail that objected, else null", True),
    ]
)
SCENARIO = pa.struct(
    [
        _field("id", pa.string(), "unique within the task"),
        _field("split", pa.string(), "calibration, monitor, tuning or held_out"),
        _field("policy_instructions", pa.string(), "system prompt of the policy's side"),
        _field("user_instructions", pa.string(), "system prompt of a simulator: goal and persona"),
        _field("greeting", pa.string(), "fixed first turn, said by the policy's side"),
        _field("goal", pa.string(), "JSON object: the other side's private goal"),
        _field("persona", pa.string(), "JSON object: the other side's traits"),
        _field("population", pa.string(), "same as the logged people, or shifted"),
    ]
)
OUTCOME = pa.struct(
    [
        _field("reward", pa.float64(), "terminal reward, all costs included"),
        _field("success", pa.bool_(), "whether the task calls it a success"),
        _field("turn_rewards", pa.list_(pa.float64()), "reward after each policy turn; may be empty"),
        _field("details", pa.string(), "JSON object: the task's own account"),
    ]
)
TOKENS = pa.struct(
    [
        _field("ids", pa.list_(pa.int32()), "token ids [T], as the side's model saw and produced them"),
        _field("mask", pa.list_(pa.bool_()), "[T], true where the side's own tokens stand: they carry loss"),
        _field("logprobs", pa.list_(pa.float32()), "[T], under the sampling engine; NaN where not sampled"),
        _field("versions", pa.list_(pa.int32()), "[T], weights that sampled the token; -1 where not sampled"),
        _field("turns", pa.list_(pa.int32()), "[T], index into turns; -1 for the opening scaffold"),
    ]
)
SCHEMA = pa.schema(
    [
        _field("id", pa.string(), "unique among dialogues of the same kind, arm and update"),
        _field("task", pa.string(), "name of the task"),
        _field("kind", pa.string(), "log, rollout or evaluation"),
        _field("arm", pa.string(), "which arm of the comparison; empty for logs"),
        _field("update", pa.int32(), "update of the run during which it was collected; -1 outside training"),
        _field("group_id", pa.string(), "dialogues of a group share scenario, first user turn, simulator"),
        _field("group_size", pa.int32(), "how many dialogues make the group complete"),
        _field("sampling_seed", pa.int64(), "seed of this dialogue's sampling; all that differs in a group"),
        _field("simulator_version", pa.int32(), "simulator's weights of the whole dialogue, else null", True),
        _field("scenario", SCENARIO, "everything that is fixed before the dialogue starts"),
        _field("turns", pa.list_(TURN), "the utterances in order, greeting first"),
        _field("ending", pa.string(), "why it ended: the task's word, or max_turns, policy_context, policy_degenerate"),
        _field("outcome", OUTCOME, "what it was worth; null where nobody has scored it", True),
        _field("policy_tokens", TOKENS, "the policy's view as tokens; null where known as text only", True),
        _field("user_tokens", TOKENS, "the simulator's view as tokens; null where known as text only", True),
        _field("annotations", pa.string(), "JSON object: anything else that is known about the dialogue"),
        _field("oldest_version", pa.int32(), "derived: oldest weights among own policy tokens; -1 if none"),
        _field("newest_version", pa.int32(), "derived: newest weights among own policy tokens; -1 if none"),
    ],
    metadata={FORMAT_KEY: str(FORMAT_VERSION).encode()},
)


def clean(text: str) -> str:
    """``text`` as valid Unicode: Arrow stores UTF-8, which cannot encode a lone surrogate, so each becomes
    ``?``, exactly as in ``ChatTokens.encode_text``. This is the only place where stored text changes."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def _json(value: Mapping[str, Any]) -> str:
    return clean(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def _turn(turn: Turn) -> dict[str, Any]:
    return {
        "side": turn.side.value,
        "text": clean(turn.text),
        "source": turn.source.value,
        "finish": turn.finish.value,
        "simulator_version": turn.simulator_version,
        "flaw": turn.flaw if turn.flaw is None else clean(turn.flaw),
    }


def _scenario(scenario: Scenario) -> dict[str, Any]:
    return {
        "id": clean(scenario.id),
        "split": scenario.split.value,
        "policy_instructions": clean(scenario.policy_instructions),
        "user_instructions": clean(scenario.user_instructions),
        "greeting": clean(scenario.greeting),
        "goal": _json(scenario.goal),
        "persona": _json(scenario.persona),
        "population": clean(scenario.population),
    }


def _outcome(outcome: Outcome | None) -> dict[str, Any] | None:
    if outcome is None:
        return None
    return {
        "reward": outcome.reward,
        "success": outcome.success,
        "turn_rewards": list(outcome.turn_rewards),
        "details": _json(outcome.details),
    }


def _tokens_column(sequences: Sequence[TokenSequence | None]) -> Any:
    """Struct of lists from arrays, without going through Python numbers."""
    lengths = [0 if s is None else len(s) for s in sequences]
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    present = [s for s in sequences if s is not None]
    columns = []
    for field in TOKENS:
        arrays = [getattr(s, field.name) for s in present]
        values = np.concatenate(arrays) if arrays else np.empty(0, field.type.value_type.to_pandas_dtype())
        flat = pa.array(values, field.type.value_type, from_pandas=False)
        columns.append(pa.ListArray.from_arrays(offsets, flat, type=field.type))
    is_missing = pa.array([s is None for s in sequences], pa.bool_())
    return pa.StructArray.from_arrays(columns, fields=list(TOKENS), mask=is_missing)


def _newest(tokens: TokenSequence | None) -> int:
    sampled = tokens.versions[tokens.mask] if tokens is not None else np.empty(0)
    return int(sampled.max()) if len(sampled) else -1


_COLUMNS: dict[str, Callable[[Dialogue], Any]] = {
    "id": lambda d: clean(d.id),
    "task": lambda d: clean(d.task),
    "kind": lambda d: clean(d.kind),
    "arm": lambda d: clean(d.arm),
    "update": lambda d: d.update,
    "group_id": lambda d: clean(d.group_id),
    "group_size": lambda d: d.group_size,
    "sampling_seed": lambda d: d.sampling_seed,
    "simulator_version": lambda d: d.simulator_version,
    "scenario": lambda d: _scenario(d.scenario),
    "turns": lambda d: [_turn(turn) for turn in d.turns],
    "ending": lambda d: clean(d.ending),
    "outcome": lambda d: _outcome(d.outcome),
    "annotations": lambda d: _json(d.annotations),
    "oldest_version": lambda d: -1 if d.policy_tokens is None else d.policy_tokens.oldest_version,
    "newest_version": lambda d: _newest(d.policy_tokens),
}


def to_table(dialogues: Sequence[Dialogue]) -> pa.Table:
    """One row a dialogue, in order. An empty sequence gives a table without rows.

    Raises:
        TypeError: a goal, persona, outcome detail or annotation is not JSON-able.
        OverflowError, pyarrow.ArrowInvalid: a number does not fit its column.
    """
    columns = []
    for field in SCHEMA:
        if field.type.equals(TOKENS):
            columns.append(_tokens_column([getattr(d, field.name) for d in dialogues]))
        else:
            columns.append(pa.array([_COLUMNS[field.name](d) for d in dialogues], field.type))
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def _read_tokens(column: Any) -> list[TokenSequence | None]:
    """Token sequences of one (possibly sliced) struct array; the arrays are copies and can be written."""
    arrays_by_field: dict[str, list[Any]] = {}
    for name in ("ids", "mask", "logprobs", "versions", "turns"):
        lists = column.field(name)
        bounds = lists.offsets.to_numpy()
        values = lists.values.to_numpy(zero_copy_only=False)
        arrays_by_field[name] = [values[a:b].copy() for a, b in itertools.pairwise(bounds)]
    valid = column.is_valid().to_pylist()
    return [
        TokenSequence(**{n: p[i] for n, p in arrays_by_field.items()}) if ok else None for i, ok in enumerate(valid)
    ]


def _read_row(row: dict[str, Any]) -> dict[str, Any]:
    scenario, outcome = row["scenario"], row["outcome"]
    row["scenario"] = Scenario(
        **scenario
        | {
            "split": Split(scenario["split"]),
            "goal": json.loads(scenario["goal"]),
            "persona": json.loads(scenario["persona"]),
        }
    )
    row["turns"] = tuple(
        Turn(
            **turn
            | {
                "side": Side(turn["side"]),
                "source": Source(turn["source"]),
                "finish": Finish(turn["finish"]),
            }
        )
        for turn in row["turns"]
    )
    if outcome is not None:
        details = json.loads(outcome["details"])
        row["outcome"] = Outcome(**outcome | {"turn_rewards": tuple(outcome["turn_rewards"]), "details": details})
    row["annotations"] = json.loads(row["annotations"])
    return row


def from_table(table: pa.Table) -> list[Dialogue]:
    """The dialogues of a table that ``to_table`` made, or of any rows of it."""
    plain = [name for name in _COLUMNS if name not in ("oldest_version", "newest_version")]
    dialogues: list[Dialogue] = []
    for batch in table.to_batches():
        policy = _read_tokens(batch.column("policy_tokens"))
        user = _read_tokens(batch.column("user_tokens"))
        for i, row in enumerate(batch.select(plain).to_pylist()):
            dialogues.append(Dialogue(**_read_row(row), policy_tokens=policy[i], user_tokens=user[i]))
    return dialogues


def in_schema(table: pa.Table) -> pa.Table:
    """``table`` with this version's metadata, if it is one of dialogues.

    Raises:
        ValueError: its columns are other ones, a value is missing where there must be one, or text is no UTF-8.
    """
    if not table.schema.equals(SCHEMA, check_metadata=False):
        raise ValueError(f"a table of other columns than those of a dialogue: {', '.join(table.schema.names)}")
    for field, column in zip(SCHEMA, table.columns, strict=True):
        if column.null_count and not field.nullable:
            raise ValueError(f"column '{field.name}' lacks values")
    table.validate(full=True)
    return pa.Table.from_arrays(table.columns, schema=SCHEMA)


def format_problem(schema: Any) -> str | None:
    """Why a file with this Arrow schema cannot be read as dialogues, or None."""
    version = (schema.metadata or {}).get(FORMAT_KEY)
    if version is None or not version.isdigit():
        return "not a file of dialogues: its schema carries no calibrated_rl format version"
    if int(version) > FORMAT_VERSION:
        return f"format version {int(version)} is newer than this program's {FORMAT_VERSION}"
    if not schema.equals(SCHEMA, check_metadata=False):
        return f"its columns are not those of format version {FORMAT_VERSION}"
    return None
