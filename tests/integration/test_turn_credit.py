"""Credit by turn in the learner: each token has its own."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from calibrated_rl.learner.batch import SampleBatch
from calibrated_rl.learner.losses.correction import Correction
from calibrated_rl.learner.losses.reinforce import Reinforce
from calibrated_rl.learner.sample import Sample
from tests.support.made_up_learners import assert_same, big_epsilon, learner, samples, save_model

pytestmark = pytest.mark.usefixtures("ranks_in_this_process")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "tiny")


def test_credit_by_token_takes_the_place_of_the_dialogues(folder: Path) -> None:
    """The same for all tokens it is the dialogue's; where it is 0, a token counts as if it were not scored."""
    loss = Reinforce(Reinforce.Config(correction=Correction.Config(mode="none")))
    whole = [replace(sample, reference_logprobs=None) for sample in samples()]
    alike = [
        replace(sample, advantage=9.0, token_advantages=np.full(len(sample.tokens), sample.advantage, np.float32))
        for sample in whole
    ]
    early, unscored = [], []
    for sample in whole:
        masked = np.flatnonzero(sample.tokens.mask)
        late = masked[len(masked) // 2 + 1 :]
        credit = np.full(len(sample.tokens), sample.advantage, np.float32)
        mask = sample.tokens.mask.copy()
        credit[late], mask[late] = 0.0, False
        early.append(replace(sample, token_advantages=credit))
        unscored.append(replace(sample, tokens=sample.tokens.with_mask(mask)))

    def after_step(batch: list[Sample]) -> tuple[float, dict[str, torch.Tensor]]:
        made = learner(folder, optimizer=big_epsilon())
        metrics = made.step("policy", SampleBatch.of(batch), loss)
        return metrics["grad_norm"], made.weights("policy")

    assert_same(after_step(alike), after_step(whole))
    assert_same(after_step(early), after_step(unscored))
    assert after_step(early)[0] != pytest.approx(after_step(whole)[0], rel=1e-2)
    broken = replace(early[3], token_advantages=np.full(len(early[3].tokens), np.nan, np.float32))
    made = learner(folder)
    assert made.step("policy", SampleBatch.of([*early[:3], broken]), loss)["skipped_steps"] == 1
    assert made.skipped()[0].reason == "the advantage" and made.skipped()[0].sequences == (3,)
