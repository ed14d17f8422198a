"""Proxies: what they read, that they speak as they were fitted, their parts of the held-out logs, pooled results."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from calibrated_rl.components.component import build
from calibrated_rl.config.load import load_config, to_yaml
from calibrated_rl.data.dialogue import Dialogue, Outcome, Scenario, Side, Source, Split, Turn
from calibrated_rl.errors import RolloutFailure, UserError
from calibrated_rl.evaluation import again
from calibrated_rl.evaluation.called_human import called_human
from calibrated_rl.evaluation.held_out import pooled
from calibrated_rl.evaluation.proxies import proxies_beside_people
from calibrated_rl.evaluation.summary import summarise
from calibrated_rl.report.html import write_report
from calibrated_rl.report.text import table
from calibrated_rl.run.proxies import ProxyUser, parts_of
from calibrated_rl.tasks.base import Task, refuse_onlookers
from calibrated_rl.users.proxies.base import Proxy
from calibrated_rl.users.proxies.neural import NeuralProxy
from calibrated_rl.users.proxies.words import Vocabulary, exchanged, renaming, word_sequence
from tests.support.paths import ROOT

FAMILIES = ("recurrent:RecurrentProxy", "attentive:AttentiveProxy", "convolutional:ConvolutionalProxy")
SMALL = {"embedding": 8, "hidden": 16, "epochs": 40, "dropout": 0.0, "learning_rate": 0.02, "least": 1, "batch": 4}


def proxy_of(family: str, **changes: Any) -> NeuralProxy:
    path = f"calibrated_rl.users.proxies.{family}"
    return cast("NeuralProxy", build(path, SMALL | changes, "proxies.p", secret_after="bid :"))


def log(name: str, *texts: str, goal: str = "two seats") -> Dialogue:
    """The policy's greeting, then the user and the policy in turn."""
    scenario = Scenario(
        id=name, split=Split.HELD_OUT, policy_instructions="", user_instructions=goal, greeting=texts[0]
    )
    sides = [Side.POLICY, Side.USER] * len(texts)
    turns = tuple(Turn(side=s, text=t, source=Source.LOG) for s, t in zip(sides, texts, strict=False))
    return Dialogue(
        id=name, task="made up", scenario=scenario, turns=turns, ending="over", kind="log",
        outcome=Outcome(reward=0.5, success=True),
    )  # fmt: skip


LOGS = [
    log(f"{day}-{number}", "", "hello", f"which day {number}", f"{day} please", "bid : 3", "bid : 4", goal=f"{day} x")
    for day in ("friday", "monday") for number in range(6)
]  # fmt: skip


# --- words ---------------------------------------------------------------------------------------------------


def test_a_dialogue_is_read_from_the_seat_of_the_user_which_does_not_hear_secrets() -> None:
    sequence = word_sequence(LOGS[0].scenario, LOGS[0].turns[:5], "bid :")
    assert " ".join(sequence.words) == (
        "<goal> friday x <own> hello <end> <other> which day 0 <end> <own> friday please <end> <other> bid : <end>"
    )
    assert sequence.goal == 3
    own = [word for word, is_own in zip(sequence.words, sequence.own, strict=True) if is_own]
    assert own == ["hello", "<end>", "friday", "please", "<end>"]
    assert not np.any(sequence.own & ~sequence.said)


def test_exchangeable_words_are_renamed_together() -> None:
    groups = [["hat", "hats"], ["ball", "balls"], ["book", "books"]]
    assert exchanged(["2", "hats", "or", "a", "ball"], renaming(groups, [1, 2, 0])) == ["2", "balls", "or", "a", "book"]
    assert renaming(groups, [0, 1, 2]) == {}


@given(st.lists(st.text(), max_size=4))
def test_any_text_has_numbers(texts: list[str]) -> None:
    vocabulary = Vocabulary.of(LOGS, least=1)
    sequence = word_sequence(log("s", "hi", *texts).scenario, log("s", "hi", *texts).turns, "bid :")
    numbers = vocabulary.numbers(sequence.words)
    assert len(numbers) == len(sequence.own) == len(sequence.said) and numbers.max() < len(vocabulary)


# --- networks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_step_by_step_gives_the_logits_of_the_whole_sequence(family: str) -> None:
    torch.manual_seed(0)
    network = proxy_of(family).network(20).eval()
    words = torch.randint(0, 20, (40,))
    with torch.no_grad():
        whole_TV = network(words[None], 5)[0]
        logits_V, state = network.read(words[:30], 5)
        torch.testing.assert_close(logits_V, whole_TV[29], atol=1e-5, rtol=1e-4)
        for position in range(30, 40):
            logits_V, state = network.step(int(words[position]), state)
            torch.testing.assert_close(logits_V, whole_TV[position], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_logit_depends_on_later_words(family: str) -> None:
    torch.manual_seed(0)
    network = proxy_of(family).network(20).eval()
    words = torch.randint(0, 20, (1, 30))
    changed = words.clone()
    changed[0, 20:] = (changed[0, 20:] + 1) % 20
    with torch.no_grad():
        torch.testing.assert_close(network(words, 5)[:, :20], network(changed, 5)[:, :20])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_proxy_learns_what_its_people_say_and_is_the_same_again(family: str, tmp_path: Path) -> None:
    first, second = proxy_of(family), proxy_of(family)
    metrics = first.fit(LOGS, LOGS, 0, lambda step, steps: None)
    assert metrics["perplexity"] < 1.6
    assert metrics == second.fit(LOGS, LOGS, 0, lambda step, steps: None)
    for dialogue in (LOGS[0], LOGS[-1]):
        said = [first.reply(dialogue.scenario, dialogue.turns[:3], seed) for seed in range(8)]
        assert said.count(dialogue.turns[3].text) >= 6  # it knows which day it wants
    assert first.reply(LOGS[0].scenario, LOGS[0].turns[:3], 0, "bid :").startswith("bid : ")
    first.save(tmp_path)
    loaded = proxy_of(family)
    loaded.load(tmp_path)
    replies = [[p.reply(d.scenario, d.turns[:3], 1) for d in LOGS] for p in (first, second, loaded)]
    assert replies[0] == replies[1] == replies[2]


def test_groups_of_exchangeable_words_must_be_equally_long() -> None:
    with pytest.raises(UserError, match="equally many words"):
        proxy_of(FAMILIES[0], exchangeable=[["hat"], ["ball", "balls"]])


# --- proxies of a run ----------------------------------------------------------------------------------------


def views(count: int) -> list[Dialogue]:
    """Two views of each dialogue, as a reader gives them."""
    return [
        replace(log(f"{number}{view}", "", "hi"), annotations={"dialogue": str(number)})
        for view in "ab" for number in range(count)
    ]  # fmt: skip


def test_each_proxy_has_dialogues_of_its_own_and_none_that_is_evaluated_on() -> None:
    logs = views(80)
    parts = parts_of(logs, ["x", "y", "z"], reserved=15)
    owned = {name: {log.annotations["dialogue"] for log in part} for name, part in parts.items()}
    assert [len(part) for part in parts.values()] == [44, 44, 42]
    assert all(len(part) == 2 * len(owned[name]) for name, part in parts.items())
    assert sorted(map(int, set().union(*owned.values()))) == list(range(15, 80))
    with pytest.raises(UserError, match="leaves 55 dialogues for 3 proxies"):
        parts_of(logs, ["x", "y", "z"], reserved=25)


class Fixed(Proxy):
    """Says what its seed picks."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts

    def fit(self, *arguments: Any) -> dict[str, float]:
        return {"perplexity": 1.0}

    def reply(self, scenario: Scenario, turns: Sequence[Turn], seed: int, begin: str = "") -> str:
        return str(np.random.default_rng(seed).choice(self.texts))

    def save(self, folder: Path) -> None: ...

    def load(self, folder: Path) -> None: ...


class Strict:
    """A task in which a user may say nothing but ``yes``."""

    name, max_policy_turns = "strict", 3
    scenarios = ending = outcome = acts = profile = lambda *_: None

    def against_goal(self, scenario: Scenario, turns: Sequence[Turn]) -> bool:
        return turns[-1].text != "yes"


def test_replies_that_the_task_rules_out_are_drawn_again() -> None:
    task = cast("Task", Strict())
    user = ProxyUser("p", Fixed([*["yes"] * 6, "no", ""]), task)
    assert {user.reply(log(str(i), "").scenario, ()) for i in range(20)} == {"yes"}
    with pytest.raises(RolloutFailure):
        ProxyUser("p", Fixed(["no"]), task).reply(LOGS[0].scenario, ())


@pytest.mark.parametrize(
    ("proxies", "message"),
    [
        ("{a: {hidden: 3}}", "proxies.a.model is missing"),
        ("{a: {model: calibrated_rl.users.proxies.recurrent:RecurrentProxy, hiden: 3}}", "hiden"),
        ("{a: {model: calibrated_rl.logs.jsonl:JsonLines}}", "no proxy"),
        ("{a: {model: calibrated_rl.users.proxies.recurrent:RecurrentProxy}}", "leave one of the two empty"),
    ],
)
def test_settings_of_proxies_are_checked_when_they_are_read(proxies: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    human = "human: calibrated_rl.examples.front_desk:FrontDeskHuman\n" if "leave" in message else ""
    file.write_text(f"{human}arms: [start, static]\nproxies: {proxies}\n")
    with pytest.raises(UserError, match=message):
        load_config(file)


# --- results -------------------------------------------------------------------------------------------------


def test_pooled_results_are_means_over_the_proxies_that_have_them() -> None:
    a = {"reward": {"1": 1.0, "2": 0.0}, "bonus": {"1": 3.0}, "endings": {"agreed": 1.0}, "not_scored": 1}
    b = {"reward": {"1": 0.0}, "bonus": {}, "endings": {"agreed": 0.5, "left": 0.5}}
    assert pooled([a, b]) == {
        "reward": {"1": 0.5, "2": 0.0}, "bonus": {"1": 3.0}, "endings": {"agreed": 0.75, "left": 0.25}, "not_scored": 1,
    }  # fmt: skip
    assert pooled([a]) == a


def result(arm: str, by_proxy: dict[str, list[float]]) -> dict[str, Any]:
    def scores(values: list[float]) -> dict[str, Any]:
        by_scenario = {str(number): value for number, value in enumerate(values)}
        return {"reward": by_scenario, "success": by_scenario, "turns": by_scenario, "endings": {"agreed": 1.0}}

    each = {f"held_out@{name}": scores(values) for name, values in by_proxy.items()}
    budget = dict.fromkeys(("policy_tokens", "user_tokens", "human_turns", "updates", "seconds", "train_reward_last"))
    return {"arm": arm, "seed": 0, "scores": {"held_out": pooled(list(each.values())), **each}, **budget}


def test_arms_are_compared_with_each_proxy_and_with_all() -> None:
    results = [result("calibrated", {"x": [1, 1, 0.5], "y": [0, 0, 0]}), result("cloned", {"x": [0] * 3, "y": [1] * 3})]
    summary = summarise(results, [0])
    assert summary["paired"]["calibrated-cloned@x"]["mean"] == pytest.approx(5 / 6)
    assert summary["paired"]["calibrated-cloned@y"]["mean"] == -1
    assert summary["paired"]["calibrated-cloned"]["mean"] == pytest.approx(-1 / 12)
    assert summary["arms"]["calibrated"]["held_out@x"]["reward"]["mean"] == pytest.approx(5 / 6)


def test_proxies_are_compared_with_people_on_the_same_scenarios() -> None:
    logs = [log(str(number), "", "hi") for number in range(4)]  # 0.5 each, one user turn
    table = proxies_beside_people(cast("Task", SimpleNamespace()), logs, [result("start", {"x": [0.5, 0.6, 0.7]})])
    assert table["reward"]["people"]["mean"] == 0.5
    assert table["reward"]["proxies"]["x"]["difference"]["mean"] == pytest.approx(0.1)
    assert table["turns"]["people"]["mean"] == 1 and table["success"]["people"]["mean"] == 1
    assert proxies_beside_people(cast("Task", SimpleNamespace()), logs, [result("cloned", {"x": [1.0]})]) == {}


def test_turns_like_those_of_people_are_called_human_by_chance_and_others_not() -> None:
    random = np.random.default_rng(0)
    words = ["the", "a", "hat", "ball", "book", "i", "you", "need", "want", "can", "have", "deal", "no", "yes", "ok"]

    def dialogues(tail: str) -> list[Dialogue]:
        return [
            log(f"{tail}{number}", "", "hi", " ".join(random.choice(words, 5)) + tail, "ok", "bid : 3")
            for number in range(60)
        ]

    people, task = dialogues(""), cast("Task", SimpleNamespace(secret_after="bid :"))
    same, other = (called_human(task, people, spoken) for spoken in (dialogues(" "), dialogues(" balls balls")))
    assert len(same) == 60 and 0.3 < np.mean(list(same.values())) < 0.7
    assert np.mean(list(other.values())) < 0.05
    assert called_human(task, people[:2], people[:2]) == {}


def test_the_report_and_the_summary_in_text_show_the_proxies(tmp_path: Path) -> None:
    results = [result("start", {"gru": [0.5, 0.6, 0.7]}), result("cloned", {"gru": [0.2, 0.2, 0.3]})]
    logs = [log(str(number), "", "hi") for number in range(3)]
    summary = summarise(results, [0]) | {
        "proxies": proxies_beside_people(cast("Task", SimpleNamespace()), logs, results)
    }
    text = table(summary)
    assert "proxies, with the clone" in text and "0.60 [" in text.split("proxies, with")[1]
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    page = write_report(tmp_path).read_text()
    assert "The proxies" in page and "gru − people" in page and "reward, gru" in page
    (tmp_path / "summary.json").write_text(json.dumps({**summary, "proxies": {}}))
    assert "not measured" in write_report(tmp_path).read_text().split("The proxies")[1][:200]
    summary["judges"] = summary.pop("proxies")  # as runs called it before
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    assert table(summary) == text and write_report(tmp_path).read_text() == page


def test_policies_are_not_evaluated_on_users_that_proxies_were_fitted_to(tmp_path: Path) -> None:
    file = ROOT / "configs" / "dealornodeal.yaml"
    (tmp_path / "config.yaml").write_text(to_yaml(load_config(file)))

    def check(*changes: str) -> None:
        changed = [change.partition("=")[0] for change in changes]
        again._refuse_fitted_users(
            cast("Any", SimpleNamespace(folder=tmp_path, config=load_config(file, changes), changed=changed))
        )

    check("evaluation.scenarios=100")
    with pytest.raises(UserError, match="but the first 200: .* can be at most that, not 201"):
        check("evaluation.scenarios=201")
    with pytest.raises(UserError, match="logs.held_out is another one than in the run"):
        check("logs.held_out=2800")


def test_what_is_secret_is_shown_to_no_person() -> None:
    class Open(SimpleNamespace):
        name = "open"

    refuse_onlookers(cast("Any", Open()))
    with pytest.raises(UserError, match="in the task open each side writes something down"):
        refuse_onlookers(cast("Any", Open(secret_after="bid :")))
