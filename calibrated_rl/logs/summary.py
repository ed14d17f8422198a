"""What was read out of files, as lines of text."""

from collections import Counter

from calibrated_rl.errors import printable
from calibrated_rl.logs.personal import TITLES
from calibrated_rl.logs.reading import ReadingReport

MOST_FILES = 20
"""Files that have a line of their own."""
MOST_KEYS = 12
"""Keys of metadata that are named."""


def summary_lines(report: ReadingReport) -> list[str]:
    """A line for each file, for each thing that was decided, and for what is kept beside the turns."""
    lines = [
        f"{file.name}: {file.format} in {file.container}: {file.dialogues} dialogues with {file.turns} turns, "
        f"{file.refused} refused"
        for file in report.files[:MOST_FILES]
    ]
    if len(report.files) > MOST_FILES:
        others = report.files[MOST_FILES:]
        lines.append(
            f"{len(others)} more files: {sum(file.dialogues for file in others)} dialogues, "
            f"{sum(file.refused for file in others)} refused"
        )
    lines += [f"{count} {what}" for what, count in report.counts.most_common() if count]
    if report.metadata:
        lines.append(f"kept beside the turns, in so many dialogues: {_keys(report.metadata)}")
    return [*lines, personal_line(report) or "no e-mail address, phone or card number found"]


def personal_line(report: ReadingReport) -> str:
    """How many personal data were found, and whether they are masked; empty: none."""
    personal = report.personal
    found = [f"{personal.counts[kind]} {title}" for kind, title in TITLES.items() if personal.counts[kind]]
    if not found:
        return ""
    done = "masked" if report.masked else "not masked: mask_personal_data (--mask-personal-data) does"
    return f"personal data in {personal.dialogues} dialogues: {', '.join(found)}; {done}"


def _keys(metadata: Counter[str]) -> str:
    named = ", ".join(f"{printable(key, 40)} ({count})" for key, count in metadata.most_common(MOST_KEYS))
    return f"{named} and {len(metadata) - MOST_KEYS} more keys" if len(metadata) > MOST_KEYS else named
