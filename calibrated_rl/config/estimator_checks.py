"""Checks of ``shift.estimators`` together with what the simulator is trained against; called by ``checks.py``."""

from collections.abc import Iterator
from contextlib import suppress

from calibrated_rl.components.component import import_path
from calibrated_rl.config.run_config import RunConfig
from calibrated_rl.errors import UserError
from calibrated_rl.settings.fields import Problem


def problems_of_estimators(config: RunConfig) -> Iterator[Problem]:
    """Estimators of shift that fit classifiers of the families that the simulator is trained against."""
    from calibrated_rl.shift.checked import estimator_class
    from calibrated_rl.shift.two_sample.classifier import CLASSIFIERS

    with suppress(UserError):  # parts that do not exist are named elsewhere
        trained_against = set(getattr(import_path(config.calibration.method), "classifiers", ()))
        evaluating = {"the two-sample test of every run": CLASSIFIERS} | {
            f"shift.estimators: {name}": getattr(estimator_class(name), "classifiers", ())
            for name in config.shift.estimators
        }
        for evaluation, families in evaluating.items():
            for family in sorted(trained_against.intersection(families)):
                yield Problem(
                    ("calibration", "method"), f"trains the simulator against a {family} classifier, and {evaluation} "
                    "fits one, which would be deceived as it was trained to: take another of either",
                )  # fmt: skip
