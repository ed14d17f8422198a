"""Utterances of ConvoKit: ``utterances.jsonl`` or ``.json`` of a corpus folder, one utterance a record.

    {"id": "u1", "conversation_id": "u1", "speaker": "anna", "text": "Hi", "reply-to": null, "timestamp": 1, "meta": {}}

``conversations.json`` and ``speakers.json`` beside it, where they are there, give the metadata of conversations and
speakers. Older names of the keys (``root``, ``user``, ``reply_to``) are read, too. A conversation in which an
utterance has two replies is no dialogue, and refused.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from calibrated_rl.errors import UserError
from calibrated_rl.logs.base import LogProblem, Refused
from calibrated_rl.logs.found import Found, first_of
from calibrated_rl.logs.options import FileSettings
from calibrated_rl.logs.row import Row
from calibrated_rl.logs.sides import Sides
from calibrated_rl.logs.streams import ENDINGS, LogFile
from calibrated_rl.logs.utterances import Utterance, grouped, in_order, name_of, spoken, text_of, utterance

_DIALOGUE, _SPEAKER, _REPLY = ("conversation_id", "root"), ("speaker", "user"), ("reply-to", "reply_to")
_USED = ("text", "meta", *_DIALOGUE, *_SPEAKER)
_KNOWN = ("id", "timestamp", "vectors", *_REPLY)


class ConvoKitFormat:
    """A record is an utterance."""

    title = "ConvoKit"

    def fit(self, content: Any) -> int:
        if not isinstance(content, dict) or "text" not in content:
            return 0
        has_all = all(any(key in content for key in keys) for keys in (_DIALOGUE, _SPEAKER, _REPLY))
        return 4 if has_all else 0

    def dialogues(self, rows: Iterator[Row], settings: FileSettings) -> Iterator[Found | LogProblem]:
        sides = Sides(settings)
        sidecars: dict[Path, tuple[Mapping[str, Any], Mapping[str, Any]]] = {}

        def dialogue(utterances: list[Utterance]) -> Found:
            folder = Path(utterances[0].row.file).parent
            if folder not in sidecars:
                sidecars[folder] = _sidecar(folder, "conversations"), _sidecar(folder, "speakers", "users")
            return _dialogue(utterances, sides, *sidecars[folder])

        yield from grouped(rows, _utterance, dialogue, sides)


def _utterance(row: Row) -> Utterance:
    content = row.content
    if not isinstance(content, dict) or "text" not in content:
        raise Refused("it is no utterance: an object with 'text', 'speaker' and 'conversation_id'")
    speaker = first_of(content, *_SPEAKER)
    if isinstance(speaker, dict):
        speaker = first_of(speaker, "id", "name")
    rest = {key: value for key, value in content.items() if key not in _USED and value not in (None, [], {})}
    meta = content.get("meta") or {}
    apart = not isinstance(meta, dict) or bool(meta.keys() & rest.keys())
    return utterance(
        row,
        name_of(first_of(content, *_DIALOGUE), "conversation_id"),
        lambda: (name_of(speaker, "speaker"), text_of(content["text"], "text")),
        {**rest, **({"meta": meta} if apart else meta)},
    )


def _dialogue(
    utterances: list[Utterance], sides: Sides, conversations: Mapping[str, Any], speakers: Mapping[str, Any]
) -> Found:
    counts: Counter[str] = Counter()
    name = utterances[0].dialogue
    ordered = _chain(utterances) or in_order(utterances, [lambda each: each.beside.get("timestamp")], counts)
    about = conversations.get(name, {})
    about = about.get("meta", about) if isinstance(about, dict) else {"conversation": about}
    present = {each.speaker: speakers[each.speaker] for each in ordered if each.speaker in speakers}
    about = {**about, **({"speakers": present} if present else {})}
    unknown = [key for each in ordered for key in each.row.content if key not in (*_USED, *_KNOWN)]
    line = spoken(ordered, sides, about, counts)
    return Found(row=utterances[0].row, line=line, counts=counts, unknown=unknown)


def _chain(utterances: Sequence[Utterance]) -> list[Utterance] | None:
    """In the order of who replies to whom; None where that does not say it.

    Raises:
        Refused: an utterance has two replies.
    """
    own_ids = [str(each.beside.get("id")) for each in utterances]
    replies: dict[str | None, list[Utterance]] = {}
    for each in utterances:
        target = first_of(each.beside, *_REPLY)
        replies.setdefault(str(target) if target is not None and str(target) in own_ids else None, []).append(each)
    branched = [target for target, all_replies in replies.items() if target is not None and len(all_replies) > 1]
    if branched:
        raise Refused(f"{len(branched)} of its utterances have more than one reply: it branches, and is no dialogue")
    chain: list[Utterance] = []
    following = replies.get(None, []) if len(replies.get(None, [])) == 1 else []
    while following and len(chain) < len(utterances):
        chain += following
        following = replies.get(str(following[0].beside.get("id")), [])
    return chain if len({id(each) for each in chain}) == len(utterances) else None


def _sidecar(folder: Path, *names: str) -> Mapping[str, Any]:
    """``NAME.json`` of the folder, the first that is there; empty without."""
    files = [folder / f"{name}.json{end}" for name in names for end in ("", *ENDINGS)]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        return {}
    try:
        content = json.loads(LogFile.of(file).whole())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not readable JSON: {error}") from error
    return content if isinstance(content, dict) else {}
