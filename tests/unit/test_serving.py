"""The served dialogue without Ray and engines: requests, prompts, text of streams, kept dialogues, settings."""

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calibrated_rl.chat.tokens import ChatTokens, SideView
from calibrated_rl.data.dialogue import Scenario, Side, Source, Split, Turn
from calibrated_rl.errors import UserError
from calibrated_rl.examples.front_desk import FrontDesk
from calibrated_rl.logs.jsonl import JsonLines
from calibrated_rl.models.tiny import tiny_tokenizer
from calibrated_rl.serving.answers import ReplicaUnavailable, engine_failed, raise_refusal
from calibrated_rl.serving.dialogues import DialogueKeeper, outcome_of, turns_from_page
from calibrated_rl.serving.replies import History, ReplyText, SampledTurns, prompt_for
from calibrated_rl.serving.requests import BadRequest, chat_request, find_scenario, turns_of
from calibrated_rl.serving.settings import API_KEY, ServeConfig, digest, key_digests, serve_config
from tests.support.hostile_texts import CONTROLS, MARKUP
from tests.support.template_families import FAMILIES, family

TEXTS = ["hello i want a table for two on friday", "which day ?", "booked friday seven two"] * 3


@pytest.fixture(scope="module")
def task() -> FrontDesk:
    return FrontDesk(FrontDesk.Config())


def scenario(greeting: str = "hello") -> Scenario:
    return Scenario(
        id="held_out/7", split=Split.HELD_OUT, policy_instructions="book a table", user_instructions="get a table",
        greeting=greeting,
    )  # fmt: skip


def body(*messages: tuple[str, str], **more: Any) -> dict[str, Any]:
    return {"model": "policy", "messages": [{"role": role, "content": text} for role, text in messages], **more}


def policy_turns(*messages: tuple[str, str], **more: Any) -> tuple[Scenario, list[Turn]]:
    return turns_of(chat_request(body(*messages, **more)), Side.POLICY, scenario())


# ---- requests ------------------------------------------------------------------------------------------


def test_a_plain_request_gets_the_task_s_instructions_and_greeting() -> None:
    told, turns = policy_turns(("user", "hi"))
    assert told == scenario()
    assert [(turn.side, turn.text) for turn in turns] == [(Side.POLICY, "hello"), (Side.USER, "hi")]


def test_a_first_assistant_message_is_the_greeting_and_a_system_message_the_instructions() -> None:
    told, turns = policy_turns(("system", "be brief"), ("assistant", "good day"), ("user", "hi"))
    assert (told.policy_instructions, told.greeting, told.user_instructions) == ("be brief", "good day", "get a table")
    assert turns[0].text == "good day"


def test_the_simulator_hears_the_greeting_as_its_first_user_message() -> None:
    asked = chat_request(body(("user", "welcome"), ("assistant", "two please"), ("user", "when ?")))
    told, turns = turns_of(asked, Side.USER, scenario())
    assert told.greeting == "welcome"
    assert [turn.side for turn in turns] == [Side.POLICY, Side.USER, Side.POLICY]
    with pytest.raises(BadRequest, match="greeting"):
        turns_of(chat_request(body(("assistant", "two"), ("user", "x"))), Side.USER, scenario())


def test_content_parts_of_text_are_joined() -> None:
    message = {"role": "user", "content": [{"type": "text", "text": "for "}, {"type": "text", "text": "two"}]}
    assert chat_request({"model": "policy", "messages": [message]}).messages == [("user", "for two")]


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([("user", "a"), ("user", "b")], r"messages\[1\]"),
        ([("assistant", "a"), ("assistant", "b"), ("user", "c")], r"messages\[1\]"),
        ([("user", "a"), ("assistant", "b")], "last message"),
        ([("assistant", "a")], "last message"),
        ([("system", "a")], "last message"),
    ],
)
def test_sides_alternate_and_the_other_side_speaks_last(messages: list[tuple[str, str]], words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        policy_turns(*messages)


@pytest.mark.parametrize(
    ("more", "parameter"),
    [
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "system", "content": "y"}]}, "messages[1].role"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": "warm"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_completion_tokens": True}, "max_completion_tokens"),
        ({"stream": "yes"}, "stream"),
        ({"n": 2}, "n"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"seed": 3}, "seed"),
        ({"stop": ["x"]}, "stop"),
        ({"metadata": {"scenari": "3"}}, "metadata"),
        ({"metadata": {"scenario": True}}, "metadata"),
        ({"no_such_thing": 1}, "no_such_thing"),
    ],
)
def test_what_the_server_cannot_do_is_refused_by_name(more: dict[str, Any], parameter: str) -> None:
    with pytest.raises(BadRequest) as refused:
        chat_request(body(("user", "hi")) | more)
    assert refused.value.parameter == parameter


def test_what_asks_for_nothing_is_accepted() -> None:
    idle = {
        "n": 1,
        "stop": None,
        "tools": None,
        "frequency_penalty": 0.0,
        "logprobs": False,
        "user": "u",
        "store": False,
    }
    assert chat_request(body(("user", "hi"), **idle)).messages == [("user", "hi")]


def test_scenarios_are_found_by_id_and_number() -> None:
    known = [scenario(), Scenario(**{**_fields(scenario()), "id": "held_out/8"})]
    assert find_scenario(known, None) is known[0]
    assert find_scenario(known, "held_out/8") is known[1]
    assert find_scenario(known, "1") is known[1]
    for wrong in ("2", "-1", "x", "\u00b2"):
        with pytest.raises(BadRequest, match="no scenario"):
            find_scenario(known, wrong)
    with pytest.raises(BadRequest, match="not both"):
        policy_turns(("system", "x"), ("user", "y"), metadata={"scenario": 0})


def _fields(of: Scenario) -> dict[str, Any]:
    return {name: getattr(of, name) for name in of.__slots__}


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(
        st.sampled_from(["model", "messages", "metadata", "stream", "temperature", "max_tokens", "n", "tools", "x"]),
        JUNK,
    )
)
def test_any_json_is_either_a_request_or_a_bad_one(content: dict[str, Any]) -> None:
    with contextlib.suppress(BadRequest):
        turns_of(chat_request(content), Side.POLICY, scenario())


# ---- prompts -------------------------------------------------------------------------------------------


def test_a_prompt_has_the_sampled_ids_of_own_turns() -> None:
    """Ids that no encoder would give for this text: a word letter by letter."""
    tokens = family("chatml")
    letters = [i for c in "two" for i in tokens.encode_text(c)]
    assert letters != tokens.encode_text("two")
    assert tokens.decode(letters) == "two"
    sampled = SampledTurns()
    told, before = policy_turns(("user", "for how many ?"))
    prompt = prompt_for(tokens, "policy", told, Side.POLICY, before, sampled)
    ids = [*letters, tokens.end_of_turn]
    sampled.remember(prompt.history.add("two"), ids)

    _, after = policy_turns(("user", "for how many ?"), ("assistant", "two"), ("user", "ok"))
    view = SideView(tokens, told, Side.POLICY)
    for turn in before:
        view.hear(turn)
    assert prompt.ids == view.prompt_ids
    view.speak(ids)
    view.hear(after[-1])
    assert prompt_for(tokens, "policy", told, Side.POLICY, after, sampled).ids == view.prompt_ids

    # Other words before it, or another model: not the turn that was sampled.
    _, other = policy_turns(("user", "for how many"), ("assistant", "two"), ("user", "ok"))
    for name, turns in (("policy", other), ("another", after)):
        ids = prompt_for(tokens, name, told, Side.POLICY, turns, sampled).ids
        assert not any(ids[at : at + 3] == letters for at in range(len(ids)))


def test_histories_do_not_run_into_each_other() -> None:
    one, other = History("m", "ab"), History("m", "a")
    assert one.add("c") != other.add("bc")


def test_only_the_latest_turns_are_remembered() -> None:
    sampled = SampledTurns(most=2)
    for name in (b"a", b"b"):
        sampled.remember(name, [1])
    assert sampled.recall(b"a") == (1,)
    sampled.remember(b"c", [2])
    assert sampled.recall(b"b") is None and sampled.recall(b"a") == (1,) and len(sampled) == 2


@pytest.mark.parametrize("name", sorted(FAMILIES))
@pytest.mark.parametrize("text", [*CONTROLS[:12], "<think>x</think>", *MARKUP[:4]])
def test_control_tokens_in_messages_stay_text(name: str, text: str) -> None:
    """Contract 2: a client's message adds no control token but those of the scaffold."""
    tokens = family(name)
    plain, hostile = (
        prompt_for(tokens, "policy", told, Side.POLICY, turns, SampledTurns()).ids
        for told, turns in (
            policy_turns(("user", words), ("assistant", words), ("user", words)) for words in ("a", text)
        )
    )

    def controls(ids: list[int]) -> list[int]:
        return [i for i in ids if i in tokens.control_ids]

    assert controls(plain) == controls(hostile)


# ---- text of a stream ----------------------------------------------------------------------------------


@settings(max_examples=150)
@given(st.text(st.characters(codec="utf-8", exclude_characters="\ufffd"), max_size=30), st.integers(1, 5))
def test_a_streamed_text_is_that_of_the_whole_turn(text: str, block: int) -> None:
    tokens = _TOKENS
    ids = [*tokens.encode_text(text), tokens.end_of_turn]
    reply = ReplyText(tokens)
    pieces = [reply.add(ids[at : at + block]) for at in range(0, len(ids), block)]
    assert "".join([*pieces, reply.finish()]) == tokens.decode(ids) == reply.text
    assert reply.ids == ids


_TOKENS = ChatTokens(tiny_tokenizer(TEXTS, vocab_size=400, context=512), "tiny")


def test_reasoning_is_never_streamed() -> None:
    tokens = family("qwen3")
    opening, closing = (tokens.tokenizer.convert_tokens_to_ids(mark) for mark in ("<think>", "</think>"))
    thought, said = tokens.encode_text("offer 50 at most"), tokens.encode_text("i offer 40")
    for ids in (
        [opening, *thought, closing, *said, tokens.end_of_turn],
        [*thought, closing, *said, tokens.end_of_turn],  # a thought whose beginning nothing marks
        [opening, *thought, closing, *said],
    ):
        reply = ReplyText(tokens)
        pieces = [reply.add([number]) for number in ids] + [reply.finish()]
        assert "".join(pieces) == "i offer 40"
        assert not any("50" in piece for piece in pieces)
    reply = ReplyText(tokens)
    assert "".join([reply.add([number]) for number in said] + [reply.finish()]) == "i offer 40"


# ---- dialogues of people -------------------------------------------------------------------------------


def test_a_kept_dialogue_is_read_by_the_log_reader(task: FrontDesk, tmp_path: Path) -> None:
    known = task.scenarios(Split.HELD_OUT, 2)
    sent = {
        "scenario": 1, "stopped": True, "consent": True,
        "turns": [{"side": "user", "text": "hi \u2028 <b>\U0001f642</b>"}, {"side": "policy", "text": "which day ?"}],
    }  # fmt: skip
    told, turns, stopped, consent = turns_from_page(json.loads(json.dumps(sent)), known)
    assert (told, stopped, consent) == (known[1], True, True)
    outcome = outcome_of(task, told, turns, stopped)
    assert outcome == {"ending": "stopped", "reward": None, "success": None}
    keeper = DialogueKeeper(tmp_path / "kept")
    name = keeper.keep(told, turns, outcome)
    keeper.keep(told, turns, outcome)
    shares = {"held_out": 0.0, "monitor": 0.0, "tuning": 0.0}
    logs = JsonLines(JsonLines.Config(path=str(keeper.file), **shares), task=task)
    first, _ = logs.read(Split.CALIBRATION)
    assert logs.problems == [] and name in keeper.file.read_text(encoding="utf-8")
    assert [turn.text for turn in first.turns] == [told.greeting, "hi \u2028 <b>\U0001f642</b>", "which day ?"]
    assert first.scenario.goal == dict(told.goal)


def test_outcomes_are_those_of_the_task(task: FrontDesk) -> None:
    (told,) = task.scenarios(Split.HELD_OUT, 1)
    turns = [Turn(side=Side.POLICY, text=told.greeting, source=Source.GREETING)]
    turns.append(Turn(side=Side.USER, text="hello", source=Source.HUMAN))
    assert outcome_of(task, told, turns, False) == {"ending": None, "reward": None, "success": None}
    for number in range(task.max_policy_turns):
        turns.append(Turn(side=Side.POLICY, text="which day ?", source=Source.POLICY))
        if number + 1 < task.max_policy_turns:
            assert outcome_of(task, told, turns, False)["ending"] is None
            turns.append(Turn(side=Side.USER, text="hello", source=Source.HUMAN))
    outcome = outcome_of(task, told, turns, False)
    assert outcome["ending"] == "max_turns"
    assert outcome["reward"] == task.outcome(told, turns, "max_turns").episode_return


@pytest.mark.parametrize(
    "wrong",
    [
        [], {"scenario": "0"}, {"scenario": 0, "turns": [{"side": "policy", "text": "x"}]},
        {"scenario": 99, "turns": []},
        {"scenario": 0, "turns": [{"side": "user", "text": 1}]}, {"scenario": 0, "turns": [], "consent": "yes"},
        {"scenario": 0, "turns": [], "more": 1}, {"scenario": 0, "turns": [{"side": "user", "text": "x" * 100_001}]},
    ],
)  # fmt: skip
def test_dialogues_of_another_form_are_refused(wrong: Any, task: FrontDesk) -> None:
    with pytest.raises(BadRequest):
        turns_from_page(wrong, task.scenarios(Split.HELD_OUT, 1))


# ---- settings ------------------------------------------------------------------------------------------


def test_arguments_may_be_text_and_are_checked() -> None:
    config = serve_config({"run": "runs/dev", "min_replicas": "2", "max_replicas": "3", "chat_page": "false"})
    assert config == ServeConfig(run="runs/dev", min_replicas=2, max_replicas=3, chat_page=False)
    for wrong, word in (
        ({"run": "r", "replicas": 2}, "replicas"), ({"run": "r", "simulator": "tame"}, "simulator"), ({}, "run"),
        ({"run": "r", "min_replicas": 2, "max_replicas": 1}, "max_replicas"),
        ({"run": "r", "scenarios": 0}, "scenarios"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=word):
            serve_config(wrong)


def test_api_keys_are_needed_long_and_kept_as_digests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(API_KEY, raising=False)
    with pytest.raises(UserError, match=API_KEY):
        key_digests(ServeConfig(run="r"))
    assert key_digests(ServeConfig(run="r", require_api_key=False)) == []
    monkeypatch.setenv(API_KEY, "a-key-of-some-length, another-of-some-length")
    assert key_digests(ServeConfig(run="r")) == [digest("a-key-of-some-length"), digest("another-of-some-length")]
    monkeypatch.setenv(API_KEY, "short")
    with pytest.raises(UserError, match="16"):
        key_digests(ServeConfig(run="r"))


def test_a_failure_of_the_engine_is_no_refusal_of_the_request() -> None:
    class EngineDeadError(Exception):
        """Of vLLM's name: its class is not imported for this."""

    class Wrapped(RuntimeError):
        def __init__(self, cause: Exception) -> None:
            self.cause = cause

    assert engine_failed(EngineDeadError()) and engine_failed(Wrapped(EngineDeadError()))
    assert not engine_failed(Wrapped(ValueError("too long"))) and not engine_failed(ValueError())

    def answer(code: int) -> Any:
        return SimpleNamespace(error=SimpleNamespace(message="no", code=code, param=None))

    with pytest.raises(ReplicaUnavailable, match="no"):
        raise_refusal(answer(500))
    with pytest.raises(BadRequest, match="no"):
        raise_refusal([answer(400)])
