"""SimulatorArena: people with an assistant on problems of mathematics and on documents, with their ratings.

    {"user_queries": ["Hi", ...], "ai_responses": ["Hello", ...], "overall_rating": 7, ...}

The two lists take turns, the person first; either may be a text that holds a list. A picture that a person sends is a
list with its file name, ``[image]`` in the text. What else a record says is metadata: ``overall_rating`` (1 to 10) and
``problem_1_correctness`` of mathematics, ``overall_interaction_rating`` and ``overall_document_rating`` of documents.
"""

import ast
from collections import Counter
from collections.abc import Iterator
from typing import Any

from calibrated_rl.components.plain_data import kind_of
from calibrated_rl.data.dialogue import Side
from calibrated_rl.logs.base import LogProblem, Refused
from calibrated_rl.logs.chat_messages import PARTS
from calibrated_rl.logs.found import Found, id_of, line_of, one_a_row, parsed
from calibrated_rl.logs.options import FileSettings
from calibrated_rl.logs.row import Row

_QUERIES, _RESPONSES = "user_queries", "ai_responses"
_KNOWN = (
    "user_id", "workerId", "math_expertise", "dataset", "cheat", "turk_solution", "turk_final_answer",
    "turk_problem_2_solution", "turk_problem_2_final_answer", "turk_initial_solution", "strength_weakness",
    "strength_weakness_for_problem_2", "why_stop", "why_stop_other_reason", "why_stop_for_problem_2",
    "why_stop_other_reason_for_problem_2", "why_ask_tutor", "overall_rating", "overall_rating_for_problem_2",
    "moved_to_problem_2", "problem_1_turns", "problem_id", "level", "type", "model", "solve_or_not",
    "problem_2_solve_or_not", "problem_1_correctness", "problem_2_correctness", "question_location",
    "similar_question_location", "turn_level_vote", "problem_2_turn_level_vote", "document_type",
    "selected_intent_index", "intent", "document_history", "bullet_points", "bullet_points_responses", "strength",
    "weakness", "overall_interaction_rating", "overall_document_rating", "edit_document", "edit_document_index",
    "edit_document_old",
)  # fmt: skip
_LONGEST_LITERAL = 1_000_000
"""Characters of a list as text: Python's parser takes hundreds of bytes for each."""


class SimulatorArenaFormat:
    """A record is a dialogue."""

    title = "SimulatorArena"

    def fit(self, content: Any) -> int:
        return 4 if isinstance(content, dict) and {_QUERIES, _RESPONSES} <= content.keys() else 0

    def dialogues(self, rows: Iterator[Row], settings: FileSettings) -> Iterator[Found | LogProblem]:
        yield from one_a_row(rows, lambda row: iter([_found(row)]))


def _found(row: Row) -> Found:
    content, counts = row.content, Counter[str]()
    if not isinstance(content, dict) or not {_QUERIES, _RESPONSES} <= content.keys():
        raise Refused(f"'{_QUERIES}' or '{_RESPONSES}' is missing")
    queries, responses = (_listed(content[key], key) for key in (_QUERIES, _RESPONSES))
    if not 0 <= len(queries) - len(responses) <= 1:
        raise Refused(f"it has {len(queries)} {_QUERIES} and {len(responses)} {_RESPONSES}: they do not take turns")
    turns = []
    for index, query in enumerate(queries):
        turns.append({"side": Side.USER.value, "text": _text(query, f"{_QUERIES}[{index}]", counts)})
        if index < len(responses):
            text = _text(responses[index], f"{_RESPONSES}[{index}]", counts)
            turns.append({"side": Side.POLICY.value, "text": text})
    own_id = id_of(content, "id")
    used = (_QUERIES, _RESPONSES, *(("id",) if own_id else ()))
    line, unknown = line_of(content, turns, used=used, known=_KNOWN)
    if own_id:
        line["id"] = own_id
    return Found(row=row, line=line, unknown=unknown, counts=counts)


def _listed(value: Any, name: str) -> list[Any]:
    """A list, or the one that a text holds, in JSON or as Python writes it."""
    value = parsed(value)
    if isinstance(value, str) and len(value) <= _LONGEST_LITERAL:
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            raise Refused(f"'{name}' is a text that holds no list") from None
    if not isinstance(value, list):
        raise Refused(f"'{name}' is {kind_of(value)}, not a list")
    return value


def _text(value: Any, place: str, counts: Counter[str]) -> str:
    """The text of a turn; empty where nobody spoke."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        counts[PARTS] += len(value)
        return "\n".join(["[image]"] * len(value))
    raise Refused(f"{place} is {kind_of(value)}, not a text")
