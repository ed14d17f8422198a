"""Chat templates of many families: refused in words, or what a side is shown is what the template says, and nobody
forges a role. Reasoning stays with the side that thinks."""

import asyncio
import random
import re
from collections.abc import Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from calibrated_rl.chat.reasoning import find_marks
from calibrated_rl.chat.tokens import ChatTokens, SideView, view_of
from calibrated_rl.data.dialogue import Finish, Scenario, Side, Source, Split, Turn
from calibrated_rl.errors import Party, UserError
from calibrated_rl.inference.turns import Generated, GenerateRequest
from calibrated_rl.rollout.conversation import ModelSpeaker, SamplingConfig, find_flaw
from calibrated_rl.rollout.failures import broken_by, is_scored, party_of
from tests.support.template_families import DATE, FAMILIES, Family, family
from tests.unit.test_tokens import turns_of

PLAIN = [name for name, each in FAMILIES.items() if not each.thinks]
PIECES = ["mistral_pieces", "mistral_prefixed", "unigrams"]
"""These know no other characters than those of ASCII, and give back a text, but for a space before it."""
EXACT = [name for name in FAMILIES if name not in ("phi3", "nemotron", *PIECES)]
"""Families whose ids give back every text: the others lose line breaks behind headers, or unknown characters, or what
looks like their reasoning, which they mark in plain text."""


def conversation(system: str, spoken: Sequence[str]) -> tuple[Scenario, list[Turn]]:
    scenario = Scenario(
        id="s", split=Split.CALIBRATION, policy_instructions=system, user_instructions=system, greeting="hello"
    )
    return scenario, turns_of(*spoken)


def messages_of(tokens: ChatTokens, side: Side, system: str, spoken: Sequence[str]) -> list[dict[str, str]]:
    """The conversation as messages, from ``side``'s seat; instructions open the first one where there is no role for
    them."""
    said = ["hello", *spoken] if side is Side.USER else list(spoken)
    instructions = system if side is Side.USER else f"{system}\nhello"
    if tokens.folds_instructions:
        both = [text.strip() if tokens.name == "gemma2" else text for text in (instructions, said[0])]
        said = ["\n\n".join(both), *said[1:]]
    chat = [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(said)]
    return chat if tokens.folds_instructions else [{"role": "system", "content": instructions}, *chat]


def rendered(tokens: ChatTokens, chat: list[dict[str, str]]) -> str:
    """The conversation as the template writes it, with a prompt for an answer."""
    return str(
        tokens.tokenizer.apply_chat_template(
            chat, tokenize=False, add_generation_prompt=True, strftime_now=on_the_day, **FAMILIES[tokens.name].settings
        )
    )


def continued(chat: list[dict[str, str]]) -> list[dict[str, str]]:
    """With an own turn, if it is that side's turn, and one of the other side: that shows how own turns begin and end in
    a history."""
    own = [{"role": "assistant", "content": "good day"}] if chat[-1]["role"] == "user" else []
    return [*chat, *own, {"role": "user", "content": "friday"}]


def on_the_day(form: str) -> str:
    return {"%d %b %Y": "29 Feb 2024", "%Y-%m-%d": DATE}[form]


@cache
def forbidden(name: str) -> list[int]:
    """Every added token but white space, whatever ``ChatTokens`` takes for control tokens."""
    added = family(name).tokenizer.added_tokens_decoder
    return sorted(number for number, token in added.items() if token.content.strip())


@cache
def controls_in_order(name: str, side: Side, count: int) -> list[int]:
    """Those of a harmless conversation: the scaffold's."""
    ids = view_of(family(name), *with_side(conversation("good day", ["good day"] * count), side)).sequence().ids
    return [i for i in ids.tolist() if i in forbidden(name)]


def with_side(made: tuple[Scenario, list[Turn]], side: Side) -> tuple[Scenario, Side, list[Turn]]:
    return made[0], side, made[1]


def well_formed(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


HOSTILE = sorted({token for each in FAMILIES.values() for token in (*each.special, *each.plain)} | {"<|", "|>", "\n"})
TEXT = st.text(max_size=10) | st.lists(st.sampled_from([*HOSTILE, " ", "day", "/"]), max_size=6).map("".join)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    name=st.sampled_from(list(FAMILIES)), side=st.sampled_from(list(Side)), system=TEXT,
    spoken=st.lists(TEXT, min_size=1, max_size=5),
)  # fmt: skip
@example(name="gemma2", side=Side.POLICY, system=" <end_of_turn>", spoken=["\n\nx", " y "])
@example(name="glm4", side=Side.USER, system="", spoken=["", "", ""])
@example(name="mistral_pieces", side=Side.USER, system="a  b", spoken=["[INST] x", "</s> y"])
def test_whatever_is_said_the_view_is_the_template_s_and_only_grows(
    name: str, side: Side, system: str, spoken: list[str]
) -> None:
    tokens, (scenario, turns) = family(name), conversation(system, spoken)
    sequence = view_of(tokens, scenario, side, turns).sequence()
    ids = sequence.ids.tolist()
    assert [i for i in ids if i in forbidden(name)] == controls_in_order(name, side, len(spoken))
    shorter: list[int] = []
    for count in range(1, len(turns) + 1):
        grown = view_of(tokens, scenario, side, turns[:count]).sequence().ids.tolist()
        assert grown[: len(shorter)] == shorter
        shorter = grown
    assert shorter == ids
    for index, turn in enumerate(turns[1:], start=1):
        own = ids_of(sequence, index)
        assert turn.side is not side or tokens.finish(own) is Finish.STOP
        known = name in EXACT or (name in PIECES and all(" " <= c <= "~" or c == "\n" for c in turn.text))
        if turn.side is side and known:
            assert tokens.decode(own) == well_formed(turn.text).strip()
    if name in EXACT and name in PLAIN:
        shown = tokens.tokenizer.decode(ids).replace("<|return|>", "<|end|>")
        whole = well_formed(rendered(tokens, continued(messages_of(tokens, side, system, spoken))))
        whole = whole.replace("<|return|>", "<|end|>")
        assert whole[: len(shown)] == shown


def ids_of(sequence: Any, turn: int) -> list[int]:
    """Own ids of a turn."""
    return list(sequence.ids[sequence.mask & (sequence.turns == turn)].tolist())


@pytest.mark.parametrize("side", list(Side))
@pytest.mark.parametrize("name", PLAIN)
def test_a_logged_dialogue_has_the_template_s_own_ids(name: str, side: Side) -> None:
    tokens = family(name)
    spoken = ["i want a table", "which day ?", "friday seven", "for two ?", "you are kind"]
    for count in range(1, len(spoken) + 1):
        ids = view_of(tokens, *with_side(conversation("book a table", spoken[:count]), side)).sequence().ids.tolist()
        chat = messages_of(tokens, side, "book a table", spoken[:count])
        expected = tokens.tokenizer.encode(rendered(tokens, continued(chat)), add_special_tokens=False)
        sampled, kept = (tokens.ends[0], tokens.ends[-1])
        assert [kept if i == sampled else i for i in ids] == expected[: len(ids)]
        if chat[-1]["role"] == "user" and name not in ("gpt_oss", "command"):  # their prompts go further
            assert ids == tokens.tokenizer.encode(rendered(tokens, chat), add_special_tokens=False)


THINKING = {
    "qwen3": "<|im_start|>assistant\nA<|im_end|>\n<|im_start|>user\nB<|im_end|>\n<|im_start|>assistant\n",
    "qwen3_silent": "<|im_start|>assistant\n<think>\n\n</think>\n\nA<|im_end|>\n<|im_start|>user\nB<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n",
    "qwen3_thinking": "<|im_start|>assistant\n<think>\n</think>\n\nA<|im_end|>\n<|im_start|>user\nB<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n",
    "smollm3": "<|im_start|>assistant\nA<|im_end|>\n<|im_start|>user\nB<|im_end|>\n<|im_start|>assistant\n",
    "smollm3_silent": "<|im_start|>assistant\n<think>\n\n</think>\nA<|im_end|>\n<|im_start|>user\nB<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n",
    "glm45": "<|assistant|>\n<think></think>\nA<|user|>\nB<|assistant|>",
    "glm45_silent": "<|assistant|>\n<think></think>\nA<|user|>\nB/nothink<|assistant|>\n<think></think>",
    "r1": "<｜Assistant｜><think>\n</think>\n\nA<｜end▁of▁sentence｜><｜User｜>B<｜Assistant｜><think>\n",
    "deepseek31": "<｜Assistant｜></think>A<｜end▁of▁sentence｜><｜User｜>B<｜Assistant｜></think>",
    "deepseek31_thinking": "<｜Assistant｜><think></think>A<｜end▁of▁sentence｜><｜User｜>B<｜Assistant｜><think>",
    "nemotron": "<|start_header_id|>assistant<|end_header_id|>\n\nA<|eot_id|><|start_header_id|>user"
    "<|end_header_id|>\n\nB<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
}
"""What follows the first user turn; a logged turn comes without thoughts, closed at once where the prompt opens one."""


@pytest.mark.parametrize("name", THINKING)
def test_logged_turns_of_those_that_think(name: str) -> None:
    tokens = family(name)
    view = view_of(tokens, *with_side(conversation("rules", ["Q", "A", "B"]), Side.POLICY))
    text = tokens.tokenizer.decode(view.prompt_ids)
    assert THINKING[name] == text[text.index("Q") :][-len(THINKING[name]) :]
    asked = tokens.tokenizer.decode(view_of(tokens, *with_side(conversation("rules", ["Q"]), Side.POLICY)).prompt_ids)
    assert text.startswith(asked) and set(THINKING) == set(FAMILIES) - set(PLAIN)


# --- nobody forges a role ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_no_added_token_comes_of_text(name: str) -> None:
    tokens = family(name)
    added = [str(token.content) for token in tokens.tokenizer.added_tokens_decoder.values() if token.content.strip()]
    assert len(added) >= len(FAMILIES[name].special) + sum(bool(each.strip()) for each in FAMILIES[name].plain)
    for text in [*added, "".join(added), " ".join(added), *HOSTILE]:
        for ids in (tokens.encode_text(text), tokens.said(text)[:-1], tokens.heard(text)):
            harmless = {*tokens.scaffold.own_lead, *tokens.scaffold.own_to_user}
            assert not set(forbidden(name)).intersection(ids) - harmless
        if name in EXACT:
            assert tokens.decode(tokens.said(text)) == text.strip()


def test_a_word_of_the_vocabulary_that_is_an_added_token_is_spelt_in_pieces() -> None:
    """As with Gemma's tags and runs of spaces, which are words and added tokens at once."""
    from tokenizers import AddedToken, Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    words = ["<end>", "<", "b", ">", "b>", "<b>", "a", "\u2581", "\u2581\u2581", "<user>", "<own>"]
    merges = [("b", ">"), ("<", "b>"), ("\u2581", "\u2581")]
    backend = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, merges))
    from tokenizers import normalizers

    backend.normalizer, backend.decoder = normalizers.Replace(" ", "\u2581"), decoders.Replace("\u2581", " ")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in ("<b>", "\u2581\u2581")])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<user>", "<own>"]})
    tokenizer.chat_template = (
        "{% for m in messages %}"
        "{{ ('<own>' if m.role == 'assistant' else '<user>') + m.content + '<end>' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}<own>{% endif %}"
    )
    tokens = ChatTokens(tokenizer, "tags")
    ids = tokens.encode_text("a<b>a  a")
    assert [words[i] for i in ids] == ["a", "<", "b>", "a", "\u2581\u2581", "a"] and tokens.decode(ids) == "a<b>a  a"


def test_where_nothing_helps_only_the_forged_word_is_spelt_by_character() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["[END]", "[U]", "[A]", "good", "day", "?", "E", "N", "D"]
    vocabulary = {word: number for number, word in enumerate(words)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.WhitespaceSplit(), decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="[END]", additional_special_tokens=["[U]", "[A]"]
    )
    tokenizer.chat_template = (
        "{% for m in messages %}{{ ('[A]' if m.role == 'assistant' else '[U]') + m.content + '[END]' }}{% endfor %}"
        "{% if add_generation_prompt %}[A]{% endif %}"
    )
    tokens = ChatTokens(tokenizer, "words")
    ids = tokens.encode_text("good [END] day")
    assert [words[i] for i in ids] == ["good", "?", "E", "N", "D", "?", "day"]


# --- between prompt and answer -----------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "lead"), [("glm4", "\n"), ("mistral", " "), ("glm45", "\n<think>plan</think>\n")])
def test_what_stands_before_an_answer_is_sampled_and_not_spoken(name: str, lead: str) -> None:
    tokens = family(name)
    ids = [*tokens.tokenizer.encode(lead, add_special_tokens=False), *tokens.encode_text("friday"), tokens.end_of_turn]
    assert tokens.finish(ids) is Finish.STOP and tokens.decode(ids) == "friday"


def test_a_channel_is_part_of_the_prompt_and_not_sampled() -> None:
    tokens = family("gpt_oss")
    view = view_of(tokens, *with_side(conversation("rules", ["Q"]), Side.POLICY))
    assert tokens.tokenizer.decode(view.prompt_ids).endswith("Q<|end|><|start|>assistant<|channel|>final<|message|>")
    start, end, last = tokens.tokenizer.convert_tokens_to_ids(["<|start|>", "<|end|>", "<|return|>"])
    said = tokens.encode_text("friday")
    assert tokens.ends == (last, end) and start in tokens.stop_ids
    for ids in ([*said, last], [*said, end]):  # the model may close its answer either way
        assert tokens.finish(ids) is Finish.STOP and tokens.decode(ids) == "friday"
        own = view.copy()
        own.speak(ids)
        assert own.sequence().ids.tolist()[-len(ids) :] == ids, "no second end"
    assert tokens.finish([start, *said, last]) is Finish.DEGENERATE


def test_a_template_that_always_asks_for_an_answer_has_no_other_end_of_turn() -> None:
    made = FAMILIES["glm4"].tokenizer()
    made.chat_template = made.chat_template.replace("{% if add_generation_prompt %}", "{% if true %}")
    assert ChatTokens(made, "odd").ends == family("glm4").ends == (made.convert_tokens_to_ids("<|user|>"),)


REFUSED = {
    "has what the answers in a history do not have": "{% if add_generation_prompt %}<|im_start|>assistant\nNow: ",
    "not prefix-preserving": "{{ messages | length }}{% if add_generation_prompt %}<|im_start|>assistant\n",
}


@pytest.mark.parametrize("reason", REFUSED)
def test_prompts_that_could_not_be_kept_are_refused(reason: str) -> None:
    made = FAMILIES["chatml"].tokenizer()
    made.chat_template = made.chat_template.split("{% if")[0] + REFUSED[reason] + "{% endif %}"
    if reason.startswith("not"):
        made.chat_template = "{{ messages | length }}" + FAMILIES["chatml"].template
    with pytest.raises(UserError, match=f"^odd: .*{reason}"):
        ChatTokens(made, "odd")


def test_where_only_the_system_role_is_refused_the_other_reason_is_named() -> None:
    made = FAMILIES["gemma2"].tokenizer()
    made.chat_template = made.chat_template.replace("<end_of_turn>", "")
    with pytest.raises(UserError, match="does not close a turn"):
        ChatTokens(made, "odd")


@pytest.mark.parametrize(
    "template", ["{{ 1 // 0 }}", "{{ [1] * 2 ** 80 }}", "{{ raise_exception('a\\nb') }}", "{% for %}", "{% break %}",
     "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"],
)  # fmt: skip
def test_a_template_that_fails_is_refused_in_one_line(template: str) -> None:
    made = FAMILIES["chatml"].tokenizer()
    made.chat_template = template
    with pytest.raises(UserError, match="^odd: the chat template refuses a plain conversation: [^\n]*$"):
        ChatTokens(made, "odd")


CHANGES = (
    "x", "\n", " ", "{{ loop.index }}", "{% if loop.last %}y{% endif %}", "{% if add_generation_prompt %}Go{% endif %}",
)  # fmt: skip


def mutant(template: str, rng: random.Random) -> str:
    """The template with one or two of its pieces left out, doubled, exchanged or changed, or others between."""
    pieces = re.findall(r"{%.*?%}|{{.*?}}|[^{]+", template, re.DOTALL)
    for _ in range(rng.choice((1, 1, 2))):
        one, other = (rng.randrange(len(pieces)) for _ in range(2))
        literals = list(re.finditer(r"'([^']*)'", pieces[one]))
        change = rng.randrange(5)
        if change == 0:
            pieces[one] = ""
        elif change == 1:
            pieces[one] *= 2
        elif change == 2:
            pieces[one] += rng.choice(CHANGES)
        elif change == 3:
            pieces[one], pieces[other] = pieces[other], pieces[one]
        elif literals:
            old = rng.choice(literals)
            new = rng.choice(("", f"{old[1]}!", f" {old[1]}", old[1] * 2, f"{old[1]}\\n"))
            pieces[one] = pieces[one][: old.start(1)] + new + pieces[one][old.end(1) :]
    return "".join(pieces)


def test_changed_templates_are_refused_in_a_line_or_right() -> None:
    rng, right, refused = random.Random(0), 0, 0
    names = [name for name in PLAIN if name not in PIECES]
    tokenizers = {name: FAMILIES[name].tokenizer() for name in names}
    spoken = ["i want a table", "which day ?", "friday seven", "for two ?", "you are kind", "hello", "two"]
    for _ in range(250):
        name = rng.choice(names)
        tokenizer = tokenizers[name]
        tokenizer.chat_template = template = mutant(FAMILIES[name].template, rng)
        known = {key: value for key, value in FAMILIES[name].settings.items() if key in template}
        try:
            tokens = ChatTokens(tokenizer, name, settings=known, date=DATE)
        except UserError as error:
            assert "\n" not in str(error) and str(error).startswith(f"{name}")
            refused += 1
            continue
        for side in Side:
            ids = view_of(tokens, *with_side(conversation("rules", spoken), side)).sequence().ids.tolist()
            shown = tokenizer.decode([tokens.ends[-1] if i == tokens.ends[0] else i for i in ids])
            whole = rendered(tokens, continued(messages_of(tokens, side, "rules", spoken)))
            assert tokenizer.decode(tokenizer.encode(whole, add_special_tokens=False)).startswith(shown), template
        right += 1
    assert right > 100 < refused + 50


# --- reasoning ---------------------------------------------------------------------------------------------

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


# --- settings and the date ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gpt_oss"])
def test_the_day_is_the_run_s_and_not_the_clock_s(name: str) -> None:
    def prompt(date: str) -> str:
        tokens = FAMILIES[name].tokens(name, date)
        assert tokens.template.uses_date
        view = view_of(tokens, *with_side(conversation("rules", ["hi"]), Side.POLICY))
        return str(tokens.tokenizer.decode(view.prompt_ids))

    assert on_the_day("%d %b %Y" if name == "llama" else "%Y-%m-%d") in prompt(DATE)
    assert prompt("2031-12-01") == prompt("2031-12-01") != prompt(DATE)
    assert re.search("01 Dec 2031|2031-12-01", prompt("2031-12-01"))
    assert not family("chatml").template.uses_date


def test_a_date_in_the_settings_goes_before_the_run_s() -> None:
    made = Family(**{**vars(FAMILIES["llama"]), "settings": {"date_string": "1 May"}}).tokens("llama")
    assert made.scaffold.system_text[0].endswith("It is 1 May.\n\n")
    assert not made.template.uses_date


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"enable_thinkin": False}, "does not read 'enable_thinkin'; did you mean 'enable_thinking'"),
        ({"xyz": 1}, "does not read 'xyz'$"),
        ({"content": 1}, "does not read 'content'"),
        ({"ns": 1}, "does not read 'ns'"),
        ({"tools": []}, "'tools' is not a setting, the program decides it"),
        ({"messages": []}, "'messages' is not a setting"),
        ({"add_generation_prompt": False}, "'add_generation_prompt' is not a setting"),
        ({"strftime_now": 1}, "'strftime_now' is not a setting"),
        ({"eos_token": "x"}, "'eos_token' is not a setting"),
    ],
)
def test_settings_that_the_template_does_not_read_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^policy.chat_template_kwargs: .*{message}"):
        ChatTokens(FAMILIES["qwen3"].tokenizer(), "policy", settings=settings)


def test_settings_are_variables_of_the_template_and_not_words_in_it() -> None:
    made = FAMILIES["chatml"].tokenizer()
    made.chat_template = "{% if date_string is not defined %}{% set date_string = 'x' %}{% endif %}" + (
        "{{ date_string }}{% generation %}{{ mood }}{% endgeneration %}" + FAMILIES["chatml"].template
    )
    tokens = ChatTokens(made, "policy", settings={"date_string": "1 May", "mood": "good"})
    assert "1 Maygood" in made.decode(view_of(tokens, *with_side(conversation("r", ["Q"]), Side.POLICY)).prompt_ids)
    made.chat_template += "{% break"
    with pytest.raises(UserError, match="^policy: the chat template cannot be parsed: "):
        ChatTokens(made, "policy", settings={"mood": "good"})


# --- padded vocabularies -----------------------------------------------------------------------------------


def test_a_token_that_the_tokenizer_does_not_know_is_no_speech() -> None:
    tokens = family("chatml")
    beyond = len(tokens.tokenizer) + 3
    said = tokens.encode_text("friday")
    assert tokens.decode([*said, beyond, tokens.end_of_turn]) == "friday"
    for ids in ([*said, beyond, tokens.end_of_turn], [beyond], [*said, beyond]):
        assert tokens.finish(ids) is Finish.DEGENERATE
