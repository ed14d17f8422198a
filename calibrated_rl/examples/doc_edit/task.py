"""DocEdit: a person wants a document written and has it in mind; the policy writes it from what the person says.

After MediumDocEdit-Chat of CollabLLM (Wu et al. 2025, arXiv 2502.00640). The policy writes a draft below a line
``Document:``; the last one counts. The user ends with a line ``Done``. Reward: the BLEU of the draft to the text that
the user had in mind, over 100 (``sacrebleu``, sentence level with its default smoothing; Papineni et al. 2002, Post
2018), less ``word_cost`` for each word of the policy beside drafts, never below 0. Success is a BLEU of at least
``success_from``.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from sacrebleu import sentence_bleu

from calibrated_rl.data.dialogue import Outcome, Scenario, Side, Split, Turn
from calibrated_rl.errors import UserError
from calibrated_rl.examples.doc_edit.documents import Document, DocumentSource, read_documents, split_documents
from calibrated_rl.settings.fields import Positive, Range, Share, check_settings

DONE = "done"
GREETING = "Hi! What would you like to write?"
POLICY_INSTRUCTIONS = (
    "You help a person to write a text. You do not know it: ask what it is about and what it must say, in short "
    "messages. When you have a draft, or a better one, write it below a line like this, until your message ends:\n"
    "Document:"
)
USER_INSTRUCTIONS = (
    "You want a text like the one below written by an assistant, which does not see it. Say what you want as people "
    "do: one short message at a time, in your own words, not everything at once, never a copy. Correct drafts that say "
    "something else. When a draft is good enough, or you have had enough, write on a line of its own:\nDone\n"
    "The text:\n{text}"
)
_DRAFT = re.compile(r"^[ \t*#]*document[ \t*]*:[ \t*]*$", re.I | re.M)
_DONE = re.compile(r"^[ \t]*done[ \t.!]*$", re.I | re.M)
_ACT_WORDS = {
    "greet": re.compile(r"\b(hi|hello|hey)\b", re.I),
    "thank": re.compile(r"\b(thanks|thank you)\b", re.I),
    "agree": re.compile(r"\b(yes|yeah|ok|okay|good|great|perfect|nice)\b", re.I),
    "correct": re.compile(r"\b(no|not|wrong|instead|rather|but|too|less|more)\b", re.I),
    "change": re.compile(r"\b(add|remove|delete|change|replace|shorten|rewrite|fix|make)\b", re.I),
}


class DocEdit:
    """The task; see the module's docstring.

    Raises:
        UserError: the documents are missing or unusable.
    """

    @dataclass(frozen=True)
    class Config(DocumentSource):
        max_policy_turns: Positive = 5
        """Policy turns, the greeting not counted."""
        word_cost: Annotated[float, Range(at_least=0, at_most=1)] = 0.0
        """Reward that each word of the policy beside drafts costs."""
        success_from: Share = 0.3
        """BLEU over 100."""

    def __init__(self, config: Config | None = None) -> None:
        self.config = config = config or self.Config()
        self.name = "doc_edit"
        check_settings(config, "DocEdit")
        self.max_policy_turns = config.max_policy_turns
        documents, self.problems = read_documents(config)
        self._documents: dict[Split, list[Document]] = split_documents(documents, config)

    def scenarios(self, split: Split, count: int, population: str = "same") -> list[Scenario]:
        """The first ``count`` documents of ``split``."""
        if population != "same":
            raise UserError(f"DocEdit: unknown population '{population}'; there is one, 'same'")
        documents = self._documents[split]
        if count > len(documents):
            raise UserError(f"DocEdit: {count} scenarios requested of the {split} split, which has {len(documents)}")
        return [scenario_of(document, split) for document in documents[:count]]

    def ending(self, scenario: Scenario, turns: Sequence[Turn]) -> str | None:
        """``done``, once the user says so."""
        return DONE if turns[-1].side is Side.USER and _DONE.search(turns[-1].text) else None

    def against_goal(self, scenario: Scenario, turns: Sequence[Turn]) -> bool:
        """To be done before anything was written."""
        return self.ending(scenario, turns) is not None and sum(turn.side is Side.USER for turn in turns) == 1

    def outcome(self, scenario: Scenario, turns: Sequence[Turn], ending: str) -> Outcome:
        """How near the last draft is, however the dialogue ended. Of a log without the text: nothing."""
        target = str(scenario.goal.get("document", ""))
        spoken = [turn.text for turn in turns[1:] if turn.side is Side.POLICY]
        drafts = [draft for text in spoken if (draft := draft_of(text)) is not None]
        bleu = sentence_bleu(drafts[-1], [target]).score / 100 if drafts and target else 0.0
        words = sum(len(_DRAFT.split(text, maxsplit=1)[0].split()) for text in spoken)
        return Outcome(
            reward=max(0.0, min(1.0, bleu) - self.config.word_cost * words), success=bleu >= self.config.success_from,
            details={"bleu": bleu, "drafts": len(drafts), "policy_words": words},
        )  # fmt: skip

    def reward_range(self) -> tuple[float, float]:
        """From nothing alike to the same text at once."""
        return 0.0, 1.0

    def metrics(self, scenario: Scenario, turns: Sequence[Turn], outcome: Outcome) -> Mapping[str, float]:
        """``bleu`` (over 100), ``drafted`` (share with a draft), ``drafts`` and ``policy_words`` a dialogue."""
        details = outcome.details
        return {
            "bleu": float(details["bleu"]), "drafted": float(details["drafts"] > 0),
            "drafts": float(details["drafts"]), "policy_words": float(details["policy_words"]),
        }  # fmt: skip

    def acts(self, scenario: Scenario, turns: Sequence[Turn], index: int) -> tuple[str, ...]:
        """``draft`` of the policy, ``done`` of the user; by keywords ``greet``, ``thank``, ``agree``, ``correct``,
        ``change``; ``ask``; ``other`` where none is found."""
        text, is_policy = turns[index].text, turns[index].side is Side.POLICY
        talk = _DRAFT.split(text, maxsplit=1)[0] if is_policy else _DONE.sub("", text)
        acts = ["draft"] if is_policy and draft_of(text) is not None else []
        acts += ["done"] if not is_policy and _DONE.search(text) else []
        acts += [act for act, words in _ACT_WORDS.items() if words.search(talk)]
        acts += ["ask"] if "?" in talk else []
        return tuple(acts) or ("other",)

    def profile(self, scenario: Scenario, turns: Sequence[Turn]) -> Mapping[str, float]:
        """``words_per_turn``, ``first_turn_words``, ``questions`` (share of its turns that ask), ``corrections`` (that
        correct or change something), ``done``; and where the text is known ``first_turn_disclosure``, the share of its
        words that the first turn tells."""
        spoken = [turn.text for turn in turns if turn.side is Side.USER]
        count = max(1, len(spoken))
        words = _words(str(scenario.goal.get("document", "")))
        corrected = [_ACT_WORDS["correct"].search(text) or _ACT_WORDS["change"].search(text) for text in spoken[1:]]
        return {
            "words_per_turn": sum(len(text.split()) for text in spoken) / count,
            "first_turn_words": float(len(spoken[0].split())) if spoken else 0.0,
            "questions": sum("?" in text for text in spoken) / count,
            "corrections": sum(map(bool, corrected)) / max(1, len(corrected)),
            "done": float(bool(spoken) and bool(_DONE.search(spoken[-1]))),
        } | ({"first_turn_disclosure": len(_words(spoken[0]) & words) / len(words)} if words and spoken else {})


def scenario_of(document: Document, split: Split) -> Scenario:
    """The scenario of a document. A simulator is told the text."""
    return Scenario(
        id=document.id, split=split, policy_instructions=POLICY_INSTRUCTIONS,
        user_instructions=USER_INSTRUCTIONS.format(text=document.text), greeting=GREETING,
        goal={"document": document.text},
    )  # fmt: skip


def draft_of(text: str) -> str | None:
    """The draft in a message: all below its first line ``Document:``; None: there is none."""
    _, *draft = _DRAFT.split(text, maxsplit=1)
    return draft[0].strip() or None if draft else None


def _words(text: str) -> set[str]:
    return {word.lower() for word in re.findall(r"[^\W\d_]{4,}", text)}
