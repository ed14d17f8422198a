"""A metric in the report from outside the repository: the file that logs it and one line of YAML."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from calibrated_rl.config.load import load_config, to_yaml
from calibrated_rl.config.run_config import RunConfig
from calibrated_rl.evaluation.summary import summarise
from calibrated_rl.learner.losses.base import LossInputs, Totals
from calibrated_rl.learner.losses.check import resolve_loss
from calibrated_rl.learner.metrics import collect
from calibrated_rl.report.html import write_report
from calibrated_rl.report.plots import results as plots
from calibrated_rl.report.rendering import TEMPLATES, environment
from calibrated_rl.report.run_files import RunFiles, read_run
from calibrated_rl.report.sections import arms_table, optimisation, simulator
from calibrated_rl.report.values import Interval
from tests.support.paths import MICRO

SURPRISE = """
from calibrated_rl.learner.losses.base import LossOutput
from calibrated_rl.learner.losses.reinforce import Reinforce

class Surprised(Reinforce):
    def __call__(self, inputs):
        unlikely = (inputs.logprobs.detach() < -2.0).double()
        return LossOutput(loss=super().__call__(inputs).loss, means={"surprise": (unlikely.sum(), len(unlikely))})
"""


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    (tmp_path / "mine.py").write_text(SURPRISE)
    return load_config(MICRO, [f"training.loss={tmp_path / 'mine.py'}:Surprised", "report.metrics=[surprise]"])


@pytest.fixture
def panels(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The names of the panels of each picture of curves that is drawn."""
    drawn: list[list[str]] = []
    draw = plots.curves

    def noted(by_name: Any, columns: int) -> Any:
        drawn.append(list(by_name))
        return draw(by_name, columns)

    monkeypatch.setattr(plots, "curves", noted)
    return drawn


def logged_by(config: RunConfig) -> dict[str, float]:
    """What one step of the configured loss logs."""
    logprobs = torch.tensor([-1.0, -3.0, -4.0, -0.5]).double()
    loss = resolve_loss((config.training.loss, dict(config.training.loss_config)))
    inputs = LossInputs(
        logprobs=logprobs, entropy=torch.ones(4).double(), old_logprobs=logprobs, sampler_logprobs=logprobs,
        reference_logprobs=None, advantages=torch.ones(4).double(), weights=torch.ones(4).double(),
        sequence=torch.zeros(4, dtype=torch.long), count=1, totals=Totals(tokens=4, sequences=1, weight=4.0),
    )  # fmt: skip
    return collect(inputs, loss(inputs), loss).results()


def test_what_a_loss_of_ones_own_logs_gets_a_panel(config: RunConfig, tmp_path: Path, panels: list[list[str]]) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(to_yaml(config))
    # Enough others, ahead of it by alphabet, to fill all panels.
    values = logged_by(config) | {f"another_{number}": 0.0 for number in range(30)}
    rows = [{"arm": "static", "seed": 0, "update": update, "name": name, "value": value}
            for update in range(3) for name, value in values.items()]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), run / "metrics.parquet")
    page = write_report(run).read_text()
    (shown,) = panels
    assert values["surprise"] == 0.5 and shown[0] == "surprise" and len(shown) == optimisation.MOST_PANELS
    assert 'alt="Optimisation"' in page and "surprise" not in page and "Only in metrics.parquet: another_" in page


def test_a_metric_that_nothing_logged_is_named(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    shown = optimisation.view(read_run(tmp_path))
    assert shown.plot is None and shown.never_logged == ["surprise"]
    row = {"arm": "static", "seed": 0, "update": 0, "name": "loss", "value": 1.0}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "metrics.parquet")
    assert "Asked for under report.metrics, but not logged: surprise." in write_report(tmp_path).read_text()


def run_of(summary: dict[str, Any]) -> RunFiles:
    return RunFiles(name="run", summary=summary, metrics={}, samples=[], config={})


def test_what_the_evaluation_scores_beside_the_reward_gets_a_column() -> None:
    """``evaluate_policy`` is the one place to touch."""
    scores = {name: {"a": 0.5, "b": 1.0} for name in ("reward", "success", "turns", "words_a_turn")}
    budget = dict.fromkeys(("policy_tokens", "user_tokens", "human_turns", "updates", "seconds", "train_reward_last"))
    results = [{"arm": "static", "seed": seed, "scores": {"held_out": scores | {"endings": {"left": 1.0}}}, **budget}
               for seed in (0, 1)]  # fmt: skip
    summary = summarise(results, [0, 1])
    (row,) = (table := arms_table.view(run_of(summary))).rows
    assert table.columns[-1].title == "words a turn" and row.cells[-1].value is not None
    assert np.isclose(row.cells[-1].value.mean, 0.75) and len(row.cells) == len(table.columns)
    # A seed that was judged before the figure was scored has none: then there is no mean over seeds.
    old = {name: scores[name] for name in ("reward", "success", "turns")} | {"endings": {}}
    results[0] |= {"scores": {"held_out": old}}
    assert "words_a_turn" not in summarise(results, [0, 1])["arms"]["static"]["held_out"]


def test_what_a_task_measures_of_the_other_side_is_drawn_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[dict[str, Any]] = []
    monkeypatch.setattr(simulator.plots, "profile", drawn.append)
    monkeypatch.setattr(simulator.Plot, "of", lambda figure, meaning: None)
    simulator.view(run_of({"simulator": {"before": {"profile": {"politeness": 0.4}}, "after": {}}}))
    assert drawn == [{"politeness": {"before": Interval(0.4)}}]


def test_templates_escape_everything_and_each_is_used() -> None:
    templates = {file.name: file.read_text(encoding="utf-8") for file in TEMPLATES.glob("*.jinja")}
    sections = {file.stem for file in (TEMPLATES.parent / "sections").glob("*.py")} - {"__init__"}
    assert {name.removesuffix(".jinja") for name in templates} == sections | {"page", "macros"}
    assert environment().autoescape is True
    assert not [name for name, text in templates.items() if re.search(r"\bsafe\b|autoescape", text)]
