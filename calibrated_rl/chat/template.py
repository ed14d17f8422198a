"""A chat template split, once, at start, into the text that it writes between the contents of a conversation.

It is rendered for a few conversations of marks, and what stands between the marks is the template's own. Nothing here
knows token ids; ``tokens.py`` turns the pieces into them.

Four things that templates do are followed, everything else that is not the same for every turn is refused:

- *no system role* (Gemma 2), or instructions that move to the last message (Mistral): the instructions open the first
  user turn, with an empty line after them;
- *between the generation prompt and the answer* a history may have more than the prompt (``answer_lead``): white space
  (GLM-4, Mistral) or reasoning marks, which the side samples itself, or a channel (gpt-oss), which becomes part of the
  prompt;
- *the generation prompt* may have more than a history: an empty reasoning block (Qwen3 with ``enable_thinking: false``)
  or the mark that opens one (DeepSeek-R1), which stay in the own view, as everything does that the side has seen;
- *the last turn* may end in another token than the earlier ones (gpt-oss): it is the one that is sampled.
"""

import datetime
import difflib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, meta
from jinja2.exceptions import TemplateError

from calibrated_rl.chat.reasoning import ReasoningMarks
from calibrated_rl.errors import UserError, first_line, printable

Message = tuple[str, str]
"""Role and content."""
Render = Callable[[Sequence[Message], bool], str]
"""A conversation as the template writes it; the flag asks for a generation prompt."""

_SYSTEM, *_SAID = ("qzsystemqz", "qzfirstqz", "qzsecondqz", "qzthirdqz", "qzfourthqz", "qzfifthqz")
AFTER_INSTRUCTIONS = "\n\n"
"""Between instructions and the first user text, where the template has no place for instructions."""


class ChatTemplate:
    """The template of a tokenizer, with its settings and on a day that does not change.

    Raises:
        UserError: there is no template, or ``settings`` has what it does not read.
    """

    def __init__(self, tokenizer: Any, name: str, settings: Mapping[str, Any], date: str) -> None:
        """
        Args:
            name: of the model's part in the config, or of the model.
            settings: variables of the template, such as ``enable_thinking``.
            date: what it takes for today, as YYYY-MM-DD; empty: today.
        """
        self._tokenizer, self._name, self._settings = tokenizer, name, dict(settings)
        self.day = datetime.date.fromisoformat(date) if date else datetime.date.today()
        self.uses_date = False
        """Whether the template has read the date."""
        if not getattr(tokenizer, "chat_template", None):
            raise UserError(f"{name}: the tokenizer has no chat template, so turns cannot be told apart")
        try:
            self.source = str(tokenizer.get_chat_template())
        except ValueError as error:  # several by name, none of them the default
            raise UserError(f"{name}: {str(error).splitlines()[0]}") from error
        self._check_settings()

    def _check_settings(self) -> None:
        reserved = {"messages", "strftime_now", *inspect.signature(self._tokenizer.apply_chat_template).parameters}
        reserved |= set(self._tokenizer.special_tokens_map)
        variables = self._variables() if self._settings else set()
        location = f"{self._name}.chat_template_kwargs"
        for key in map(str, self._settings):
            if key in reserved:
                raise UserError(f"{location}: '{key}' is not a setting, the program decides it")
            if key not in variables:
                close = difflib.get_close_matches(key, sorted(variables - reserved), n=1)
                hint = f"; did you mean '{close[0]}'?" if close else ""
                raise UserError(f"{location}: the chat template does not read '{key}'{hint}")

    def _variables(self) -> set[str]:
        """Names that the template looks up outside of itself."""
        source = re.sub(r"{%[-+]?\s*(end)?generation\s*[-+]?%}", "", self.source)  # transformers' own tag
        try:
            tree = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(source)
        except TemplateError as error:
            raise Refusal(
                f"{self._name}: the chat template cannot be parsed: {printable(first_line(error))}"
            ) from error
        return meta.find_undeclared_variables(tree)

    def _strftime_now(self, form: str) -> str:
        self.uses_date = True
        return datetime.datetime.combine(self.day, datetime.time()).strftime(form)

    def render(self, messages: Sequence[Message], prompted: bool) -> str:
        """The conversation as text, with a prompt for an answer if it is ``prompted``.

        Raises:
            UserError: the template refuses it.
        """
        chat = [{"role": role, "content": content} for role, content in messages]
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    chat, tokenize=False, add_generation_prompt=prompted, strftime_now=self._strftime_now,
                    **self._settings,
                )
            )  # fmt: skip
        except Exception as error:  # it is a program of its own
            reason = printable(first_line(error))
            raise Refusal(f"{self._name}: the chat template refuses a plain conversation: {reason}") from error


class Refusal(UserError):
    """The template itself refuses a conversation."""


@dataclass(frozen=True, slots=True)
class TemplateParts:
    """What a template writes around the contents, as text."""

    before_system: str
    system_to_user: str
    prompt: str
    """After the other side's text: its end of turn, and all up to where the own turn is sampled."""
    answered: str
    """The same place in a history: up to where the own turn's text begins."""
    closing: str
    """After an own turn: its end, and all up to where the other side's text begins."""
    last_closing: str
    """After an own turn that nothing follows; empty where the template does not say."""
    tool: str
    """Around what a tool says after an own turn; empty where the template knows no tools."""
    folded: bool
    """Instructions open the first user turn."""
    trimmed: frozenset[str]
    """Roles whose contents lose white space at their ends."""


def take_apart(render: Render, name: str) -> TemplateParts:
    """The parts of the template that ``render`` applies.

    Raises:
        UserError: it is not prefix-preserving, or drops, repeats or refuses a message, also without a system role;
            ``name`` is the model's.
    """
    try:
        return _take_apart(render, name, folded=False)
    except UserError as error:
        try:
            return _take_apart(render, name, folded=True)
        except UserError as second:
            # Where it is only a system role that is refused, what else is wrong tells more.
            raise second if isinstance(error, Refusal) else error from None


def _conversation(count: int, folded: bool, pad: str = "") -> list[Message]:
    """Instructions and ``count`` turns, the first by a user; ``pad`` stands around each text."""
    system, *texts = (f"{pad}{mark}{pad}" for mark in (_SYSTEM, *_SAID[:count]))
    if folded:
        first = ("user", f"{system}{AFTER_INSTRUCTIONS}{texts[0]}")
        opening = [first]
    else:
        opening = [("system", system), ("user", texts[0])]
    return opening + [(("user", "assistant")[number % 2], text) for number, text in enumerate(texts[1:], start=1)]


def _take_apart(render: Render, name: str, folded: bool) -> TemplateParts:
    short, longer, longest = (render(_conversation(count, folded), True) for count in (1, 3, 5))
    for text, count in ((short, 1), (longer, 3), (longest, 5)):
        marks = (_SYSTEM, *_SAID[:count])
        positions = [text.find(mark) for mark in marks]
        if any(text.count(mark) != 1 for mark in marks) or positions != sorted(positions):
            raise UserError(f"{name}: the chat template drops or repeats a message of the conversation, or moves one")
    first, second, third, fourth, fifth = _SAID
    preserves_prefixes = all(
        later.startswith(earlier[: earlier.index(mark) + len(mark)])
        for earlier, later, mark in ((short, longer, first), (longer, longest, third))
    )
    if not preserves_prefixes:
        raise UserError(
            f"{name}: the chat template is not prefix-preserving (an earlier turn is rendered differently once a later "
            "one follows), so sampled tokens could not be kept as they are"
        )
    before_system, remainder = short.split(_SYSTEM)
    system_to_user, prompt = remainder.split(first)
    answered, closing = _between(longer, first, second), _between(longer, second, third)
    later_turns_agree = (
        longer.split(third)[1] == longest.split(fifth)[1] == prompt
        and _between(longest, third, fourth) == answered
        and _between(longest, fourth, fifth) == closing
    )
    if not later_turns_agree:
        raise UserError(f"{name}: the chat template renders later turns differently from the first")
    return TemplateParts(
        before_system, system_to_user, prompt, answered, closing,
        last_closing=_text_after(render, _conversation(2, folded), second),
        tool=_text_after(render, [*_conversation(2, folded), ("tool", third)], second).replace(third, ""),
        folded=folded,
        trimmed=_trimmed(render, folded),
    )  # fmt: skip


def _between(text: str, start: str, end: str) -> str:
    return text.split(start)[1].split(end)[0]


def _text_after(render: Render, messages: Sequence[Message], mark: str) -> str:
    """What follows ``mark`` where nothing is asked for; empty if the template refuses such a conversation."""
    try:
        return render(messages, False).partition(mark)[2]
    except UserError:
        return ""


def _trimmed(render: Render, folded: bool) -> frozenset[str]:
    pad = " "
    text = render(_conversation(3, folded, pad), True)
    last = {"system": _SYSTEM, "assistant": _SAID[1], "user": _SAID[2]}
    return frozenset(role for role, mark in last.items() if f"{pad}{mark}{pad}" not in text)


@dataclass(frozen=True, slots=True)
class OwnTurn:
    """How an own turn begins."""

    prompt: str
    """After the other side's text, up to where the own turn is sampled."""
    lead: str
    """What an own turn that is known as text has before it, as the side would have sampled it."""
    opens_reasoning: bool
    """The prompt ends within reasoning: what is sampled first is a thought."""
    closes_reasoning: bool
    """The prompt ends behind reasoning, or in the channel of answers: the side is to speak at once."""


def own_turn(parts: TemplateParts, split: Callable[[str], list[str]], marks: ReasoningMarks, name: str) -> OwnTurn:
    """Settle where the side begins to sample, where the prompt for an answer and an answer in a history differ.

    Args:
        split: cuts a text into control tokens, reasoning marks, and what is between.

    Raises:
        UserError: the prompt has something of its own that is no reasoning mark.
    """
    prompt_pieces = split(parts.prompt)
    of_prompt, of_history = _without_common(prompt_pieces, split(parts.answered))
    last = next((piece for piece in reversed(prompt_pieces) if piece in marks), "")
    opens = last in marks.pairs
    extra_pieces, missing_pieces = ([piece for piece in pieces if piece.strip()] for pieces in (of_prompt, of_history))
    closes = bool(missing_pieces) and missing_pieces[0] in marks.pairs.values()
    if of_prompt and not (
        extra_pieces and all(piece in marks for piece in extra_pieces) and (not missing_pieces or (opens and closes))
    ):
        raise UserError(
            f"{name}: the chat template's prompt for an answer ({printable(parts.prompt)!r}) has what the answers in a "
            f"history do not have ({printable(parts.answered)!r}), so a side could not keep what it was asked with"
        )
    lead = "".join(of_history)
    if opens:
        # As if the side had closed its reasoning at once: a turn that is known as text comes without thoughts.
        lead = lead if closes else f"{marks.pairs[last]}{AFTER_INSTRUCTIONS}{lead.lstrip()}"
    elif of_prompt:
        lead = ""  # the prompt ends behind a reasoning block of its own
    elif missing_pieces and not any(piece in marks for piece in missing_pieces):
        # A channel or the like: not left to the side, which could get it wrong.
        return OwnTurn(parts.prompt + lead, "", opens_reasoning=False, closes_reasoning=True)
    return OwnTurn(parts.prompt, lead, opens, closes_reasoning=bool(last) and not opens)


def _without_common(first: list[str], second: list[str]) -> tuple[list[str], list[str]]:
    """Both without the pieces that they begin with alike, and without the common beginning of a text after those."""
    n_common = 0
    while n_common < min(len(first), len(second)) and first[n_common] == second[n_common]:
        n_common += 1
    first, second = first[n_common:], second[n_common:]
    if len(first) == 1 and second and second[0].startswith(first[0]):
        return [], [piece for piece in (second[0][len(first[0]) :], *second[1:]) if piece]
    if len(second) == 1 and first and first[0].startswith(second[0]):
        return [piece for piece in (first[0][len(second[0]) :], *first[1:]) if piece], []
    return first, second
