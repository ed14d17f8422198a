"""Calibrated interactive reinforcement learning for dialogue policies, distributed on Ray.

    import calibrated_rl as crl

    run = crl.train("configs/dev.yaml", "calibrated", ["training.updates=5"])
    print(run.arms["calibrated"].reward)

Names are looked up when they are used first: to import the package loads neither torch nor Ray.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from calibrated_rl.api.asking import Asked, ask
    from calibrated_rl.api.evaluation import Evaluation, evaluate
    from calibrated_rl.api.judging import JudgeCheck, check_judge
    from calibrated_rl.api.logs import convert_logs
    from calibrated_rl.api.progress import show_progress
    from calibrated_rl.api.results import ArmResult, RunResult, read_run
    from calibrated_rl.api.runs import compare, train
    from calibrated_rl.api.settings import load_config
    from calibrated_rl.api.shift import ShiftResult, measure_shift, read_dialogues
    from calibrated_rl.calibration.base import CalibrationInputs, CalibrationMethod, ExtraTurn
    from calibrated_rl.calibration.replies import HumanReply, SampledReply
    from calibrated_rl.config.arms import Arm, ArmStyle
    from calibrated_rl.config.run_config import RunConfig
    from calibrated_rl.data.dialogue import (
        Dialogue,
        Finish,
        Outcome,
        Scenario,
        Side,
        Source,
        Split,
        TokenSequence,
        Turn,
    )
    from calibrated_rl.errors import PartLost, RolloutFailure, UserError
    from calibrated_rl.judges.base import BoundedJudge, ComparingJudge, Judge, NoVerdict, ScoringJudge, Verdict
    from calibrated_rl.learner.advantages.base import Advantage, CriticAdvantage, CriticConfig, TurnAdvantage
    from calibrated_rl.learner.losses.base import Loss, LossInputs, LossOutput, Totals
    from calibrated_rl.logs.base import FileReader, LogProblem, LogReader
    from calibrated_rl.logs.convert import Conversion
    from calibrated_rl.report.values import Interval
    from calibrated_rl.settings.fields import (
        Name,
        NotNegative,
        PartPath,
        Positive,
        Range,
        Seed,
        Share,
        check_settings,
    )
    from calibrated_rl.shift.base import Estimate, MatchedReplies, TurnEstimate
    from calibrated_rl.shift.interface import DialogueSets, Estimator
    from calibrated_rl.shift.sources import LogFiles
    from calibrated_rl.tasks.base import (
        BoundedTask,
        ScriptedHuman,
        ScriptedTask,
        ScriptedUser,
        Task,
        TurnBoundedTask,
        UserCheckingTask,
    )
    from calibrated_rl.turn_values.base import TurnValue, TurnValueInputs, TurnValueMethod

_FROM = {
    "api.asking": ("Asked", "ask"),
    "api.evaluation": ("Evaluation", "evaluate"),
    "api.judging": ("JudgeCheck", "check_judge"),
    "api.logs": ("convert_logs",),
    "api.progress": ("show_progress",),
    "api.results": ("ArmResult", "RunResult", "read_run"),
    "api.runs": ("compare", "train"),
    "api.settings": ("load_config",),
    "api.shift": ("ShiftResult", "measure_shift", "read_dialogues"),
    "calibration.base": ("CalibrationInputs", "CalibrationMethod", "ExtraTurn"),
    "calibration.replies": ("HumanReply", "SampledReply"),
    "config.arms": ("Arm", "ArmStyle"),
    "config.run_config": ("RunConfig",),
    "data.dialogue": (
        "Dialogue", "Finish", "Outcome", "Scenario", "Side", "Source", "Split", "TokenSequence", "Turn",
    ),
    "errors": ("PartLost", "RolloutFailure", "UserError"),
    "learner.advantages.base": ("Advantage", "CriticAdvantage", "CriticConfig", "TurnAdvantage"),
    "learner.losses.base": ("Loss", "LossInputs", "LossOutput", "Totals"),
    "judges.base": ("BoundedJudge", "ComparingJudge", "Judge", "NoVerdict", "ScoringJudge", "Verdict"),
    "logs.base": ("FileReader", "LogProblem", "LogReader"),
    "logs.convert": ("Conversion",),
    "report.values": ("Interval",),
    "settings.fields": (
        "Name", "NotNegative", "PartPath", "Positive", "Range", "Seed", "Share", "check_settings",
    ),
    "shift.base": ("Estimate", "MatchedReplies", "TurnEstimate"),
    "shift.interface": ("DialogueSets", "Estimator"),
    "shift.sources": ("LogFiles",),
    "tasks.base": (
        "BoundedTask", "ScriptedHuman", "ScriptedUser", "ScriptedTask", "Task", "TurnBoundedTask", "UserCheckingTask",
    ),
    "turn_values.base": ("TurnValue", "TurnValueInputs", "TurnValueMethod"),
}  # fmt: skip
"""Modules of the package with the names that are public here: the same as the imports above, which a test checks."""

_MODULE_OF = {name: module for module, names in _FROM.items() for name in names}

__all__ = [
    "Advantage", "Arm", "ArmResult", "ArmStyle", "Asked", "BoundedJudge", "BoundedTask", "CalibrationInputs",
    "CalibrationMethod", "ComparingJudge", "Conversion", "CriticAdvantage", "CriticConfig", "Dialogue",
    "DialogueSets", "Estimate", "Estimator", "Evaluation", "ExtraTurn", "FileReader", "Finish", "HumanReply",
    "Interval", "Judge", "JudgeCheck", "LogFiles", "LogProblem", "LogReader", "Loss", "LossInputs", "LossOutput",
    "MatchedReplies", "Name", "NoVerdict", "NotNegative", "Outcome", "PartLost", "PartPath", "Positive", "Range",
    "RolloutFailure", "RunConfig", "RunResult", "SampledReply", "Scenario", "ScoringJudge", "ScriptedHuman",
    "ScriptedTask", "ScriptedUser", "Seed", "Share", "ShiftResult", "Side", "Source", "Split", "Task",
    "TokenSequence", "Totals", "Turn", "TurnAdvantage", "TurnBoundedTask", "TurnEstimate", "TurnValue",
    "TurnValueInputs", "TurnValueMethod", "UserCheckingTask", "UserError", "Verdict", "ask", "check_judge",
    "check_settings", "compare", "convert_logs", "evaluate", "load_config", "measure_shift", "read_dialogues",
    "read_run", "show_progress", "train",
]  # fmt: skip


if not TYPE_CHECKING:  # to a type checker there is nothing but the imports above, so that it finds misspelt names

    def __getattr__(name: str) -> Any:
        """A public name, from the module that has it (PEP 562)."""
        if name not in _MODULE_OF:
            raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
        value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
