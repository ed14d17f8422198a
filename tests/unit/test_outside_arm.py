"""An arm from a file outside the repository: one file and one line of YAML, and nothing else knows of it."""

from pathlib import Path

import pytest

from calibrated_rl.config.arms import builtin_arms, find_arm, find_arms
from calibrated_rl.config.load import load_config
from calibrated_rl.errors import UserError
from calibrated_rl.evaluation.summary import pairs_of
from calibrated_rl.report.arms import arms_of, style
from calibrated_rl.report.text import table
from tests.support.paths import MICRO

CURIOUS = """
from calibrated_rl.arms.interactive import Interactive
from calibrated_rl.config.arms import ArmStyle

class Curious(Interactive):
    name = "curious"
    style = ArmStyle("curious", "asks first", "#123456", "p")
    order = 3.5
    compared_with = ("interactive",)

class Asking(Curious):
    name = "asking"
    asks_humans = True

class Nameless(Interactive):
    name = "name-less"

class Taken(Interactive):
    name = "oracle"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(CURIOUS)
    return tmp_path / "mine.py"


def test_an_arm_is_named_by_its_import_path(file: Path) -> None:
    config = load_config(MICRO, [f"arms=[start,interactive,{file}:Curious]", "training.learning_rates={curious: 0.1}"])
    assert [arm.name for arm in find_arms(config.arms)] == ["start", "interactive", "curious"]
    assert pairs_of(["interactive", "curious"], config.arms) == [("curious", "interactive")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["arms=[{file}:Asking]", "human=''"], "the arm 'asking' needs a scripted human"),
        (["arms=[{file}:Nameless]"], "the name of an arm is made of letters, digits and _, not 'name-less'"),
        (["arms=[{file}:Taken]"], "'oracle' is the name of a built-in arm"),
        (["arms=[{file}:ArmStyle]"], "is no arm: it must be a class derived from"),
        (["arms=[interactiv]"], "did you mean 'interactive'"),
        (["arms=[{file}:Curiuos]"], "did you mean 'Curious'"),
        (["arms=[start]", "training.learning_rates={{interactiv: 0.1}}"], "names no arm.*did you mean 'interactive'"),
    ],
)
def test_what_is_no_arm_is_refused_before_anything_starts(file: Path, changes: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(MICRO, [change.format(file=file) for change in changes])


def test_every_module_of_the_package_is_an_arm_of_its_name() -> None:
    found = {name: find_arm(name) for name in builtin_arms()}
    assert all(arm.name == name for name, arm in found.items()) and len(found) == 9
    assert len({arm.order for arm in found.values()}) == 9, "no two stand in one place"
    assert len({(arm.style.color, arm.style.marker) for arm in found.values()}) == 9


def test_reports_show_it_as_it_called_itself_and_need_none_of_its_code() -> None:
    found = {"label": "curious & bold", "meaning": "asks first", "color": "#123456", "marker": "p"}
    strange = found | {"color": "red; }"}
    summary = {
        "arms": {"interactive": {}, "curious": {}, "strange": {}}, "styles": {"curious": found, "strange": strange},
        "paired": {"curious-interactive": {"value": 0.2, "low": 0.1, "high": 0.3}},
    }  # fmt: skip
    assert "curious & bold − interactive" in table(summary)
    with arms_of(summary):
        assert (style("curious").color, style("strange").color) == ("#123456", "#555555")
        assert style("curious") != style("oracle") == find_arm("oracle").style
    assert style("curious").label == "curious", "of another run it is unknown"
