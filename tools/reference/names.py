"""The page of the public names of ``calibrated_rl``: signatures and docstrings, as they are in the code."""

import dataclasses
import inspect
import re
from collections.abc import Iterator
from typing import Any, get_args, get_origin

import calibrated_rl
from calibrated_rl.config.run_config import RunConfig
from tools.reference.keys import field_texts, markdown

HEAD = """<!-- Made by `make docs` out of calibrated_rl (tools/reference/); do not edit. -->

# Public names

All of them are attributes of `calibrated_rl` (`import calibrated_rl as crl`); [From Python](../python_api.md) shows how
they are used. What is not named here may change without notice.
"""

GROUPS = {
    "Functions": (
        "load_config", "compare", "train", "evaluate", "measure_shift", "ask", "read_run", "read_dialogues",
        "convert_logs",
        "check_judge", "show_progress",
    ),
    "Results": ("RunConfig", "RunResult", "ArmResult", "Interval", "Evaluation", "ShiftResult", "Asked", "JudgeCheck"),
    "Dialogues": (
        "Dialogue", "Turn", "Scenario", "Outcome", "Side", "Split", "Source", "Finish", "TokenSequence",
    ),
    "Tasks and humans": (
        "Task", "BoundedTask", "TurnBoundedTask", "UserCheckingTask", "ScriptedTask", "ScriptedUser", "ScriptedHuman",
    ),
    "Judges": ("Judge", "ScoringJudge", "ComparingJudge", "BoundedJudge", "Verdict", "NoVerdict"),
    "Logs": ("LogReader", "FileReader", "LogProblem", "LogFiles", "Conversion"),
    "Learning": (
        "Loss", "LossInputs", "LossOutput", "Totals", "Advantage", "TurnAdvantage", "CriticAdvantage", "CriticConfig",
        "TurnValueMethod", "TurnValueInputs", "TurnValue",
    ),
    "Calibration and arms": (
        "CalibrationMethod", "CalibrationInputs", "HumanReply", "SampledReply", "ExtraTurn", "Arm", "ArmStyle",
    ),
    "Shift": ("Estimator", "DialogueSets", "MatchedReplies", "Estimate", "TurnEstimate"),
    "Settings of parts": (
        "Range", "Positive", "NotNegative", "Share", "Seed", "Name", "PartPath", "check_settings",
    ),
    "Errors": ("UserError", "PartLost", "RolloutFailure"),
}  # fmt: skip


def names_page() -> str:
    """The whole page."""
    lines = [HEAD]
    for title, names in GROUPS.items():
        lines += [f"## {title}", ""]
        for name in names:
            lines += [f"### `{name}`", "", *_entry(name, getattr(calibrated_rl, name)), ""]
    return "\n".join(lines).rstrip() + "\n"


def _entry(name: str, documented: Any) -> Iterator[str]:
    if inspect.isfunction(documented):
        yield from ("```text", _signature(name, documented), "```", "", *_sections(inspect.getdoc(documented) or ""))
    elif inspect.isclass(documented):
        yield f"`{documented.__module__}:{documented.__qualname__}`"
        yield from ("", *_sections(_own_doc(documented)), *_fields(documented), *_methods(documented))
    elif get_origin(documented) is not None:
        base_type, *limits = get_args(documented)
        words = (getattr(limit, "words", "") or str(limit) for limit in limits)
        yield f"An annotation: `{base_type.__name__}`, {', '.join(words)}."


def _own_doc(cls: type) -> str:
    return inspect.cleandoc(cls.__doc__ or "")


def _signature(name: str, function: Any, width: int = 100) -> str:
    """The signature, with a parameter a line where it is long; annotations as in the code."""
    parameters = list(inspect.signature(function).parameters.values())
    parameter_texts, keywords = [], False
    for parameter in parameters:
        if parameter.name in ("self", "cls"):
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not keywords:
            parameter_texts.append("*")
            keywords = True
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        parameter_texts.append(f"{parameter.name}: {_type(parameter.annotation)}{default}")
    returns = inspect.signature(function).return_annotation
    ending = "" if returns is inspect.Signature.empty else f" -> {_type(returns)}"
    one_line = f"{name}({', '.join(parameter_texts)}){ending}"
    if len(one_line) <= width:
        return one_line
    return f"{name}(\n" + "".join(f"    {parameter_text},\n" for parameter_text in parameter_texts) + f"){ending}"


def _type(annotation: Any) -> str:
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    short = re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Za-z_])", "", text).strip("'\"")
    short = re.sub(r"ndarray\[.*?, dtype\[(\w+)\]\]", r"\1 array", short)  # the text differs between versions of NumPy
    return re.sub(r"^Optional\[(.*)\]$", r"\1 | None", short)


def _sections(doc: str) -> Iterator[str]:
    """A docstring as Markdown: its ``Args``, ``Returns`` and ``Raises`` as lists."""
    listing = False
    entry = ""
    for line in doc.replace("``", "`").splitlines():
        head = re.fullmatch(r"(Args|Returns|Raises):", line)
        if head or (listing and line and not line.startswith(" ")):
            yield from _item(entry)
            entry, listing = "", bool(head)
            yield from ("", f"{head[1]}:", "") if head else ("", line)
        elif listing and line.strip():
            if re.match(r" {4}\S", line) and (re.match(r" {4}[\w*]+: ", line) or not entry):
                yield from _item(entry)
                entry = line.strip()
            else:
                entry += f" {line.strip()}"
        elif not listing:
            yield line
    yield from _item(entry)


def _item(entry: str) -> Iterator[str]:
    if entry:
        name, colon, text = entry.partition(": ")
        yield f"- `{name}`: {text}" if colon and re.fullmatch(r"\w+", name) else f"- {entry}"


def _fields(cls: type) -> Iterator[str]:
    if cls is RunConfig:
        yield from ("", "Its fields are the keys of a config: [Every key](config.md).")
        return
    if not dataclasses.is_dataclass(cls):
        return
    texts = field_texts(cls)
    yield ""
    for field in dataclasses.fields(cls):
        text = texts.get(field.name, "")
        yield f"- `{field.name}: {_type(field.type)}`" + (f": {text}" if text else "")


def _methods(cls: type) -> Iterator[str]:
    """The methods and properties of a class itself, in order."""
    members = [
        (name, member) for name, member in vars(cls).items()
        if (not name.startswith("_") or name == "__call__")
        and (inspect.isfunction(member) or isinstance(member, property | classmethod))
    ]  # fmt: skip
    if members:
        yield ""
    for name, member in members:
        function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        heading = name if isinstance(member, property) else _signature(name, function, width=10_000)
        text = markdown(function.__doc__)
        yield f"- `{heading}`" + (f": {text}" if text else "")
