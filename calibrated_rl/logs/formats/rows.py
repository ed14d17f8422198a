"""A turn a row, as tables of support desks and surveys have it: CSV, TSV, Parquet, or objects in JSON Lines.

    ticket,sender,body
    7,customer,"For two, please"
    7,agent,Which day?

Columns with common names are found (``dialogue_id``, ``role``, ``text``, ...); for others, the column map says which
is which: ``{dialogue: ticket, side: sender, text: body}``, and with ``time`` or ``turn`` the turns are put in order.
What a dialogue was worth (``reward`` and ``success``, ``goal``, ``ending``, ``split``) is taken from its last row that
says it; all other columns are kept beside the turn.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from calibrated_rl.logs.base import LogProblem, Refused
from calibrated_rl.logs.found import Found
from calibrated_rl.logs.options import FileSettings
from calibrated_rl.logs.record import OPTIONAL
from calibrated_rl.logs.row import Row
from calibrated_rl.logs.sides import Sides
from calibrated_rl.logs.utterances import Utterance, grouped, in_order, name_of, spoken, text_of, utterance

COLUMNS = {
    "dialogue": (
        "dialogue", "dialogue_id", "dialog_id", "conversation_id", "conv_id", "conversation", "session_id", "thread_id",
        "ticket_id", "chat_id", "dialog",
    ),
    "side": ("side", "role", "speaker", "sender", "author", "from", "party"),
    "text": ("text", "content", "message", "utterance", "body", "value"),
    "turn": ("turn", "turn_id", "turn_index", "turn_idx", "turn_number"),
    "time": ("time", "timestamp", "created_at", "datetime", "date"),
}  # fmt: skip
"""What a column contains, and the names by which it is found."""
_NEEDED = ("dialogue", "side", "text")
_ORDER = ("turn", "time")


class RowsFormat:
    """A record is a turn."""

    title = "a turn a row"

    def fit(self, content: Any) -> int:
        if not isinstance(content, dict):
            return 0
        columns = _columns(content)
        is_row = all(isinstance(content.get(columns.get(each, "")), str | int | float) for each in _NEEDED)
        return 3 if is_row else 0

    def dialogues(self, rows: Iterator[Row], settings: FileSettings) -> Iterator[Found | LogProblem]:
        sides = Sides(settings)
        yield from grouped(rows, _utterance, lambda utterances: _dialogue(utterances, sides), sides)


def _columns(content: Mapping[str, Any]) -> dict[str, str]:
    """The record's own keys by what they contain."""
    normal = {str(key).strip().lower().replace(" ", "_").replace("-", "_"): key for key in reversed(list(content))}
    columns = {}
    for what, names in COLUMNS.items():
        if name := next((name for name in names if name in normal), None):
            columns[what] = normal[name]
    return columns


def _value(what: str, utterance: Utterance) -> Any:
    return utterance.beside.get(_columns(utterance.beside).get(what, ""))


def _utterance(row: Row) -> Utterance:
    content = row.content
    if not isinstance(content, dict):
        raise Refused("it is no row of named columns")
    columns = _columns(content)
    if unnamed := [each for each in ("dialogue", "side") if each not in columns]:
        raise Refused(f"no column contains the {unnamed[0]}: {' and '.join(unnamed)} can be named by the column map")
    used = [columns[each] for each in _NEEDED if each in columns]
    text = columns.get("text", "text")
    return utterance(
        row,
        name_of(content[columns["dialogue"]], columns["dialogue"]),
        lambda: (name_of(content[columns["side"]], columns["side"]), text_of(content.get(text), text)),
        {key: value for key, value in content.items() if key not in used and value is not None},
    )


def _dialogue(utterances: list[Utterance], sides: Sides) -> Found:
    counts: Counter[str] = Counter()
    ordered = in_order(utterances, [partial(_value, what) for what in _ORDER], counts)
    of_dialogue: dict[str, Any] = {}
    for each in ordered:
        of_dialogue |= {key: value for key, value in each.beside.items() if key in OPTIONAL}
    turns = [
        Utterance(each.row, each.dialogue, each.speaker, each.text,
                  {key: value for key, value in each.beside.items() if key not in OPTIONAL})
        for each in ordered
    ]  # fmt: skip
    line = spoken(turns, sides, of_dialogue, counts)
    known = {_columns(each.row.content).get(what) for each in utterances for what in COLUMNS}
    unknown = [key for each in turns for key in each.beside if key not in known]
    return Found(row=utterances[0].row, line=line, counts=counts, unknown=unknown)
