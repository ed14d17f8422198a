"""Settings of endpoints: what they may be, what an endpoint cannot do, and that no key is written down."""

from collections.abc import Callable
from pathlib import Path

import pytest

from calibrated_rl.cli import calibrate
from calibrated_rl.config.load import load_config, to_yaml
from calibrated_rl.config.run_config import RunConfig
from calibrated_rl.config.without_effect import settings_without_effect
from calibrated_rl.errors import UserError
from calibrated_rl.run.saved_run import refuse_other_settings
from tests.support.paths import ROOT
from tools.align import job as align_job

API = """
arms: [start, static, interactive]
simulator: {model: endpoint:gpt}
endpoints:
  gpt:
    {base_url: "https://api.example.com/v1", model: m, api_key: "${oc.env:SOME_KEY}", price_in: 1, price_out: 2,
      budget: 3}
  other: {base_url: "http://127.0.0.1:8000/v1", model: n}
"""


def config_of(folder: Path, *changes: str) -> RunConfig:
    (folder / "api.yaml").write_text(API)
    return load_config(folder / "api.yaml", changes)


def test_an_endpoint_is_read(tmp_path: Path) -> None:
    config = config_of(tmp_path, "proxies={people: {model: endpoint:other}}")
    gpt = config.endpoints["gpt"]
    assert (gpt.model, gpt.concurrency, gpt.retries, gpt.budget) == ("m", 8, 5, 3.0)
    assert gpt.api_key == "${oc.env:SOME_KEY}"  # looked up only by the client
    assert config.has_eval_user
    assert not [line for line in settings_without_effect(config) if line.startswith("endpoints")]


def test_one_that_nothing_names_is_said(tmp_path: Path) -> None:
    lines = list(settings_without_effect(config_of(tmp_path)))
    assert "endpoints.other has no effect: nothing names endpoint:other" in lines


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("endpoints.new={model: m}", "endpoints.new.base_url is missing"),
        ("endpoints.new={base_url: 'https://h/v1'}", "endpoints.new.model is missing"),
        ("endpoints.gpt.base_url=api.example.com", "base_url is 'api.example.com': write http://HOST/v1"),
        ("endpoints.gpt.base_url='https://me:pw@h/v1'", "has a login or parameters"),
        ("endpoints.gpt.base_url='ftp://me:pw@h'", "base_url is 'h'"),
        ("endpoints.gpt.base_url='https://h/v1?key=1'", "has a login or parameters"),
        ("endpoints.gpt.price_in=-1", "endpoints.gpt.price_in is -1.*at least 0"),
        ("endpoints.gpt.budget=-1", "endpoints.gpt.budget is -1"),
        ("endpoints.gpt.timeout=0", "endpoints.gpt.timeout is 0.*above 0"),
        ("endpoints.gpt.concurrency=0", "endpoints.gpt.concurrency is 0"),
        ("endpoints.gpt.retries=-1", "endpoints.gpt.retries is -1"),
        ("endpoints.other.budget=5", "nothing would ever be spent"),
        ("endpoints.gpt.parameters={seed: 1}", "parameters has seed, which other settings decide"),
        ("endpoints.gpt.retrys=3", "did you mean"),
        ("endpoints={../x: {base_url: 'http://h/v1', model: m}}", "a name of letters, digits"),
        ("endpoints.gpt.api_key=sk-123", "is a secret"),
        ("simulator.model=endpoint:gtp", "and `endpoints` has no 'gtp'; there are: gpt, other.*did you mean"),
        ("policy.model=endpoint:gpt", "policy.model is 'endpoint:gpt': a policy is trained"),
        ("proxy.model=endpoint:other", "proxy.model is 'endpoint:other'.*write `proxies:"),
        ("proxies={people: {model: endpoint:nobody}}", "`endpoints` has no 'nobody'"),
        ("proxies={people: {model: endpoint:other, epochs: 2}}", "proxies.people.epochs is for a proxy that is fitted"),
        ("proxies={people: {model: endpoint:gpt}}", "evaluated by whom they trained with"),
        ("arms=[start, calibrated]", "cannot be calibrated, as calibrated would; arms that work with it: "
         "start, cloned, static, interactive"),
        ("control_arms=[calibrated_once]", "cannot be calibrated, as calibrated_once would"),
        ("pretraining.human=calibrated_rl.examples.front_desk:FrontDeskHuman", "pretraining.human pretrains"),
        ("learner.lora={simulator: {}}", "learner.lora.simulator trains the simulator"),
    ],
)  # fmt: skip
def test_what_is_refused(change: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as refused:
        config_of(tmp_path, change)
    assert "pw" not in str(refused.value) and "sk-123" not in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_the_same_model_under_two_names_does_not_evaluate_itself(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="evaluated by whom they trained with"):
        config_of(
            tmp_path, "endpoints.twin={base_url: 'https://api.example.com/v1', model: m}",
            "proxies={people: {model: endpoint:twin}}",
        )  # fmt: skip


def test_with_a_scripted_human_the_oracle_works_too(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="start, cloned, static, interactive, oracle"):
        config_of(tmp_path, "human=calibrated_rl.examples.front_desk:FrontDeskHuman", "arms=[calibrated]")


def test_no_key_is_written_down_and_a_run_resumes_at_another_price(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_KEY", "sk-not-to-be-seen")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(config_of(tmp_path)))
    text = (folder / "config.yaml").read_text()
    assert "sk-not" not in text and "${oc.env:SOME_KEY}" in text
    running = [
        "endpoints.gpt.budget=9", "endpoints.gpt.concurrency=1", "endpoints.gpt.requests_per_minute=10",
        "endpoints.gpt.tokens_per_minute=10", "endpoints.gpt.timeout=9", "endpoints.gpt.retries=1",
        "endpoints.gpt.price_in=3", "endpoints.gpt.price_out=3", "endpoints.gpt.api_key=${oc.env:OTHER}",
    ]  # fmt: skip
    refuse_other_settings(folder, config_of(tmp_path, *running))
    for setting in ("model=x", "base_url=http://h/v1", "parameters={top_p: 1}"):
        change = f"endpoints.gpt.{setting}"
        with pytest.raises(UserError, match="was begun with other settings"):
            refuse_other_settings(folder, config_of(tmp_path, change))


def test_the_example_of_the_docs_is_a_config(tmp_path: Path) -> None:
    example = (ROOT / "docs/endpoints.md").read_text().partition("```yaml\n")[2].partition("```")[0]
    (tmp_path / "example.yaml").write_text(example)
    config = load_config(tmp_path / "example.yaml")
    assert config.endpoints["guests"].budget == 20 and config.simulator.model == "endpoint:guests"
    assert not [line for line in settings_without_effect(config) if "endpoint" in line]


@pytest.mark.parametrize("main", [calibrate.main, align_job.main])
def test_jobs_that_align_end_in_words(main: Callable[[], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config_of(tmp_path)
    human = "human=calibrated_rl.examples.front_desk:FrontDeskHuman"
    monkeypatch.setattr("sys.argv", ["job", str(tmp_path / "api.yaml"), human, "--runs", str(tmp_path)])
    with pytest.raises(UserError, match="endpoint:gpt', whose weights are not here to be (calibrated|aligned)"):
        main()
