"""An advantage from a file outside the repository: one file and one line of YAML, and nothing else knows of it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibrated_rl.components.short_names import short_names
from calibrated_rl.config.load import load_config
from calibrated_rl.data.dialogue import Dialogue, Outcome, TokenSequence
from calibrated_rl.errors import UserError
from calibrated_rl.learner import advantages
from calibrated_rl.learner.advantages.checked import advantage_path, build_advantage, group_advantages, is_by_turn
from calibrated_rl.training.policy_update import PolicyUpdate
from calibrated_rl.training.timers import UpdateTimers
from tests.support.made_up_logs import dialogue, policy, user
from tests.support.paths import MICRO

RANKS = '''
from dataclasses import dataclass

from calibrated_rl.learner.advantages.grpo import GRPO
from calibrated_rl.settings.fields import Positive

class Ranks:
    """The rank within the group, centred."""

    @dataclass(frozen=True)
    class Config:
        scale: Positive = 1

    def __init__(self, config):
        self.config = config

    def __call__(self, rewards):
        ranks = rewards.argsort().argsort()
        return (ranks - ranks.mean()) * self.config.scale

class Mine(Ranks):
    def __call__(self, rewards):
        return {returned}

class Bolder(GRPO):
    pass

class Mute:
    Config = Ranks.Config
'''


def file_in(folder: Path, returned: str = "rewards") -> Path:
    (folder / "mine.py").write_text(RANKS.replace("{returned}", returned))
    return folder / "mine.py"


def paid(reward: float) -> Dialogue:
    tokens = TokenSequence.unsampled(np.zeros(2, np.int32))
    outcome = Outcome(reward=reward, success=True)
    return replace(dialogue("a", policy("hi"), user("yes")), outcome=outcome, policy_tokens=tokens)


def test_it_gives_the_credit_that_the_learner_gets(tmp_path: Path) -> None:
    file = file_in(tmp_path)
    config = load_config(MICRO, [f"training.advantage={file}:Ranks", "training.advantage_config={scale: 2}"])
    update: Any = PolicyUpdate(config, None, None, UpdateTimers())  # type: ignore[arg-type]
    credited = update.advantages([[paid(0.1), paid(9.0), paid(0.2)], [paid(1.0), paid(1.0)]], 0)
    assert [sample.advantage for sample in credited.samples] == [-2.0, 2.0, 0.0, 0.0, 0.0]
    assert (credited.groups, credited.groups_with_signal) == (2, 1)


@pytest.mark.parametrize(
    ("returned", "reason"),
    [
        ("rewards[:1]", r"it has the shape \[1\]: it must be \[2\], a number for each dialogue"),
        ("rewards.mean()", "it is a float64 .*: it must be an array of 2 numbers"), ("None", "it is None"),
        ("[rewards, 1]", "it is no array"), ("['a', 'b']", "it is an array of <U1"), ("rewards > 0", "array of bool"),
        ("rewards / 0 * 0", r"\[0\] is nan: it must be a finite number"), ("rewards * 1e300", r"\[1\] is 1e\+300"),
        ("rewards.men()", r"failed: AttributeError: .*mine.py:23: return rewards.men\(\)"),
        ("rewards.__setitem__(0, 7) or rewards", ""),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_it_returns_is_used_or_refused_by_its_line(returned: str, reason: str, tmp_path: Path) -> None:
    made, rewards = build_advantage(f"{file_in(tmp_path, returned)}:Mine", {}), [0.0, 1.0]
    if not reason:
        assert group_advantages(rewards, made).tolist() == [7.0, 1.0] and rewards == [0.0, 1.0], "its own copy"
        return
    with pytest.raises(UserError, match=rf"the advantage Mine: __call__ \(.*mine.py:22\).* {reason}"):
        group_advantages(rewards, made)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["training.advantage={file}:Rank"], "training.advantage: .*has no 'Rank'; did you mean 'Ranks'"),
        (["training.advantage={file}:Mute"], "is no advantage: it has no __call__"),
        (["training.advantage={file}:Ranks", "training.advantage_config={{scale: 0}}"], "scale is 0: it must be at"),
        (["training.advantage_config={{epsilom: 1}}"], "did you mean 'training.advantage_config.epsilon'"),
        (["training.advantage=rlo"], "choose dr_grpo, gae, .*, rloo or turn_group; did you mean 'rloo'"),
        (["training.loss={loss}", "training.advantage={path}"], "GRPO', and DrGRPO is defined with dr_grpo or rloo"),
        (["training.loss={loss}", "training.advantage={file}:Bolder"], "Bolder', and DrGRPO is defined with dr_grpo"),
        (["training.loss={loss}", "training.advantage={file}:Ranks"], ""),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_anything_starts(changes: list[str], message: str, tmp_path: Path) -> None:
    names = {
        "file": file_in(tmp_path), "path": advantage_path("grpo"),
        "loss": "calibrated_rl.learner.losses.dr_grpo:DrGRPO",
    }  # fmt: skip
    written = [change.format(**names) for change in changes]
    if not message:
        assert load_config(MICRO, written).training.advantage.endswith("mine.py:Ranks")
        return
    with pytest.raises(UserError, match=message):
        load_config(MICRO, written)


def test_every_module_of_the_folder_is_an_advantage_of_its_name() -> None:
    by_turn = {"gae", "reward_to_go", "turn_group"}
    assert short_names(advantages.__name__) == ("dr_grpo", "gae", "grpo", "reward_to_go", "rloo", "turn_group")
    assert by_turn == {name for name in short_names(advantages.__name__) if is_by_turn(build_advantage(name, {}))}
    for name in set(short_names(advantages.__name__)) - by_turn:
        own, path = build_advantage(name, {}), build_advantage(advantage_path(name), {})
        assert group_advantages([0.0, 1.0], own).tolist() == group_advantages([0.0, 1.0], path).tolist()
