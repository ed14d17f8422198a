"""Chat templates of many families: refused in words, or what a side is shown is what the template says, and nobody
forges a role. Reasoning stays with the side that thinks."""

import random
import re
from collections.abc import Sequence
from functools import cache

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from calibrated_rl.chat.tokens import ChatTokens, view_of
from calibrated_rl.data.dialogue import Finish, Side
from calibrated_rl.errors import UserError
from tests.support.template_dialogues import THINKING, conversation, ids_of, on_the_day, with_side
from tests.support.template_families import DATE, FAMILIES, family

PLAIN = [name for name, each in FAMILIES.items() if not each.thinks]
PIECES = ["mistral_pieces", "mistral_prefixed", "unigrams"]
"""These know no other characters than those of ASCII, and give back a text, but for a space before it."""
EXACT = [name for name in FAMILIES if name not in ("phi3", "nemotron", *PIECES)]
"""Families whose ids give back every text: the others lose line breaks behind headers, or unknown characters, or what
looks like their reasoning, which they mark in plain text."""


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
