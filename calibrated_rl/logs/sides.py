"""Which speaker is which side: as the settings say, by the common names, or by who speaks first."""

from collections.abc import Mapping, Sequence
from typing import Any

from calibrated_rl.data.dialogue import Side
from calibrated_rl.errors import UserError, printable
from calibrated_rl.logs.base import Refused
from calibrated_rl.logs.options import FileSettings
from calibrated_rl.logs.record import COMMON_SIDES

BY_ORDER = "dialogues in which the user is who speaks first"
SEVERAL = "dialogues with several speakers on one side"


class Sides:
    """Names of speakers as sides."""

    def __init__(self, settings: FileSettings) -> None:
        self._named = {Side.POLICY: _selectors(settings.policy), Side.USER: _selectors(settings.users)}
        self._mapped: dict[str, str] = {own: what for what, own in settings.columns.items()}
        self._speakers: dict[str, None] = {}
        """Who spoke so far."""
        self._is_matched = not settings.policy

    @property
    def are_named(self) -> bool:
        """Whether the settings name a side."""
        return any(self._named.values())

    def of(self, name: str, beside: Mapping[str, Any] | None = None) -> Side | None:
        """The side of a speaker; None: neither the settings nor the common names have it.

        Args:
            beside: the whole message or row, its speaker included, which ``KEY=VALUE`` looks at.
        """
        self._speakers[name] = None
        for side, selectors in self._named.items():
            if any(self._selects(selector, name, beside or {}) for selector in selectors):
                self._is_matched = self._is_matched or side is Side.POLICY
                return side
        if self.are_named:
            unnamed = [side for side, selectors in self._named.items() if not selectors]
            return unnamed[0] if unnamed else COMMON_SIDES.get(name.strip().lower())
        return COMMON_SIDES.get(name.strip().lower())

    def refuse_unmatched(self, file: str) -> None:
        """Refuse settings that name speakers of the policy, of whom none has spoken in ``file``.

        Raises:
            UserError: names some who have.
        """
        if self._is_matched or not self._speakers:
            return
        wanted = ", ".join(f"{key}={value}" if key else value for key, value in self._named[Side.POLICY])
        present = ", ".join(printable(repr(name), 40) for name in list(self._speakers)[:5])
        raise UserError(
            f"{file} has no turn of the policy's side, which is {wanted} (policy); its speakers are {present}: name "
            "one of them, or KEY=VALUE of what stands beside a turn"
        )

    def _selects(self, selector: tuple[str, str], name: str, beside: Mapping[str, Any]) -> bool:
        key, wanted = selector
        if not key:
            return name.strip().lower() == wanted.strip().lower()
        places = [each for each in (key, self._mapped.get(key, key)) if each in beside]
        return any(str(beside[each]).strip().lower() == wanted.lower() for each in places)

    def of_all(self, speakers: Sequence[tuple[str, Mapping[str, Any]]]) -> tuple[list[Side], list[str]]:
        """The sides of a dialogue's turns, and what had to be decided (``BY_ORDER``, ``SEVERAL``).

        Two speakers of whom neither is known are the user, who speaks first, and the policy; of one that is known, the
        other is the other side.

        Args:
            speakers: of each turn, with its whole record.

        Raises:
            Refused: more than two, and one of them is of no side.
        """
        names = list(dict.fromkeys(name for name, _ in speakers))
        sides = [self.of(name, beside) for name, beside in speakers]
        side_of_name = {name: side for (name, _), side in zip(speakers, sides, strict=True) if side is not None}
        decided = []
        if unknown_names := [name for name in names if name not in side_of_name]:
            if self.are_named or len(names) > 2:
                raise Refused(
                    f"of {len(names)} speakers {printable(repr(unknown_names[0]), 40)} is of neither side: name the "
                    "policy's speakers (policy), or the users (users)"
                )
            decided += [] if side_of_name else [BY_ORDER]
            side = next(iter(side_of_name.values())).other if side_of_name else Side.USER
            for name in unknown_names:
                side_of_name[name], side = side, side.other
        sides_of_turns = [side or side_of_name[name] for (name, _), side in zip(speakers, sides, strict=True)]
        for side in Side:
            names_of_side = {name for (name, _), its in zip(speakers, sides_of_turns, strict=True) if its is side}
            if len(names_of_side) > 1:
                decided.append(SEVERAL)
                break
        return sides_of_turns, decided


def _selectors(names: Sequence[str]) -> list[tuple[str, str]]:
    """Each name as key and value; the key is empty for a speaker's own name."""
    return [(key.strip(), value.strip()) if equals else ("", name) for name in names
            for key, equals, value in [name.partition("=")]]  # fmt: skip
