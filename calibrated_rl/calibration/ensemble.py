"""Calibration by several simulators, each fitted to its own bootstrap sample of the human turns, with its own seed.

The policy meets them in turn: all dialogues of an update have the same member (so that groups are comparable, contract
4), the next update has the next one. What pays off with one member alone is thus no sure gain, as it is where a policy
finds the flaws of the only simulator there is; and where the members disagree, the logs did not decide what people say.
No replica serves more than one model at a time: a member's weights reach the replicas as those of any alignment do.

Members ``p_1 .. p_K`` are fitted as ``weighted.py`` fits one, to turns drawn with replacement (bagging: Breiman,
"Bagging predictors", Machine Learning 24, 1996; deep ensembles: Lakshminarayanan, Pritzel and Blundell, NIPS 2017).
Their disagreement on a user's turn ``x`` that member ``k`` said is ``log p_k(x) - log m(x)`` with ``m`` the mean of all
members, in nats: at most ``log K``, on average over ``x`` the divergence ``KL(p_k || m)``, and over members in turn the
Jensen-Shannon divergence (``worth_asking.py``). A single turn may have less than 0.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray

from calibrated_rl.calibration.base import CalibrationInputs
from calibrated_rl.calibration.sft import fine_tune
from calibrated_rl.calibration.weighted import WeightedSFT
from calibrated_rl.data.dialogue import TokenSequence
from calibrated_rl.learner.config import OptimizerConfig
from calibrated_rl.learner.slots import SIMULATOR
from calibrated_rl.settings.fields import Positive, Range

MEMBER = "member-"


class EnsembleSFT(WeightedSFT):
    """Fits the members into ``member-0``, ``member-1``, ... of the simulator's folder, which itself has the first."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(WeightedSFT.Config):
        """As of a single simulator, and how many there are."""

        members: Annotated[int, Range(at_least=2)] = 3
        """Simulators; each alignment takes as much longer."""
        resample: bool = True
        """Fit each to turns drawn with replacement; false: all to the same, they differ in their seeds alone."""
        measure_every: Positive = 5
        """Updates between reports of their disagreement on the policy's dialogues; 1 with a penalty."""
        penalty: Annotated[float, Range(at_least=0)] = 0.0
        """What a nat of disagreement costs: so much times the mean over a dialogue's user turns is taken from the
        dialogue's return when the policy learns from it. Rewards are reported without it."""

    whole_distribution: ClassVar[str] = "measures how far its members disagree on what each of them says"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.ensemble = config
        self.disagreement_penalty = config.penalty
        self.disagreement_every = 1 if config.penalty else config.measure_every

    def align(self, inputs: CalibrationInputs) -> dict[str, float]:
        samples, monitor, metrics = self.samples_to_fit(inputs)
        nll = []
        for number in range(self.ensemble.members):
            drawn = samples
            if self.ensemble.resample:
                drawn = [samples[i] for i in bootstrap(len(samples), (inputs.seed, inputs.update, number))]
            fit = fine_tune(
                inputs.learner, SIMULATOR, inputs.base, drawn, monitor, inputs.sft,
                inputs.folder / f"{MEMBER}{number}", inputs.seed * 1000 + number, inputs.progress,
            )  # fmt: skip
            nll.append(fit["nll_after"])
        first = inputs.folder / f"{MEMBER}0"
        for file in first.iterdir():
            shutil.copy(file, inputs.folder)
        inputs.learner.load(SIMULATOR, inputs.folder, optimizer=OptimizerConfig(), seed=0)
        return metrics | {"simulator_monitor_nll": float(np.mean(nll)), "simulator_monitor_nll_worst": max(nll)}


def bootstrap(count: int, seed: Sequence[int]) -> NDArray[np.int64]:
    """``count`` indices below ``count``, drawn with replacement, in order."""
    return np.sort(np.random.default_rng(tuple(seed)).integers(count, size=count))


def members_of(alignment: Path) -> list[Path]:
    """Folders of the members of the simulator in the folder ``alignment``; empty: it is a single one."""
    numbered = [path for path in alignment.glob(f"{MEMBER}*") if path.name.removeprefix(MEMBER).isdecimal()]
    return sorted(numbered, key=lambda path: int(path.name.removeprefix(MEMBER)))


def alignment_of(folder: Path) -> Path:
    """The folder of the alignment that the simulator in ``folder`` is a member of, or is itself."""
    return folder.parent if folder.name.startswith(MEMBER) else folder


def mean_disagreement(view: TokenSequence, log_probs_KT: Sequence[NDArray[np.float32]], speaker: int) -> float:
    """The mean of ``turn_disagreements``; 0 where the user said nothing."""
    return float(turn_disagreements(view, log_probs_KT, speaker).mean()) if view.mask.any() else 0.0


def turn_disagreements(
    view: TokenSequence, log_probs_KT: Sequence[NDArray[np.float32]], speaker: int
) -> NDArray[np.float64]:
    """The disagreement on each of a user's turns [N], as the module's docstring has it.

    Args:
        view: the user's view of a dialogue; its own turns, at least one, are masked.
        log_probs_KT: of its tokens under each member.
        speaker: which member said them.
    """
    turn_of_T = view.turns[view.mask]
    turns_N = np.unique(turn_of_T)
    of_mask_KT = np.stack([np.asarray(values, np.float64)[view.mask] for values in log_probs_KT])
    sums_KN = np.stack([of_mask_KT[:, turn_of_T == turn].sum(axis=1) for turn in turns_N], axis=1)
    mean_N = np.logaddexp.reduce(sums_KN, axis=0) - np.log(len(sums_KN))
    result: NDArray[np.float64] = sums_KN[speaker] - mean_N
    return result
