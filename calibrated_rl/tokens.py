"""Chat template, token ids, masks: the only place where a dialogue becomes tokens.

The template is taken apart once, at start, into *scaffold* (control tokens, role headers) and content.
Scaffold is encoded with control tokens; content is always encoded as plain text, so that a text which
spells a control token stays text (contract 2). What a side sampled is kept as the sampled ids and never
encoded again (contract 1).

Both sides see the dialogue from their own seat. A side's own turns are the template's ``assistant``, the
other's are ``user``. The fixed greeting opens the simulator's view as the first ``user`` message; in the
policy's view it stands at the end of the system prompt, because templates want a user to speak first.
"""

import copy
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jinja2.exceptions import TemplateError

from calibrated_rl.dialogue import Finish, Scenario, Side, TokenSequence, Turn
from calibrated_rl.errors import UserError

REMEMBERED = 4096
"""Instructions whose ids are kept: those of more scenarios than an update has."""

_MARKS = ("qzsystemqz", "qzfirstqz", "qzsecondqz", "qzthirdqz", "qzfourthqz")


@dataclass(frozen=True, slots=True)
class Scaffold:
    """Token ids between the contents of a conversation."""

    before_system: list[int]
    system_to_user: list[int]
    user_to_own: list[int]
    """After the other side's text: its end of turn, and the header of the own turn."""
    own_to_user: list[int]
    """After the own turn's end-of-turn token: up to where the other side's text begins."""


class ChatTokens:
    """Encodes dialogues for one tokenizer.

    Raises:
        UserError: the tokenizer has no chat template, or one that is not prefix-preserving, has no system
            role, does not close a turn with a single control token, or lets the other side's turn end in plain text.
    """

    def __init__(self, tokenizer: Any, name: str = "model") -> None:
        self.tokenizer = tokenizer
        self.name = name
        if not getattr(tokenizer, "chat_template", None):
            raise UserError(f"{name}: the tokenizer has no chat template, so turns cannot be told apart")
        self.control_ids = frozenset(
            i for i, token in tokenizer.added_tokens_decoder.items() if token.special
        ) | frozenset(tokenizer.all_special_ids)
        self.scaffold, self.end_of_turn = self._take_apart()
        self.control_ids |= self._controls_of_scaffold()
        self._plain = self._plain_encoder()
        self._instructions: dict[str, list[int]] = {}

    def _controls_of_scaffold(self) -> frozenset[int]:
        """Added tokens of the scaffold that nobody flagged as special: a role header that text can spell is a role
        that anybody can take. White space is none; some vocabularies have line breaks as added tokens."""
        parts = self.scaffold
        ids = {*parts.before_system, *parts.system_to_user, *parts.user_to_own, *parts.own_to_user, self.end_of_turn}
        added = self.tokenizer.added_tokens_decoder
        return frozenset(i for i in ids if i in added and added[i].content.strip())

    def _plain_encoder(self) -> Any:
        """A copy of the tokenizer that knows no control tokens, so that text can never become one."""
        from tokenizers import Tokenizer

        if not hasattr(self.tokenizer, "backend_tokenizer"):
            raise UserError(f"{self.name}: the tokenizer has no fast version (a tokenizer.json)")
        state = json.loads(self.tokenizer.backend_tokenizer.to_str())
        for token in state["added_tokens"]:
            # An end of turn that is not flagged special would be matched in text all the same.
            token["special"] = token["special"] or token["id"] in self.control_ids
        plain = Tokenizer.from_str(json.dumps(state))
        plain.encode_special_tokens = True
        plain.no_truncation()
        plain.no_padding()
        return plain

    def encode_text(self, text: str) -> list[int]:
        """Ids of ``text`` as plain text, never a control token.

        Half surrogate pairs become ``?``, and so does a character for which the vocabulary has nothing but a
        control token (an unknown-token that is one): what somebody types must not end a run. Byte-level
        vocabularies that lack a byte (SmolLM2's does) leave it out.
        """
        clean = text.encode("utf-8", errors="replace").decode("utf-8")
        ids = self._encode_plain(clean)
        if self.control_ids.isdisjoint(ids):
            return ids
        # Each character is asked for once: turns may have a million of them.
        unknown = {c for c in set(clean) if not self.control_ids.isdisjoint(self._encode_plain(c))}
        known = "".join("?" if c in unknown else c for c in clean)
        ids = self._encode_plain(known)
        if self.control_ids.isdisjoint(ids):
            return ids
        # The vocabulary itself has the control token as a word: spell by character.
        spelt = {c: [i for i in self._encode_plain(c) if i not in self.control_ids] for c in set(known)}
        return [i for c in known for i in spelt[c]]

    def encode_instructions(self, text: str) -> list[int]:
        """``encode_text`` of what every dialogue of a scenario begins with, encoded once for all of them."""
        if text not in self._instructions:
            if len(self._instructions) == REMEMBERED:
                self._instructions.clear()
            self._instructions[text] = self.encode_text(text)
        return self._instructions[text]

    def _encode_plain(self, text: str) -> list[int]:
        return list(self._plain.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of sampled ids without control tokens."""
        text = self.tokenizer.decode(
            [i for i in ids if i not in self.control_ids], clean_up_tokenization_spaces=False
        )
        return str(text).strip()

    def _encode_scaffold(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _render(self, messages: Sequence[tuple[str, str]]) -> str:
        chat = [{"role": role, "content": content} for role, content in messages]
        try:
            return str(
                self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
            )
        except (TemplateError, TypeError, ValueError, LookupError) as error:
            problem = f"the chat template refuses a plain conversation: {error}"
            raise UserError(f"{self.name}: {problem}") from error

    def _take_apart(self) -> tuple[Scaffold, int]:
        system, first, second, third, fourth = _MARKS
        short = self._render([("system", system), ("user", first)])
        longer = self._render([("system", system), ("user", first), ("assistant", second), ("user", third)])
        longest = self._render(
            [
                ("system", system), ("user", first), ("assistant", second),
                ("user", third), ("assistant", fourth), ("user", first),
            ]
        )  # fmt: skip
        once = all(longer.count(mark) == 1 for mark in (system, first, second, third))
        if not once or short.count(system) != 1 or short.count(first) != 1 or longest.count(fourth) != 1:
            raise UserError(f"{self.name}: the chat template drops or repeats a message of the conversation")
        if not longer.startswith(short) or not longest.startswith(longer):
            raise UserError(
                f"{self.name}: the chat template is not prefix-preserving (an earlier turn is rendered "
                "differently once a later one follows), so sampled tokens could not be kept as they are"
            )
        before_system, rest = short.split(system)
        system_to_user, user_to_own = rest.split(first)
        after_own = longer.split(second)[1].split(third)[0]
        if longest.split(fourth)[1].split(first)[0] != after_own or not longer.endswith(third + user_to_own):
            raise UserError(f"{self.name}: the chat template renders later turns differently from the first")
        closing = self._encode_scaffold(after_own)
        if not closing or closing[0] not in self.control_ids:
            raise UserError(f"{self.name}: the chat template does not close a turn with a control token")
        header = self._encode_scaffold(user_to_own)
        if not any(i in self.tokenizer.added_tokens_decoder or i in self.control_ids for i in header):
            raise UserError(
                f"{self.name}: the chat template ends the other side's turn in plain text ({user_to_own.strip()!r}), "
                "which that side could write itself"
            )
        bos = self.tokenizer.bos_token or ""
        if bos and not before_system.startswith(bos) and self.tokenizer("a").input_ids[:1] == [
            self.tokenizer.bos_token_id
        ]:
            before_system = bos + before_system
        scaffold = Scaffold(
            before_system=self._encode_scaffold(before_system),
            system_to_user=self._encode_scaffold(system_to_user),
            user_to_own=header,
            own_to_user=closing[1:],
        )
        return scaffold, closing[0]


class SideView:
    """One side's growing token sequence in a conversation: what its engine is given, token for token."""

    def __init__(self, tokens: ChatTokens, scenario: Scenario, side: Side) -> None:
        self._tokens = tokens
        self.side = side
        self._ids: list[int] = []
        self._mask: list[bool] = []
        self._logprobs: list[float] = []
        self._versions: list[int] = []
        self._turns: list[int] = []
        self._system = (
            f"{scenario.policy_instructions}\n{scenario.greeting}"
            if side is Side.POLICY
            else scenario.user_instructions
        )
        self._turn_count = 0
        self._open = False

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def prompt_ids(self) -> list[int]:
        """Ids up to where this side's next token is sampled."""
        assert self._open, "the other side has not spoken yet"
        return self._ids

    def _extend(
        self,
        ids: Sequence[int],
        turn: int,
        own: bool = False,
        logprobs: Sequence[float] | None = None,
        versions: Sequence[int] | None = None,
    ) -> None:
        self._ids.extend(ids)
        self._mask.extend([own] * len(ids))
        self._logprobs.extend(logprobs if logprobs is not None else [float("nan")] * len(ids))
        self._versions.extend(versions if versions is not None else [-1] * len(ids))
        self._turns.extend([turn] * len(ids))

    def hear(self, turn: Turn) -> None:
        """Append a turn of the other side (or the greeting, whichever side says it)."""
        assert not self._open, "a side cannot hear two turns in a row"
        scaffold, index = self._tokens.scaffold, self._turn_count
        self._turn_count += 1
        if index == 0 and self.side is Side.POLICY:
            return  # the greeting stands in the policy's system prompt
        if not self._ids:
            self._extend(scaffold.before_system, -1)
            self._extend(self._tokens.encode_instructions(self._system), -1)
            self._extend(scaffold.system_to_user, -1)
        else:
            self._extend(scaffold.own_to_user, index)
        self._extend(self._tokens.encode_text(turn.text), index)
        self._extend(scaffold.user_to_own, index)
        self._open = True

    def speak(
        self,
        ids: Sequence[int],
        logprobs: Sequence[float] | None = None,
        versions: Sequence[int] | None = None,
    ) -> None:
        """Append this side's own turn as its ids, closing it with a masked end-of-turn if it has none."""
        assert self._open, "a side cannot speak twice in a row"
        self._extend(ids, self._turn_count, own=True, logprobs=logprobs, versions=versions)
        if not ids or ids[-1] != self._tokens.end_of_turn:
            self._extend([self._tokens.end_of_turn], self._turn_count)
        self._turn_count += 1
        self._open = False

    def speak_text(self, text: str) -> None:
        """Append an own turn that is only known as text: a logged one, or one of a script."""
        self.speak([*self._tokens.encode_text(text), self._tokens.end_of_turn])

    def copy(self) -> "SideView":
        """An independent view with the same tokens."""
        other = copy.copy(self)
        for name in ("_ids", "_mask", "_logprobs", "_versions", "_turns"):
            setattr(other, name, list(getattr(self, name)))
        return other

    def without_mask(self) -> "SideView":
        """The same view in which nothing said so far carries loss."""
        other = self.copy()
        other._mask = [False] * len(other._mask)
        return other

    def sequence(self) -> TokenSequence:
        """A copy of the view so far."""
        return TokenSequence(
            ids=np.asarray(self._ids, dtype=np.int32),
            mask=np.asarray(self._mask, dtype=np.bool_),
            logprobs=np.asarray(self._logprobs, dtype=np.float32),
            versions=np.asarray(self._versions, dtype=np.int32),
            turns=np.asarray(self._turns, dtype=np.int32),
        )


def view_of(tokens: ChatTokens, scenario: Scenario, side: Side, turns: Sequence[Turn]) -> SideView:
    """The view of ``side`` on ``turns`` that are known as text only."""
    view = SideView(tokens, scenario, side)
    for index, turn in enumerate(turns):
        if turn.side is side and index > 0:
            view.speak_text(turn.text)
        else:
            view.hear(turn)
    return view


def finish_of(tokens: ChatTokens, ids: Sequence[int]) -> Finish:
    """How a sampled turn ended, read off its ids."""
    if not tokens.control_ids.isdisjoint(ids[:-1]):
        return Finish.DEGENERATE
    if ids and ids[-1] == tokens.end_of_turn:
        return Finish.STOP
    if ids and ids[-1] in tokens.control_ids:
        return Finish.DEGENERATE
    return Finish.LENGTH
