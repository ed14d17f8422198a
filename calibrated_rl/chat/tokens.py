"""Chat template, token ids, masks: the only place where a dialogue becomes tokens.

The template is taken apart once, at start (``chat_template.py``), into *scaffold* (control tokens, role headers) and
content. Content is always encoded as plain text (``plain_text.py``), so that a text which spells a control token stays
text (contract 2); plain text of the template that touches content is encoded together with it, as the tokenizer would
do it with the whole. What a side sampled stays as the sampled ids and is never encoded again (contract 1), its
reasoning
included: its own next prompt has its own earlier thoughts, where a template may drop them from a history. What it says
is without them.

Both sides see the dialogue from their own seat. A side's own turns are the template's ``assistant``, the
other's are ``user``. The fixed greeting opens the simulator's view as the first ``user`` message; in the
policy's view it stands at the end of the system prompt, because templates want a user to speak first.
"""

import copy
import os.path
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from calibrated_rl.chat.plain_text import is_white, plain_encoder
from calibrated_rl.chat.reasoning import divided, divider, find_marks, without_reasoning
from calibrated_rl.chat.scaffold import ScaffoldEncoder
from calibrated_rl.chat.template import ChatTemplate, own_turn, take_apart
from calibrated_rl.data.dialogue import Finish, Scenario, Side, TokenSequence, Turn

REMEMBERED = 4096
"""Instructions whose ids are cached: those of more scenarios than an update has."""


class ChatTokens:
    """Encodes dialogues for one tokenizer.

    Raises:
        UserError: the tokenizer has no chat template, or one that is not prefix-preserving, does not close a turn with
            a single control token, or lets the other side's turn end in plain text; or ``settings`` has what the
            template does not know.
    """

    def __init__(
        self, tokenizer: Any, name: str = "model", *, settings: Mapping[str, Any] | None = None, date: str = "",
        secret_after: str = "",
    ) -> None:  # fmt: skip
        """
        Args:
            name: of the model's part in the config, or of the model.
            settings: variables of the template (``chat_template_kwargs``), such as ``enable_thinking``.
            date: what the template takes for today, as YYYY-MM-DD; empty: today.
            secret_after: of a turn of the other side that begins with these words only they are heard
                (``SecretiveTask``); empty: all is heard.
        """
        self.tokenizer = tokenizer
        self.name = name
        self._secret_after = secret_after
        self.template = ChatTemplate(tokenizer, name, settings or {}, date)
        added = {number: str(token.content) for number, token in tokenizer.added_tokens_decoder.items()}
        special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        special |= set(tokenizer.all_special_ids)
        self.control_ids = special | {number for number, content in added.items() if not is_white(content)}
        """What no text may become: every added token that is not white space, flagged special or not."""
        names = {added[i] for i in self.control_ids if i in added}
        self.marks = find_marks(names, self.template.source)
        self._known = frozenset(tokenizer.get_vocab().values())
        self._plain = plain_encoder(tokenizer, self.control_ids, name)
        parts = take_apart(self.template.render, name)
        self.folds_instructions = parts.folded
        """Whether the template has no place for instructions, which then open the first user turn."""
        self._trimmed = parts.trimmed
        apart = divider([*names, *self.marks.all])
        self._own = own_turn(parts, lambda text: divided(apart, text), self.marks, name)
        self.may_think = bool(self.marks.pairs) and not self._own.closes_reasoning
        """Whether the side may reason before it speaks, as far as its template tells."""
        encoder = ScaffoldEncoder(tokenizer, self._encode_plain, self.control_ids, special, name)
        self.scaffold, self.ends = encoder.scaffold(parts, self._own)
        self.end_of_turn = self.ends[0]
        """What closes an own turn that is known as text, or that was cut."""
        self._opens, self._closes = (
            frozenset(tokenizer.convert_tokens_to_ids([*marks])) if self.marks.are_tokens else frozenset()
            for marks in (self.marks.pairs.keys(), self.marks.pairs.values())
        )
        headers = self.control_ids.intersection([*self.scaffold.ids, *self._encode_scaffold(parts.tool)])
        reasoning_ids = {*self._opens, *self._closes, *self.scaffold.own_lead}
        self.stop_ids = frozenset(((special | headers) - reasoning_ids) | set(self.ends))
        """What ends a turn when it is sampled: ends of turns, role headers, everything that is flagged special. Other
        added tokens, such as those around reasoning and calls of tools, are the side's own to sample."""
        self._instructions: dict[str, list[int]] = {}

    # ---- text to ids ---------------------------------------------------------------------------------

    def encode_text(self, text: str) -> list[int]:
        """Ids of ``text`` as plain text, never a control token.

        Half surrogate pairs become ``?``, and so does a character for which the vocabulary has nothing but a
        control token (an unknown-token that is one): what a user types must not end a run. Byte-level
        vocabularies that lack a byte (SmolLM2's does) leave it out.
        """
        clean = text.encode("utf-8", errors="replace").decode("utf-8")
        ids = self._encode_plain(clean)
        if self.control_ids.isdisjoint(ids):
            return ids
        # Each character is looked up once: turns may have a million of them.
        unknown = {c for c in set(clean) if not self.control_ids.isdisjoint(self._encode_plain(c))}
        encodable = "".join("?" if c in unknown else c for c in clean)
        ids = self._encode_plain(encodable)
        if self.control_ids.isdisjoint(ids):
            return ids
        # The vocabulary itself has the control token as a word: that word is spelt by character.
        encoding = self._plain.encode(encodable, add_special_tokens=False)
        spelt: list[int] = []
        for number, (first, last) in zip(encoding.ids, encoding.offsets, strict=True):
            letters = encodable[first:last] if number in self.control_ids else ""
            spelt += [i for c in letters for i in self._encode_plain(c) if i not in self.control_ids]
            spelt += [] if number in self.control_ids else [number]
        return spelt

    def encode_instructions(self, text: str) -> list[int]:
        """``encode_text`` of what every dialogue of a scenario begins with, encoded once for all of them."""
        if text not in self._instructions:
            if len(self._instructions) == REMEMBERED:
                self._instructions.clear()
            self._instructions[text] = self.encode_text(text)
        return self._instructions[text]

    def _encode_scaffold(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _encode_plain(self, text: str) -> list[int]:
        return list(self._plain.encode(text, add_special_tokens=False).ids)

    def opening(self, instructions: str, text: str) -> tuple[list[int], list[int]]:
        """Ids of the instructions with what stands around them, and of the first user text up to its end."""
        scaffold = self.scaffold
        system_prefix, system_suffix = scaffold.system_text
        system, user_text = self._fit("system", instructions), self._fit("user", audible(text, self._secret_after))
        if scaffold.system_to_user:
            ids = self.encode_instructions(system_prefix + system + system_suffix)
            opening = [*scaffold.before_system, *ids, *scaffold.system_to_user]
            alone, content = scaffold.first_text, scaffold.first_text + user_text
        else:  # instructions and text are one stretch of plain text
            opening, alone = scaffold.before_system, system_prefix + system
            content = system + system_suffix + scaffold.first_text + user_text
            content = system_prefix + (self._fit("user", content) if self.folds_instructions else content)
        ids = self.encode_text(content + scaffold.after_user)
        n_common = len(os.path.commonprefix([self.encode_instructions(alone), ids]))
        return [*opening, *ids[:n_common]], ids[n_common:]

    def heard(self, text: str) -> list[int]:
        """Ids of a later text of the other side up to its end, after the end of the own turn before it."""
        heard = self._fit("user", audible(text, self._secret_after))
        content = self.scaffold.user_text + heard + self.scaffold.after_user
        return [*self.scaffold.own_to_user, *self.encode_text(content)]

    def said(self, text: str) -> list[int]:
        """Ids of an own turn that is known as text, its end included: a turn without thoughts."""
        scaffold, content = self.scaffold, self.scaffold.own_text + self._fit("assistant", text)
        if scaffold.own_lead or not scaffold.own_header:
            return [*scaffold.own_lead, *self.encode_text(content), self.end_of_turn]
        # Encoded together with the header: some tokenizers put a space before every stretch of text.
        header, joined = self.encode_instructions(scaffold.own_header), self.encode_text(scaffold.own_header + content)
        header_is_prefix = joined[: len(header)] == header
        return [*(joined[len(header) :] if header_is_prefix else self.encode_text(content)), self.end_of_turn]

    def _fit(self, role: str, text: str) -> str:
        return text.strip() if role in self._trimmed else text

    # ---- ids to text ---------------------------------------------------------------------------------

    def decode(self, ids: Iterable[int]) -> str:
        """What an own turn says: the text of its sampled ids without reasoning and without control tokens."""
        return self.spoken(ids)[0]

    def spoken(self, ids: Iterable[int]) -> tuple[str, bool]:
        """What an own turn says, and whether it ends before its reasoning does."""
        inside = self._own.opens_reasoning
        if not self.marks.are_tokens and self.marks.pairs:
            opens, closes = self.marks.pairs.keys(), self.marks.pairs.values()
            pieces = divided(divider(self.marks.all), self._text_of(ids))
            pieces, inside = without_reasoning(pieces, opens, closes, inside)
            return "".join(pieces).strip(), inside
        spoken, inside = without_reasoning(list(ids), self._opens, self._closes, inside)
        return self._text_of(spoken).strip(), inside

    def has_closed_reasoning(self, ids: Collection[int]) -> bool:
        """Whether a thought ends within ``ids``."""
        if self.marks.are_tokens:
            return not self._closes.isdisjoint(ids)
        text = self._text_of(ids)
        return any(mark in text for mark in self.marks.pairs.values())

    def _text_of(self, ids: Iterable[int]) -> str:
        text_ids = [i for i in ids if i not in self.stop_ids and i in self._known]
        return str(self.tokenizer.decode(text_ids, clean_up_tokenization_spaces=False))

    def finish(self, ids: Sequence[int]) -> Finish:
        """How a sampled turn ended. A token that the tokenizer does not know, from the padding of a model's
        vocabulary, is no better than a control token."""
        has_end = bool(ids) and ids[-1] in self.ends
        content_ids = ids[:-1] if has_end else ids
        if not self.stop_ids.isdisjoint(content_ids) or not self._known.issuperset(content_ids):
            return Finish.DEGENERATE
        return Finish.STOP if has_end else Finish.LENGTH


def audible(text: str, secret_after: str) -> str:
    """What the other side hears of a turn: all of it, or where it begins with ``secret_after`` these words alone."""
    return secret_after if secret_after and text.startswith(secret_after) else text


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
        is_own: bool = False,
        logprobs: Sequence[float] | None = None,
        versions: Sequence[int] | None = None,
    ) -> None:
        self._ids.extend(ids)
        self._mask.extend([is_own] * len(ids))
        self._logprobs.extend(logprobs if logprobs is not None else [float("nan")] * len(ids))
        self._versions.extend(versions if versions is not None else [-1] * len(ids))
        self._turns.extend([turn] * len(ids))

    def hear(self, turn: Turn) -> None:
        """Append a turn of the other side (or the greeting, whichever side says it)."""
        assert not self._open, "a side cannot hear two turns in a row"
        tokens, index = self._tokens, self._turn_count
        self._turn_count += 1
        if index == 0 and self.side is Side.POLICY:
            return  # the greeting stands in the policy's system prompt
        if not self._ids:
            opening, first = tokens.opening(self._system, turn.text)
            self._extend(opening, -1)
            self._extend(first, index)
        else:
            self._extend(tokens.heard(turn.text), index)
        self._extend(tokens.scaffold.user_to_own, index)
        self._open = True

    def speak(
        self,
        ids: Sequence[int],
        logprobs: Sequence[float] | None = None,
        versions: Sequence[int] | None = None,
    ) -> None:
        """Append this side's own turn as its ids, closing it with a masked end-of-turn if it has none."""
        assert self._open, "a side cannot speak twice in a row"
        self._extend(ids, self._turn_count, is_own=True, logprobs=logprobs, versions=versions)
        if not ids or ids[-1] not in self._tokens.ends:
            self._extend([self._tokens.end_of_turn], self._turn_count)
        self._turn_count += 1
        self._open = False

    def speak_text(self, text: str) -> None:
        """Append an own turn that is only known as text: a logged one, or one of a script."""
        self.speak(self._tokens.said(text))

    def copy(self) -> "SideView":
        """An independent view with the same tokens."""
        duplicate = copy.copy(self)
        for name in ("_ids", "_mask", "_logprobs", "_versions", "_turns"):
            setattr(duplicate, name, list(getattr(self, name)))
        return duplicate

    def resume_at(self, sequence: TokenSequence, turn: int) -> "SideView":
        """This empty view, advanced to the prompt of the own turn with the index ``turn`` in a dialogue whose
        tokens are known: they stay as they were sampled."""
        assert not self._ids, "something was said already"
        is_before = sequence.turns < turn
        self._ids, self._mask = sequence.ids[is_before].tolist(), sequence.mask[is_before].tolist()
        self._logprobs, self._versions = sequence.logprobs[is_before].tolist(), sequence.versions[is_before].tolist()
        self._turns = sequence.turns[is_before].tolist()
        self._turn_count, self._open = turn, True
        return self

    def without_mask(self) -> "SideView":
        """The same view in which nothing said so far carries loss."""
        view = self.copy()
        view._mask = [False] * len(view._mask)
        return view

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
    return tokens.finish(ids)
