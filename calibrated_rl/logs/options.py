"""How files of logs are read. By the defaults, what a file is and who speaks is found out."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from calibrated_rl.components.short_names import short_names
from calibrated_rl.settings.fields import Name, OneOf

ANY = "auto"
FORMATS = short_names("calibrated_rl.logs.formats")
"""Names of the formats: files of ``logs/formats/``."""
Column = Literal[
    "id", "messages", "conversation", "conversations", "dialogue", "side", "text", "time", "turn",
    "goal", "reward", "success", "ending", "split", "policy_instructions", "user_instructions",
]  # fmt: skip
"""What a column map can say of a column."""


@dataclass(frozen=True, kw_only=True)
class FileSettings:
    """Settings of the reading of files; those that decide nothing in a format are not looked at."""

    format: Annotated[str, OneOf((ANY, *FORMATS))] = ANY
    """The format of the records; `auto`: found by their keys."""
    columns: dict[Column, Name] = field(default_factory=dict)
    """Names of the file's own columns (or keys) by what they contain: `{dialogue: ticket, side: who, text: body}`."""
    policy: list[Name] = field(default_factory=list)
    """Speakers that are the policy's side: names, or `KEY=VALUE` of what stands beside a turn; all others are users."""
    users: list[Name] = field(default_factory=list)
    """Speakers that are users; without `policy`, all others are the policy's side."""
    strict: bool = False
    """Refuse dialogues with keys that are not known, instead of keeping them as metadata."""
    mask_personal_data: bool = False
    """Replace e-mail addresses, phone and card numbers by `[email 1]`, `[phone 1]` and `[card 1]`."""
