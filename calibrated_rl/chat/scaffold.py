"""Scaffold: the token ids that a chat template writes between the contents of a conversation."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from calibrated_rl.chat.template import OwnTurn, TemplateParts
from calibrated_rl.errors import UserError, printable


@dataclass(frozen=True, slots=True)
class Scaffold:
    """Token ids between the contents of a conversation, and plain text next to a content."""

    before_system: list[int]
    system_text: tuple[str, str]
    """Before and after the instructions."""
    system_to_user: list[int]
    """Empty where nothing but plain text separates instructions and the first user text."""
    first_text: str
    """Before the first user text."""
    user_text: str
    """Before each later one."""
    after_user: str
    """After each."""
    user_to_own: list[int]
    """After the other side's text: its end of turn, and the header of the own turn."""
    own_header: str
    """What of that header stands behind its last control token."""
    own_lead: list[int]
    """What an own turn that is known as text begins with: the end of reasoning that the prompt has opened."""
    own_text: str
    """Plain text of the template before an own text, which the side samples itself."""
    own_to_user: list[int]
    """After the own turn's end-of-turn token: up to where the other side's text begins."""

    @property
    def ids(self) -> list[int]:
        """All ids outside of turns."""
        return [*self.before_system, *self.system_to_user, *self.user_to_own, *self.own_to_user]


class ScaffoldEncoder:
    """Encodes a template's parts with control tokens."""

    def __init__(
        self,
        tokenizer: Any,
        encode_plain: Callable[[str], list[int]],
        control_ids: Collection[int],
        special: Collection[int],
        name: str,
    ) -> None:
        """
        Args:
            control_ids: what no text may become.
            special: what may end a turn.
            name: of the model, for errors.
        """
        self._tokenizer, self._encode_plain, self._name = tokenizer, encode_plain, name
        self._control_ids, self._special = control_ids, special

    def scaffold(self, parts: TemplateParts, own_turn: OwnTurn) -> tuple[Scaffold, tuple[int, ...]]:
        """The scaffold, and what ends an own turn: first what is sampled, then what stands in its place in a history,
        if that is another token.

        Raises:
            UserError: own turns or the other side's do not end in a control token.
        """
        before_opening, opening, before_system = self._gap(self._with_bos(parts.before_system))
        after_system, system_to_user, first_text = self._gap(parts.system_to_user)
        end, after_end = self._end(parts.closing)
        if end not in self._special:
            raise UserError(f"{self._name}: the chat template does not close a turn with a control token")
        after_own, own_to_user, user_text = self._gap(after_end)
        after_user, header, before_own = self._gap(own_turn.prompt)
        last_end, _ = self._end(parts.last_closing)
        # A header there comes of a template that always asks for an answer.
        headers = {*opening, *system_to_user, *own_to_user, *header}
        ends = (last_end, end) if last_end in self._special and last_end not in headers else (end,)
        if not header:
            raise UserError(
                f"{self._name}: the chat template ends the other side's turn in plain text "
                f"({printable(own_turn.prompt.strip())!r}), which that side could write itself"
            )
        before_lead, lead, own_text = self._gap(own_turn.lead)
        scaffold = Scaffold(
            before_system=self._encode_plain(before_opening) + opening,
            system_text=(before_system, after_system),
            system_to_user=system_to_user,
            first_text=first_text,
            user_text=user_text,
            after_user=after_user,
            user_to_own=header + self._encode_plain(before_own),
            own_header=before_own,
            own_lead=self._encode_plain(before_lead) + lead,
            own_text=own_text,
            own_to_user=self._encode_plain(after_own) + own_to_user,
        )
        return scaffold, tuple(dict.fromkeys(ends))

    def _with_bos(self, text: str) -> str:
        """``text`` after the token that begins a sequence, where the tokenizer adds it and the template does not."""
        bos = self._tokenizer.bos_token or ""
        added = bos and self._tokenizer("a").input_ids[:1] == [self._tokenizer.bos_token_id]
        return bos + text if added and not text.startswith(bos) else text

    def _gap(self, text: str) -> tuple[str, list[int], str]:
        """Plain text before the first control token, ids from there to the last one, and plain text after that.
        Without a control token all of it comes last."""
        ids, offsets = self._with_offsets(text)
        controls = [at for at, number in enumerate(ids) if number in self._control_ids]
        if not controls:
            return "", [], text
        first, last = controls[0], controls[-1]
        return text[: offsets[first][0]], ids[first : last + 1], text[offsets[last][1] :]

    def _end(self, closing: str) -> tuple[int, str]:
        """The token that ``closing`` begins with (-1: none), and what follows it."""
        ids, offsets = self._with_offsets(closing)
        return (ids[0], closing[offsets[0][1] :]) if ids else (-1, closing)

    def _with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        encoding = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return list(encoding["input_ids"]), [(first, last) for first, last in encoding["offset_mapping"]]
