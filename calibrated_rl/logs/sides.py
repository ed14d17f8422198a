"""Which speaker is which side: as the settings say, by the common names, or by who speaks first."""

from collections.abc import Mapping, Sequence
from typing import Any

from calibrated_rl.data.dialogue import Side
from calibrated_rl.errors import printable
from calibrated_rl.logs.base import Refused
from calibrated_rl.logs.options import FileSettings
from calibrated_rl.logs.record import COMMON_SIDES

BY_ORDER = "dialogues in which the user is who speaks first"
SEVERAL = "dialogues with several speakers on one side"


class Sides:
    """Names of speakers as sides."""

    def __init__(self, settings: FileSettings) -> None:
        self._named = {Side.POLICY: _selectors(settings.policy), Side.USER: _selectors(settings.users)}

    @property
    def are_named(self) -> bool:
        """Whether the settings name a side."""
        return any(self._named.values())

    def of(self, name: str, beside: Mapping[str, Any] | None = None) -> Side | None:
        """The side of a speaker; None: neither the settings nor the common names have it.

        Args:
            beside: what is said beside the turn, which ``KEY=VALUE`` looks at.
        """
        for side, selectors in self._named.items():
            if any(_selects(selector, name, beside or {}) for selector in selectors):
                return side
        if self.are_named:
            unnamed = [side for side, selectors in self._named.items() if not selectors]
            return unnamed[0] if unnamed else COMMON_SIDES.get(name.strip().lower())
        return COMMON_SIDES.get(name.strip().lower())

    def of_all(self, speakers: Sequence[tuple[str, Mapping[str, Any]]]) -> tuple[list[Side], list[str]]:
        """The sides of a dialogue's turns, and what had to be decided (``BY_ORDER``, ``SEVERAL``).

        Two speakers of whom neither is known are the user, who speaks first, and the policy; of one that is known, the
        other is the other side.

        Args:
            speakers: of each turn, with what is said beside it.

        Raises:
            Refused: more than two, and one of them is of no side.
        """
        names = list(dict.fromkeys(name for name, _ in speakers))
        sides = [self.of(name, beside) for name, beside in speakers]
        known = {name: side for (name, _), side in zip(speakers, sides, strict=True) if side is not None}
        decided = []
        if missing := [name for name in names if name not in known]:
            if self.are_named or len(names) > 2:
                raise Refused(
                    f"of {len(names)} speakers {printable(repr(missing[0]), 40)} is of neither side: name the policy's "
                    "speakers (policy), or the users (users)"
                )
            decided += [] if known else [BY_ORDER]
            side = next(iter(known.values())).other if known else Side.USER
            for name in missing:
                known[name], side = side, side.other
        found = [own or known[name] for (name, _), own in zip(speakers, sides, strict=True)]
        for side in Side:
            if len({name for (name, _), own in zip(speakers, found, strict=True) if own is side}) > 1:
                decided.append(SEVERAL)
                break
        return found, decided


def _selectors(names: Sequence[str]) -> list[tuple[str, str]]:
    """Each name as key and value; the key is empty for a speaker's own name."""
    return [(key.strip(), value.strip()) if equals else ("", name) for name in names
            for key, equals, value in [name.partition("=")]]  # fmt: skip


def _selects(selector: tuple[str, str], name: str, beside: Mapping[str, Any]) -> bool:
    key, wanted = selector
    if not key:
        return name.strip().lower() == wanted.strip().lower()
    return key in beside and str(beside[key]).strip().lower() == wanted.lower()
