"""One dialogue of the project's own format, as a line of JSON Lines has it; every other format is converted into it.

    {"id": 7, "turns": [{"side": "user", "text": "For two"}, {"side": "policy", "text": "Which day?"}]}

- ``id``: required; string or integer, once in all files that are read together.
- ``turns``: required; at least one of side ``user``. ``side`` is ``user`` or ``policy``, ``text`` is not
  blank. A side's consecutive turns are joined by line breaks. If the policy's side speaks first, that turn is
  the dialogue's greeting; otherwise the greeting of the config is put before it.
- ``goal``: optional object; the other side's private goal, as the task understands it.
- ``reward``, ``success``: optional number and boolean, always together; what the dialogue was worth: its
  whole return, rewards of turns included.
- ``ending``: optional string; without it the task says why the dialogue ended, or it is ``log_end``.
- ``split``: optional; ``calibration``, ``monitor``, ``tuning`` or ``held_out``. Without it the id decides.
- ``policy_instructions``, ``user_instructions``: optional strings; what each side is told, instead of the
  config's.
- ``split_group``: optional string; lines of one group without a ``split`` are drawn into the same one, because they
  share humans' turns.
- ``asked``: optional boolean; true for a reply that a human was asked for (``calibrated-rl ask``): only the last turn,
  of side ``user``, is a human's. The turns before were said by a policy and a simulator, and nothing is learned from
  them. Such a dialogue is not over: it has no outcome, and its ending is ``asked`` unless the line has one.
- ``metadata``: optional object, of the dialogue and of each turn; kept with the dialogue, read by nothing else.

Other keys are kept as metadata, too. One that looks like a misspelt key of these is refused, so that what it says is
not silently lost; ``strict`` refuses all.
"""

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from calibrated_rl.components.plain_data import kind_of
from calibrated_rl.data.dialogue import Side, Split
from calibrated_rl.errors import printable
from calibrated_rl.logs.base import Refused

WANTED = (
    'wanted is one JSON object a line, at least {"id": ..., "turns": [{"side": "user", "text": ...}, ...]}, or a file '
    "of another known format (docs/logs.md)"
)

OPTIONAL: dict[str, tuple[type, ...]] = {
    "goal": (dict,),
    "reward": (int, float),
    "success": (bool,),
    "ending": (str,),
    "split": (str,),
    "split_group": (str,),
    "policy_instructions": (str,),
    "user_instructions": (str,),
    "asked": (bool,),
}
"""Optional keys with the types of their values."""
METADATA = "metadata"
KEYS = ("id", "turns", *OPTIONAL, METADATA)
_TURN_KEYS = ("side", "text", METADATA)
MISSPELT = 0.75
"""Likeness (``difflib``) from which on an unknown key is taken for a misspelt one: ``gaol`` and ``rewrd`` are,
``model``, ``ended`` and ``language`` are not."""
_JSON_NAMES = {dict: "object", int: "number", float: "number", bool: "boolean", str: "string"}

COMMON_SIDES = {
    **dict.fromkeys(("user", "human", "customer", "client", "caller", "visitor", "prompter"), Side.USER),
    **dict.fromkeys(
        ("policy", "assistant", "agent", "bot", "chatbot", "gpt", "chatgpt", "model", "ai", "operator", "advisor"),
        Side.POLICY,
    ),
}
"""Names that other formats give the two sides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonlRecord:
    """One dialogue that fits."""

    id: str
    line: int
    file: str = ""
    turns: tuple[tuple[Side, str], ...]
    """Alternating."""
    split: Split | None
    optional: Mapping[str, Any] = field(default_factory=dict)
    """The optional keys that the line has."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    turn_metadata: tuple[tuple[Mapping[str, Any], ...], ...] = ()
    """For each of ``turns`` the metadata of the turns that were joined in it; empty if no turn has any."""


def record_of(raw: Any, *, file: str, line: int, strict: bool = False) -> JsonlRecord:
    """The dialogue that ``raw``, a JSON value, contains.

    Args:
        strict: refuse every key that is not known.

    Raises:
        Refused: it does not fit.
    """
    if not isinstance(raw, dict):
        raise Refused("the line is not a JSON object")
    if missing_keys := [key for key in ("id", "turns") if key not in raw]:
        raise Refused(f"'{missing_keys[0]}' is missing")
    metadata = _metadata(raw, KEYS, "", strict)
    if not isinstance(raw["id"], str | int) or isinstance(raw["id"], bool) or not str(raw["id"]).strip():
        raise Refused("'id' is neither a string nor an integer, or blank")
    optional = {key: raw[key] for key in OPTIONAL if raw.get(key) is not None}
    if problem := optional_problem(optional):
        raise Refused(problem)
    turns, turn_metadata = _turns(raw["turns"], strict)
    if optional.get("asked") and turns[-1][0] is not Side.USER:
        raise Refused("'asked' is true, and the last turn is not the user's: it is the reply that was asked for")
    split = optional.get("split")
    return JsonlRecord(
        id=str(raw["id"]), line=line, file=file, turns=turns, split=None if split is None else Split(split),
        optional=optional, metadata=metadata, turn_metadata=turn_metadata,
    )  # fmt: skip


def optional_problem(optional: Mapping[str, Any]) -> str | None:
    """Why the optional keys of a dialogue do not fit, or None."""
    for key, value in optional.items():
        if not isinstance(value, OPTIONAL[key]) or (isinstance(value, bool) and bool not in OPTIONAL[key]):
            return f"'{key}' is not of type {_JSON_NAMES[OPTIONAL[key][0]]} (it is {kind_of(value)})"
    if "ending" in optional and not optional["ending"].strip():
        return "'ending' is blank: leave it out, and the task says why the dialogue ended"
    if ("reward" in optional) != ("success" in optional):
        return "'reward' and 'success' go together: give both or neither"
    if not _finite(optional.get("reward", 0.0)):
        return "'reward' is not a finite number"
    if optional.get("asked") and "reward" in optional:
        return "'asked' and 'reward' exclude each other: a dialogue that was asked about is not over"
    split = optional.get("split")
    if split is not None and split not in list(Split):
        return f"'split' is {_unknown(split, tuple(Split))}"
    return None


def _metadata(raw: Mapping[str, Any], known: Sequence[str], place: str, strict: bool) -> dict[str, Any]:
    """What ``raw`` says beside its known keys.

    Raises:
        Refused: an unknown key looks misspelt, or is refused as all are; ``metadata`` is no object.
    """
    more = raw.get(METADATA)
    if more is not None and not isinstance(more, dict):
        raise Refused(f"{place}'{METADATA}' is not of type object (it is {kind_of(more)})")
    unknown = {key: value for key, value in raw.items() if key not in known}
    for key in unknown:
        if strict or difflib.get_close_matches(_normal(key), known, n=1, cutoff=MISSPELT):
            advice = "" if strict else f"; if it is what it says, put it under '{METADATA}'"
            raise Refused(f"{place}unknown key {_unknown(key, known)}{advice}")
    return {**unknown, **(more or {})}


def _normal(word: str) -> str:
    return word.lower().replace("-", "_").replace(" ", "_")


def _unknown(word: str, valid_names: Sequence[str]) -> str:
    """``'wrod'; did you mean 'word'?``, or with all that are known."""
    close = difflib.get_close_matches(_normal(word), valid_names, n=1)
    # Not only the nearest: it may not be what was meant.
    hint = f"; did you mean '{close[0]}'?" if close else ","
    return f"'{printable(word, 40)}'{hint} known are {', '.join(valid_names)}"


def _finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an integer beyond the range of a float
        return False


def _turns(raw: Any, strict: bool) -> tuple[tuple[tuple[Side, str], ...], tuple[tuple[Mapping[str, Any], ...], ...]]:
    """The turns, a side's consecutive ones joined, and the metadata of each, if any has some."""
    if not isinstance(raw, list) or not raw:
        raise Refused("'turns' is not a list of at least one turn")
    turns: list[tuple[Side, str]] = []
    metadata: list[list[Mapping[str, Any]]] = []
    for index, turn in enumerate(raw):
        place = f"turns[{index}]"
        side, text = _turn(turn, place)
        more = _metadata(turn, _TURN_KEYS, f"{place}: ", strict)
        if turns and turns[-1][0] is side:
            turns[-1] = (side, f"{turns[-1][1]}\n{text}")
        else:
            turns.append((side, text))
            metadata.append([])
        if more:
            metadata[-1].append(more)
    if all(side is Side.POLICY for side, _ in turns):
        raise Refused("the user never speaks")
    return tuple(turns), tuple(map(tuple, metadata)) if any(metadata) else ()


def _turn(turn: Any, place: str) -> tuple[Side, str]:
    if not isinstance(turn, dict):
        raise Refused(f"{place} is not an object with 'side' and 'text' (it is {kind_of(turn)})")
    if not {"side", "text"}.issubset(turn):
        has = ", ".join(printable(repr(key), 40) for key in list(turn)[:5]) or "no key"
        raise Refused(f"{place} is not an object with 'side' and 'text' (it has {has})")
    if turn["side"] not in list(Side):
        common = COMMON_SIDES.get(str(turn["side"]).strip().lower())
        hint = f"; did you mean '{common}'?" if common else ""
        raise Refused(f"{place}: 'side' is {printable(repr(turn['side']), 40)}, not 'user' or 'policy'{hint}")
    if not isinstance(turn["text"], str):
        raise Refused(f"{place}: 'text' is {kind_of(turn['text'])}: 'text' is blank or no string")
    if not turn["text"].strip():
        raise Refused(f"{place}: 'text' is blank or no string")
    return Side(turn["side"]), turn["text"].strip()
