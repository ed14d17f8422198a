"""A run's prompts are the same on every day: its date and its templates are decided when it is begun, and recorded."""

import datetime
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from calibrated_rl.calibration.fit_cache import key_of
from calibrated_rl.calibration.sft import SFTConfig, log_samples
from calibrated_rl.chat.tokens import view_of
from calibrated_rl.config.load import load_config, to_yaml
from calibrated_rl.config.run_config import RunConfig
from calibrated_rl.data.dialogue import Dialogue, Side, Split
from calibrated_rl.errors import UserError
from calibrated_rl.learner.config import LearnerConfig
from calibrated_rl.run.base_models import BaseModels, prepare_models
from calibrated_rl.run.inputs import RunInputs, read_inputs
from calibrated_rl.run.saved_run import dated, refuse_other_settings
from calibrated_rl.runtime.progress import Progress
from calibrated_rl.study.inheritance import START, UNCALIBRATED
from tests.support.paths import MICRO
from tests.support.template_families import FAMILIES
from tests.unit.test_templates import conversation

DAY, LATER = "2024-02-29", "2026-11-30"
WITH_DATE = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' + (strftime_now('%d %b %Y ') if loop.first else '') }}"
    "{{ ('be quiet ' if loop.first and quiet else '') + m.content + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def begun(folder: Path, config: RunConfig) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(to_yaml(config))


def test_a_run_that_goes_on_keeps_its_first_day(tmp_path: Path) -> None:
    config, run, study = RunConfig(arms=["start"]), tmp_path / "run", tmp_path / "study"
    today = dated(config, run)
    assert today.date == datetime.date.today().isoformat() and dated(config, run, today=False) == config
    begun(run, replace(config, date=DAY))
    assert dated(config, run).date == DAY, "whatever day it is"
    assert dated(config, study, run).date == DAY, "a variant has its study's"
    begun(study, replace(config, date=LATER))
    assert dated(config, study, run).date == LATER
    assert dated(replace(config, date="2020-01-01"), run).date == "2020-01-01"
    refuse_other_settings(run, dated(config, run))
    with pytest.raises(UserError, match="begun with other settings \\(date\\)"):
        refuse_other_settings(run, replace(config, date=LATER))
    assert load_config(run / "config.yaml").date == DAY, "evaluating and chatting read it from there"


def test_a_run_of_an_earlier_version_goes_on_with_the_day_on_which_it_does(tmp_path: Path) -> None:
    begun(tmp_path, RunConfig(arms=["start"]))
    text = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text("".join(line for line in text.splitlines(True) if "date:" not in line))
    config = dated(RunConfig(arms=["start"]), tmp_path)
    assert config.date == datetime.date.today().isoformat()
    refuse_other_settings(tmp_path, config)


@pytest.mark.parametrize("date", ["29.2.2024", "2023-02-29", "today"])
def test_a_date_that_is_none_is_refused(date: str) -> None:
    with pytest.raises(UserError, match="command line: date is .*: (there is no such day|.*a day as YYYY-MM-DD)"):
        load_config(MICRO, [f"date='{date}'"])


def test_what_is_taken_over_from_a_study_hangs_on_template_and_date() -> None:
    for settings, side in ((START, "policy"), (UNCALIBRATED, "simulator")):
        for key in ("date", f"{side}.chat_template", f"{side}.chat_template_kwargs.enable_thinking"):
            assert key.startswith(settings)


def test_a_fit_of_another_day_is_another_fit(tmp_path: Path) -> None:
    scenario, turns = conversation("rules", ["hi", "which day ?", "friday"])
    log = Dialogue(
        id="0", task="t", scenario=scenario, turns=tuple(turns), ending="x", outcome=None, kind="log"
    )  # fmt: skip

    def key(name: str, date: str) -> str:
        samples = log_samples([log], Side.POLICY, FAMILIES[name].tokens(name, date))
        return key_of("policy", tmp_path, samples, samples, SFTConfig(), LearnerConfig())

    assert key("llama", DAY) == key("llama", DAY) != key("llama", LATER)
    assert key("chatml", DAY) == key("chatml", LATER)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    file = tmp_path_factory.mktemp("templates") / "mine.jinja"
    file.write_text(WITH_DATE)
    return [f"policy.chat_template={file}"]


def prepared(folder: Path, settings: list[str], *more: str) -> tuple[RunInputs, BaseModels]:
    config = load_config(MICRO, [*settings, *more])
    inputs = read_inputs(config, folder, Progress())
    return inputs, prepare_models(inputs)


def test_a_side_has_the_template_the_settings_and_the_date_that_the_run_names(
    settings: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "calibrated_rl")
    inputs, models = prepared(tmp_path, settings, f"date={DAY}", "policy.chat_template_kwargs={quiet: true}")
    log = inputs.logs[Split.CALIBRATION][0]

    def prompt(chat: Any) -> str:
        return str(chat.tokenizer.decode(view_of(chat, log.scenario, Side.POLICY, log.turns[:2]).prompt_ids))

    assert "29 Feb 2024 be quiet" in prompt(models.policy.chat)
    assert "2024" not in prompt(models.simulator.chat)
    assert "policy: the chat template prints the date; this run's is 2024-02-29" in caplog.messages
    assert not [line for line in caplog.messages if "think" in line or "first user turn" in line]
    assert (tmp_path / "templates" / "policy.jinja").read_text() == WITH_DATE
    assert (models.policy.folder / "chat_template.jinja").read_text() == WITH_DATE, "saved models get it from here"
    _, again = prepared(tmp_path, settings, f"date={DAY}", "policy.chat_template_kwargs={quiet: true}")
    assert again.policy.folder == models.policy.folder and prompt(again.policy.chat) == prompt(models.policy.chat)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("policy.chat_template_kwargs={quite: true}", "policy.chat_template_kwargs: .*'quite'; did you mean 'quiet'"),
        ("simulator.chat_template_kwargs={quiet: true}", "simulator.chat_template_kwargs: .*does not read 'quiet'"),
        ("policy.chat_template=nowhere.jinja", "policy.chat_template: there is no file nowhere.jinja"),
    ],
)
def test_what_no_template_knows_is_refused_before_anything_starts(
    change: str, message: str, settings: list[str], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        prepared(tmp_path, settings, change)
