"""Tables of dialogues for the rows about replay: made once, in the shape of rollouts, and renamed."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from calibrated_rl.data.dialogue import Dialogue, Outcome, Scenario, Side, Source, Split, TokenSequence, Turn
from calibrated_rl.replay.schema import to_table

GROUP = 8
"""Dialogues in a group."""


def dialogues(number: int, tokens: int) -> list[Dialogue]:
    """Rollouts of four turns in groups of ``GROUP``, each with ``tokens`` tokens in the view of either side."""
    scenario = Scenario(
        id="made", split=Split.CALIBRATION, policy_instructions="Help.", user_instructions="Ask.", greeting="Hello."
    )
    turns = tuple(
        Turn(side=side, text="I would like a table for four tonight, please.", source=source)
        for side, source in [(Side.POLICY, Source.POLICY), (Side.USER, Source.SIMULATOR)] * 2
    )
    random = np.random.default_rng(0)
    return [
        Dialogue(
            id=f"made-{i}", task="made", scenario=scenario, turns=turns, ending="done", kind="rollout", arm="made",
            outcome=Outcome(reward=1.0, success=True), group_id=f"made-{i // GROUP}", group_size=GROUP, update=0,
            policy_tokens=_tokens(random, tokens), user_tokens=_tokens(random, tokens), simulator_version=0,
        )
        for i in range(number)
    ]  # fmt: skip


def _tokens(random: np.random.Generator, length: int) -> TokenSequence:
    mask = random.random(length) < 0.5
    return TokenSequence(
        ids=random.integers(0, 50_000, length, np.int32), mask=mask, turns=np.zeros(length, np.int32),
        logprobs=np.where(mask, -1.0, np.nan).astype(np.float32), versions=np.where(mask, 0, -1).astype(np.int32),
    )  # fmt: skip


def renamed(table: pa.Table, number: int, update: int) -> pa.Table:
    """``table`` as the ``number``-th of its kind, collected during ``update`` with the weights of then; its tokens are
    shared, not copied."""
    rows = np.arange(table.num_rows)
    new_columns = {
        "id": pa.array([f"made-0-{number}-{row}" for row in rows]),
        "group_id": pa.array([f"made-0-{number}-{row}" for row in rows // GROUP]),
        **{name: pa.array(np.full(len(rows), update, np.int32)) for name in ("update", *_VERSIONS)},
    }
    columns = [new_columns.get(field.name, table.column(field.name)) for field in table.schema]
    return pa.Table.from_arrays(columns, schema=table.schema)


_VERSIONS = ("oldest_version", "newest_version")


def made_table(number: int, tokens: int) -> pa.Table:
    return to_table(dialogues(number, tokens))


def file_bytes(table: pa.Table) -> NDArray[np.uint8]:
    """``table`` as an Arrow file in memory."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return np.frombuffer(sink.getvalue(), np.uint8)
