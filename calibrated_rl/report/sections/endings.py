"""How the dialogues with held-out users end."""

from dataclasses import dataclass
from typing import ClassVar

from calibrated_rl.report.plots import results
from calibrated_rl.report.run_files import RunFiles
from calibrated_rl.report.values import finite, mapping
from calibrated_rl.report.views import Plot


@dataclass(frozen=True, slots=True)
class Endings:
    template: ClassVar[str] = "endings.jinja"
    plot: Plot | None


def view(run: RunFiles) -> Endings:
    by_arm = {arm: mapping(metrics, "endings") for arm, metrics in run.arms().items()}
    shares = {arm: {name: share for name in endings if (share := finite(endings[name])) is not None}
              for arm, endings in by_arm.items()}  # fmt: skip
    shares = {arm: by_ending for arm, by_ending in shares.items() if by_ending}
    return Endings(Plot.of(results.endings(shares), "How dialogues end") if shares else None)
