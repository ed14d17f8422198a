"""Hostile texts where people look at them: the report, tables and the terminal; and where tasks judge them."""

import base64
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrated_rl.cli.chat import show
from calibrated_rl.data.dialogue import Side, Source, Split, Turn
from calibrated_rl.errors import MAX_QUOTED, printable
from calibrated_rl.examples.front_desk.task import FrontDesk
from calibrated_rl.report.html import write_report
from calibrated_rl.report.text import table
from calibrated_rl.tasks.base import BoundedTask
from tests.support.hostile_texts import LONG, hostile_texts, in_groups, through_json, with_question_marks
from tests.unit import test_casino, test_report

pytestmark = pytest.mark.slow  # each makes a report


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return hostile_texts()


@pytest.fixture(scope="module")
def short(texts: list[str]) -> list[str]:
    return [text for text in texts if len(text) < LONG]


# --- tasks and terminals -----------------------------------------------------------------------------------


def test_tasks_judge_every_text(texts: list[str], tmp_path: Path) -> None:
    records = [test_casino.record(number) for number in range(8)]
    negotiation, _ = test_casino.logs_of(test_casino.write(tmp_path / "data", records))
    tasks: list[BoundedTask] = [FrontDesk(FrontDesk.Config()), negotiation]
    for task in tasks:
        (scenario,) = task.scenarios(Split.CALIBRATION, 1)
        for first, second in in_groups(texts, 2):
            said = ((Side.POLICY, scenario.greeting), (Side.USER, first), (Side.POLICY, second))
            turns = [Turn(side=side, text=text, source=Source.LOG) for side, text in said]
            ending = task.ending(scenario, turns) or "left"
            low, high = task.reward_range()
            assert low <= task.outcome(scenario, turns, ending).reward <= high
            assert all(act for index in (1, 2) for act in task.acts(scenario, turns, index))
            assert all(map(np.isfinite, task.profile(scenario, turns).values()))


def test_texts_are_only_shown_by_a_terminal(texts: list[str], capsys: Any) -> None:
    for text in texts:
        assert printable(text).isprintable() and len(printable(text)) <= MAX_QUOTED + 4
        if len(text) < LONG:
            show(Turn(side=Side.USER, text=text, source=Source.LOG))
            first, *more = capsys.readouterr().out.removesuffix("\n").split("\n")
            assert first.startswith("  user: ") and first.isprintable()
            assert all(line.startswith(" " * 8) and line.isprintable() for line in more)


@given(st.text(st.characters(exclude_categories=())))
def test_what_is_printable_stays_and_the_rest_is_spelt_out(text: str) -> None:
    shown = printable(text, None)
    assert shown.isprintable() and (shown == text) == text.isprintable()


# --- the report --------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Tags with their attributes, without sizes and pictures, and what each turn says."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.addresses: list[str] = []
        self.turns: list[str] = []
        self._name = False
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attributes}
        self.attributes |= values.keys()
        self.addresses += [values[name] for name in ("src", "href") if name in values]
        looks = re.sub(r"\d+px", "", values.get("style", ""))
        self.tags.append(f"{tag} {values.get('class')} {looks}")
        if values.get("class", "").startswith("turn"):
            self.turns.append("")
        self._name = tag == "b"

    def handle_endtag(self, tag: str) -> None:
        self.tags.append(f"/{tag}")
        self._name = False

    def handle_data(self, data: str) -> None:
        if self.turns and self.tags[-1] == "/b":
            self.turns[-1] += data

    def handle_comment(self, data: str) -> None:
        self.tags.append("comment")

    def unknown_decl(self, data: str) -> None:
        self.tags.append("declaration")

    def handle_pi(self, data: str) -> None:
        self.tags.append("instruction")


def report_of(folder: Path, said: Sequence[str], names: Sequence[str]) -> str:
    """A report in which ``said`` was said, and in which ``names`` stand wherever a name can stand that is not ours."""
    folder.mkdir()
    name = iter(names)
    summary = test_report.summary()
    summary |= {key: next(name) for key in ("name", "task", "label", "held_out_user")}
    for values in summary["arms"].values():
        values["endings"] = {ending: 0.1 for ending in names[4:24]}
    summary["flaws"], summary["dropped"], summary["versions"] = {names[24]: 2}, {names[25]: 1}, {names[26]: names[27]}
    variant = test_report.variants()["placebo"] | {"change": [f"calibration.source={names[28]}"]}
    summary["variants"] = {names[29]: variant}
    samples = []
    for number, part in enumerate(in_groups(said, -(-len(said) // 3))):
        sides = ("user", "policy")
        turns = [[sides[place % 2], text] for place, text in enumerate(part)]
        goal = {names[30 + number]: names[33 + number], "more": [{names[36 + number]: 1}]}
        arms = {"static": {"turns": turns, "ending": names[39 + number], "reward": 0.5}}
        samples.append({"scenario": {"id": names[42 + number], "goal": goal}, "arms": arms})
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "samples.json").write_text(json.dumps(samples))
    rows = test_report.metrics().slice(0, 40)
    metrics = rows.set_column(3, "name", pa.array([with_question_marks(names[45])] * 40))
    pq.write_table(metrics, folder / "metrics.parquet")
    return write_report(folder).read_bytes().decode("utf-8")


@pytest.fixture(scope="module")
def pages(short: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A page with harmless texts and one of the same form with hostile ones."""
    folder = tmp_path_factory.mktemp("reports")
    names = list(dict.fromkeys(text[:60] for text in short if len(text) > 2 and text.strip()))
    names = [f"{text} {number}" for number, text in enumerate(names[5:700:15])]
    plain = [f"name {number}" for number in range(len(names))]
    return report_of(folder / "plain", ["yes"] * len(short), plain), report_of(folder / "hostile", short, names)


@pytest.mark.filterwarnings("ignore:Glyph", "ignore:Matplotlib currently", "ignore:constrained_layout")
def test_the_report_has_the_same_tags_whatever_is_said(pages: tuple[str, str], short: list[str]) -> None:
    plain, hostile = map(Page, pages)
    assert hostile.tags == plain.tags and len(plain.tags) > 20_000
    assert not [name for name in hostile.attributes if name.startswith("on")] and "srcdoc" not in hostile.attributes
    assert all(address.startswith("data:image/svg+xml;base64,") for address in hostile.addresses)
    no_text = "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]"
    assert hostile.turns == [re.sub(no_text, "\ufffd", through_json(text)) for text in short]


def test_the_plots_of_the_report_are_whole_and_run_nothing(pages: tuple[str, str]) -> None:
    plots = [base64.b64decode(address.split(",")[1]) for address in Page(pages[1]).addresses]
    assert len(plots) > 4
    for plot in plots:
        for element in ET.fromstring(plot).iter():
            assert not element.tag.endswith(("}script", "}foreignObject", "}a"))
            assert all(not name.startswith("on") for name in element.attrib)
            links = [value for name, value in element.attrib.items() if name.endswith("href")]
            assert all(link.startswith(("#", "data:image/png")) for link in links)


def test_text_tables_are_lines_that_a_terminal_only_shows(short: list[str]) -> None:
    def lines_with(names: Sequence[str]) -> list[str]:
        summary = test_report.summary() | {"label": names[0]}
        summary["variants"] = {name: test_report.variants()["placebo"] | {"change": [name]} for name in names}
        return table(summary).split("\n")

    names = list(dict.fromkeys(text for text in short if text))[:400]
    lines = lines_with(names)
    assert len(lines) == len(lines_with([f"name {number}" for number in range(len(names))]))
    assert all(line.isprintable() for line in lines)
