"""What a side thinks stays its own, in templates of many families: not spoken, and shown to nobody else."""

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest

from calibrated_rl.chat.reasoning import find_marks
from calibrated_rl.chat.tokens import ChatTokens, SideView
from calibrated_rl.data.dialogue import Finish, Side, Source, Turn
from calibrated_rl.errors import Party
from calibrated_rl.inference.turns import Generated, GenerateRequest
from calibrated_rl.rollout.conversation import ModelSpeaker, SamplingConfig, find_flaw
from calibrated_rl.rollout.failures import broken_by, is_scored, party_of
from tests.support.template_dialogues import THINKING, conversation, ids_of
from tests.support.template_families import FAMILIES, family

SAID = {
    "<think>plan to bluff</think>friday": ("friday", False),
    "<think>\nplan\n</think>\n\nfriday seven": ("friday seven", False),
    "friday": ("friday", False),
    "<think>plan": ("", True),
    "<think>": ("", True),
    "<think>a</think>": ("", False),
    "well <think>a</think> friday": ("well  friday", False),
    "<think>a</think>friday<think>b": ("friday", True),
    "<think>a<think>b</think>friday": ("friday", False),
    "plan</think>friday": ("friday", False),
    '<think>a</think><tool_call>{"x": 1}</tool_call>': ('<tool_call>{"x": 1}</tool_call>', False),
}


@pytest.mark.parametrize("said", SAID)
@pytest.mark.parametrize("cut", [False, True])
def test_reasoning_is_not_spoken(said: str, cut: bool) -> None:
    tokens = family("qwen3")
    ids = tokens.tokenizer.encode(said, add_special_tokens=False) + ([] if cut else [tokens.end_of_turn])
    text, unfinished = SAID[said]
    assert tokens.spoken(ids) == (text, unfinished)
    assert tokens.finish(ids) is (Finish.LENGTH if cut else Finish.STOP)


@pytest.mark.parametrize(
    ("name", "said", "text"),
    [
        ("r1", "plan\n</think>\n\nfriday", "friday"),
        ("r1", "plan to bluff", ""),
        ("r1", "<think>plan</think>friday", "friday"),
        ("deepseek31_thinking", "plan</think>friday", "friday"),
        ("deepseek31", "friday", "friday"),
        ("qwen3_silent", "friday", "friday"),
        ("qwen3_silent", "<think>again</think>friday", "friday"),
        ("nemotron", "<think>\nplan\n</think>\n\nfriday", "friday"),
        ("nemotron", "<think>plan", ""),
    ],
)
def test_a_turn_begins_within_reasoning_where_the_prompt_opens_it(name: str, said: str, text: str) -> None:
    tokens = family(name)
    ids = tokens.tokenizer.encode(said, add_special_tokens=False)
    assert tokens.spoken([*ids, tokens.end_of_turn]) == tokens.spoken(ids) == (text, not text)


@pytest.mark.parametrize("name", FAMILIES)
def test_who_may_think_is_known(name: str) -> None:
    silent = ("qwen3_silent", "smollm3_silent", "glm45_silent", "deepseek31")
    assert family(name).may_think is (name in (*THINKING, "unigrams") and name not in silent)


def test_marks_that_a_side_spells_out_are_words() -> None:
    tokens = family("qwen3")
    ids = tokens.encode_text("write <think> and </think> around it")
    assert tokens.spoken(ids) == ("write <think> and </think> around it", False)


@pytest.mark.parametrize(
    ("added", "template", "pairs"),
    [
        (("<think>", "</think>"), "", {"<think>": "</think>"}),
        (("[THINK]", "[/THINK]"), "", {"[THINK]": "[/THINK]"}),
        (("<|START_THINKING|>", "<|END_THINKING|>"), "", {"<|START_THINKING|>": "<|END_THINKING|>"}),
        (("<|begin_of_thought|>", "<|end_of_thought|>"), "", {"<|begin_of_thought|>": "<|end_of_thought|>"}),
        (("<seed:think>", "</seed:think>", "</b>", "<b>"), "", {"<seed:think>": "</seed:think>"}),
        (("/nothink", "<think>"), "", {}),
        ((), "{{ m.content.split('</think>')[-1] }}", {"<think>": "</think>"}),
        ((), "{{ m.content }}", {}),
    ],
)
def test_marks_are_found_by_their_names(added: tuple[str, ...], template: str, pairs: dict[str, str]) -> None:
    assert find_marks(added, template).pairs == pairs


def test_ends_of_turns_and_headers_stop_a_turn_and_what_is_a_side_s_own_does_not() -> None:
    tokens = family("qwen3")
    ids = tokens.tokenizer.convert_tokens_to_ids
    assert {*ids(["<think>", "</think>", "<tool_call>", "</tool_call>"])} == tokens.control_ids - tokens.stop_ids
    assert {*ids(["<|im_end|>", "<|im_start|>", "<|endoftext|>"])} <= tokens.stop_ids
    assert {*ids(["<tool_response>", "</tool_response>"])} <= tokens.stop_ids, "that is how tools speak"
    assert tokens.finish([ids("<tool_response>"), tokens.end_of_turn]) is Finish.DEGENERATE


class Scripted:
    """A pool whose model says what it is told to, and remembers what it was given."""

    max_model_len = 400

    def __init__(self, tokens: ChatTokens, *said: str) -> None:
        self.tokens, self.asked = tokens, list[GenerateRequest]()
        self._said = [self._sampled(text) for text in said]

    def _sampled(self, text: str) -> list[int]:
        ids = self.tokens.tokenizer.encode(text, add_special_tokens=False)
        return list(ids) if text.endswith("...") else [*ids, self.tokens.end_of_turn]

    async def generate(self, key: str, request: GenerateRequest) -> Generated:
        self.asked.append(request)
        ids = self._said[len(self.asked) - 1]
        return Generated(ids, np.full(len(ids), -1.0, np.float32), np.zeros(len(ids), np.int32))


@pytest.mark.parametrize("name", ["qwen3", "r1", "glm45"])
def test_a_side_keeps_its_thoughts_and_the_other_one_never_hears_them(name: str) -> None:
    """Engine and learner have the same ids: every prompt is the beginning of what is learned from."""
    open_thought = "" if name == "r1" else "<think>"
    tokens, other = family(name), family("chatml")
    said = (f"{open_thought}secret plan</think>\n\nfriday ?", f"{open_thought}deep thoughts...", "</think>seven")
    pool = Scripted(tokens, *said)
    scenario, (first, hello) = conversation("rules", ["hello"])
    speaker = ModelSpeaker(pool, scenario, Side.POLICY, SamplingConfig(max_turn_tokens=8), 0, "k")  # type: ignore[arg-type]
    listener = SideView(other, scenario, Side.USER)
    turns, texts = [first, hello], []
    speaker.hear(first)
    listener.hear(first)
    listener.speak_text("hello")
    speaker.hear(hello)
    for _ in said:
        turn = asyncio.run(speaker.say(turns))
        assert turn is not None
        texts.append((turn.text, turn.finish, turn.flaw))
        listener.hear(turn)
        listener.speak_text("ok")
        answer = Turn(side=Side.USER, text="ok", source=Source.SIMULATOR)
        speaker.hear(answer)
        turns += [turn, answer]
    assert texts == [
        ("friday ?", Finish.STOP, None), ("", Finish.LENGTH, "unfinished_reasoning"), ("seven", Finish.STOP, None),
    ]  # fmt: skip
    learned = speaker.view.sequence()
    for request in pool.asked:
        assert learned.ids[: len(request.prompt_ids)].tolist() == request.prompt_ids
    assert "secret plan" in tokens.tokenizer.decode(pool.asked[1].prompt_ids), "its thought is still its own"
    assert "secret" not in other.tokenizer.decode(listener.sequence().ids)
    for number, text in enumerate(said):
        own = ids_of(learned, 2 + 2 * number)
        assert own == pool._sampled(text), "sampled ids, all of them and nothing else, carry loss"
    assert set(pool.asked[0].stop_ids) == tokens.stop_ids


def test_a_simulator_that_only_thinks_breaks_the_dialogue() -> None:
    scenario, turns = conversation("rules", [])
    flaw = find_flaw("", Finish.LENGTH, None, lost_in_thought=True)
    turn = Turn(side=Side.USER, text="", source=Source.SIMULATOR, finish=Finish.LENGTH, flaw=flaw)
    ending = broken_by(SimpleNamespace(), scenario, [*turns, turn])  # type: ignore[arg-type]
    assert ending == "user_unfinished_reasoning" and party_of(ending) is Party.USER and not is_scored(ending)
    assert find_flaw("", Finish.STOP, None) == "empty" and find_flaw("x", Finish.STOP, None) is None
