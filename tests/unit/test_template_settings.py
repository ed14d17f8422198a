"""Settings of chat templates, the date that they show, and tokens beyond the vocabulary."""

import re
from typing import Any

import pytest

from calibrated_rl.chat.tokens import ChatTokens, view_of
from calibrated_rl.data.dialogue import Finish, Side
from calibrated_rl.errors import UserError
from tests.support.template_dialogues import conversation, on_the_day, with_side
from tests.support.template_families import DATE, FAMILIES, Family, family


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
