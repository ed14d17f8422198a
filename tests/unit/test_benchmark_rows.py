"""What the rows of the rollout compare: turns taken out of dialogues, tokens that a cache could have served."""

from pathlib import Path

import numpy as np
import pytest

from calibrated_rl.chat.tokens import ChatTokens
from calibrated_rl.data.dialogue import Dialogue, Side, Split, TokenSequence
from calibrated_rl.inference.turns import Generated
from calibrated_rl.models.tiny import make_tiny
from calibrated_rl.models.tokenizer import read_tokenizer
from tools.bench.base import NotMeasured
from tools.bench.control_plane import ControlPlane
from tools.bench.prefix_cache import RecordedTurn, servable
from tools.bench.rollout import Line, script_of
from tools.bench.talk import Talk, TalkConfig, model_of
from tools.bench.trl_step import reward_of
from tools.bench.whole_step import WORDS, WholeStep, install_trl, with_credit


def sequence(*parts: tuple[int, bool, list[int]]) -> TokenSequence:
    """From (turn, own, ids)."""
    ids = [i for _, _, part in parts for i in part]
    mask = [own for _, own, part in parts for _ in part]
    turns = [turn for turn, _, part in parts for _ in part]
    return TokenSequence(
        ids=np.array(ids, np.int32), mask=np.array(mask), turns=np.array(turns, np.int32),
        logprobs=np.where(mask, -1, np.nan).astype(np.float32), versions=np.where(mask, 0, -1).astype(np.int32),
    )  # fmt: skip


def test_the_script_of_a_dialogue_has_its_turns_in_order_with_what_was_new_prompt_ids_before_each() -> None:
    policy = sequence((-1, False, [1, 2]), (1, False, [3]), (2, True, [4, 5]), (2, False, [9]), (3, False, [6, 7]),
                      (4, True, [8]))  # fmt: skip
    user = sequence((-1, False, [1]), (0, False, [2]), (1, True, [3, 9]), (2, False, [4, 5]), (3, True, [6]),
                    (3, False, [9]), (4, False, [8]))  # fmt: skip
    dialogue = Dialogue(
        id="", task="", scenario=Talk(2).scenarios(Split.CALIBRATION, 1)[0], turns=(), ending="", outcome=None, kind="",
        policy_tokens=policy, user_tokens=user,
    )  # fmt: skip
    assert script_of(dialogue) == [
        Line(side=Side.USER, new_prompt_ids=[1, 2], tokens=2),
        Line(side=Side.POLICY, new_prompt_ids=[1, 2, 3], tokens=2),
        Line(side=Side.USER, new_prompt_ids=[4, 5], tokens=1),
        Line(side=Side.POLICY, new_prompt_ids=[9, 6, 7], tokens=1),
    ]


def test_what_a_cache_could_serve_is_the_longest_prefix_of_an_earlier_turn_that_was_computed() -> None:
    turns = [
        RecordedTurn([1, 2, 3], [4, 5]),
        RecordedTurn([1, 2, 3], [6]),  # another member of the group: the last token of the prompt is always computed
        RecordedTurn([1, 2, 3, 4, 5, 7], [8]),  # the first dialogue goes on; 5 was sampled last, and has no keys yet
        RecordedTurn([2, 3]),
        RecordedTurn([1, 2, 9]),
    ]
    assert servable(turns) == [0, 2, 4, 0, 2]


def test_dialogues_over_stub_replicas_take_no_less_than_their_turns(ray_session: None) -> None:
    config = ControlPlane.Config(replicas=(8, 16), turns_per_second=200.0, policy_turns=3, hosts=1, group_size=4)
    talk = TalkConfig(model="tiny", policy_turns=config.policy_turns)
    with model_of(talk) as (_, tokens):
        held = ControlPlane(config)._run_dialogues(talk, tokens, 8, 2)
    # Twice: 2 groups, each an opening and 4 times 3 turns a side.
    assert held.turns == 2 * 2 * (1 + 4 * 6)
    assert 2 * (1 + 6) * 0.5 * 8 / 200 < held.ideal < held.seconds and held.cpu > 0


def test_completions_are_scored_where_the_policy_spoke_and_get_the_credit_of_their_group() -> None:
    prompt = [7, 8, 9]
    answers = [
        Generated(ids, np.full(len(ids), -0.5, np.float32), np.full(len(ids), 4, np.int32))
        for ids in ([2, 4], [1, 3], [2, 3], [2, 3])
    ]
    samples = with_credit([(prompt, answer) for answer in answers])
    assert [reward_of(answer.ids) for answer in answers] == [1.0, 0.0, 0.5, 0.5]
    np.testing.assert_allclose([sample.advantage for sample in samples], [2**0.5, -(2**0.5), 0, 0], atol=1e-5)
    tokens = samples[1].tokens
    assert tokens.ids.tolist() == [7, 8, 9, 1, 3] and tokens.mask.tolist() == [False] * 3 + [True] * 2
    assert np.isnan(tokens.logprobs[:3]).all() and tokens.logprobs[3:].tolist() == [-0.5, -0.5]
    assert tokens.versions.tolist() == [-1, -1, -1, 4, 4]


@pytest.mark.slow
def test_where_pip_gets_nothing_the_row_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(NotMeasured, match="pip cannot install TRL.*trl==1.16.0"):
        install_trl(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.slow
def test_all_words_of_a_prompt_are_tokens_of_their_own(tmp_path: Path) -> None:
    row = WholeStep(WholeStep.Config())
    make_tiny(tmp_path, [" ".join(WORDS)] * 20 + Talk(1).texts(20), 0)
    tokens = ChatTokens(read_tokenizer(tmp_path, "tiny"))
    prompts = row.prompts(20)
    assert len(set(prompts)) == len(prompts) and {len(tokens.encode_text(each)) for each in prompts} == {20}
