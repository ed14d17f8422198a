"""Problems of mathematics with their answers, from the files of GSM8K or MATH, or others of these forms.

- GSM8K (Cobbe et al. 2021, arXiv 2110.14168): JSON Lines of ``question`` and ``answer``, the answer after ``####``;
- MATH (Hendrycks et al. 2021, arXiv 2103.03874): a JSON file a problem, or JSON Lines, of ``problem`` and ``solution``,
  the answer in the last ``\\boxed{...}``.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from calibrated_rl.data.dialogue import Split
from calibrated_rl.errors import UserError
from calibrated_rl.logs.base import LogProblem, refuse_other_files
from calibrated_rl.logs.data_set import draw_splits
from calibrated_rl.settings.fields import Name, NotNegative, Seed

WANTED = (
    "wanted are problems as in GSM8K (JSON Lines of 'question' and 'answer', the answer after '####') or in MATH "
    "('problem' and 'solution', the answer in \\boxed{}), a file or a folder of them"
)


@dataclass(frozen=True)
class ProblemSource:
    """Which problems there are, and how they are split."""

    path: Name = "../shared/data/gsm8k"
    """A file of problems, or a folder with such files, in folders of it too."""
    held_out: NotNegative = 500
    """Problems of the held-out split."""
    monitor: NotNegative = 100
    """Problems of the monitor split."""
    tuning: NotNegative = 100
    """Problems of the tuning split; the rest is for training."""
    seed: Seed = 0
    """Draws the splits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MathProblem:
    """One problem."""

    question: str
    answer: str
    """As the file writes it: a number, or LaTeX."""

    @property
    def id(self) -> str:
        """From the question, so that it does not depend on the file's order."""
        return f"math-{blake2b(self.question.encode('utf-8', 'backslashreplace'), digest_size=8).hexdigest()}"


class _Refused(Exception):
    """Why a problem cannot be used."""


def read_problems(path: Path) -> tuple[list[MathProblem], list[LogProblem]]:
    """All usable problems, each once, and what was refused, by line.

    Raises:
        UserError: there is no such file, or no problem in it is usable.
    """
    files = [path]
    if path.is_dir():
        files = sorted(file for ending in ("*.jsonl", "*.json") for file in path.rglob(ending))
        if not files:
            raise UserError(f"{path} has no file *.jsonl or *.json; {WANTED}")
    usable: dict[str, MathProblem] = {}
    refused: list[LogProblem] = []
    for file in files:
        refuse_other_files(file, WANTED)
        for number, text in _records(file):
            try:
                problem = _problem(text)
                if problem.question in usable:
                    raise _Refused("the question occurred before")
                usable[problem.question] = problem
            except _Refused as refusal:
                refused.append(LogProblem(str(file), number, str(refusal)))
    if not usable:
        first = f" (first: {refused[0]})" if refused else ""
        raise UserError(f"{path} contains no usable problem{first}; {WANTED}")
    return list(usable.values()), refused


def split_problems(problems: Sequence[MathProblem], source: ProblemSource) -> dict[Split, list[MathProblem]]:
    """The four splits, each in a fixed order that does not depend on the file's.

    Raises:
        UserError: no problem would be left for training.
    """
    return draw_splits("MATH-Chat", problems, source, lambda problem: (problem.question, problem.question))


def _records(file: Path) -> Iterator[tuple[int, str]]:
    try:
        content = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read ({error}); {WANTED}") from error
    if file.suffix == ".json":
        yield 1, content
        return
    yield from ((number, line) for number, line in enumerate(content.split("\n"), start=1) if line.strip())


def _problem(text: str) -> MathProblem:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _Refused(f"not JSON: {error}") from None
    if not isinstance(content, dict):
        raise _Refused(f"it is {type(content).__name__}, not an object")
    for question, solution, answer_of in (("question", "answer", _after_hashes), ("problem", "solution", _boxed)):
        if question in content and solution in content:
            words, answer = _words(content[question], question), answer_of(_words(content[solution], solution))
            if not answer:
                raise _Refused(f"'{solution}' has no answer, after '####' or in \\boxed{{}}")
            return MathProblem(question=words, answer=answer)
    raise _Refused("it has neither 'question' and 'answer' nor 'problem' and 'solution'")


def _words(value: Any, key: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _Refused(f"'{key}' is no text")
    return value.strip()


def _after_hashes(solution: str) -> str:
    _, mark, answer = solution.rpartition("####")
    return answer.strip() if mark else ""


def _boxed(solution: str) -> str:
    """The content of the last ``\\boxed{...}``, whose braces may be nested; empty: there is none."""
    start = solution.rfind("\\boxed{")
    if start < 0:
        return ""
    depth = 1
    content: list[str] = []
    for character in solution[start + len("\\boxed{") :]:
        depth += {"{": 1, "}": -1}.get(character, 0)
        if not depth:
            return "".join(content).strip()
        content.append(character)
    return ""
