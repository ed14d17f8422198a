"""Model folders: atomic writes, and another chat template in place of the model's own."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from calibrated_rl.errors import UserError
from calibrated_rl.storage.checksums import NAME as CHECKSUMS

TEMPLATE = "chat_template.jinja"
"""In a model's folder: its chat template, if it has a file of its own."""


@contextmanager
def publishing(folder: Path) -> Iterator[Path]:
    """A folder to write into, whose files move to ``folder`` when the block ends well; config.json comes
    last, so that a folder with a config is complete even if the process dies half-way."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as work:
        yield Path(work)
        folder.mkdir(exist_ok=True)
        for file in sorted(Path(work).iterdir(), key=lambda file: (file.name == "config.json", file.name)):
            os.replace(file, folder / file.name)


def with_template(base: Path, file: str, saved_copy: Path, folder: Path, key: str) -> Path:
    """The model in ``base`` with the chat template in ``file`` instead of its own: in ``folder``, which links to its
    files.

    Args:
        saved_copy: the run's copy of the template, written at the first call; it stands in for a file that no longer
            exists.
        key: of the setting, for errors.

    Raises:
        UserError: there is no such file, it is no text, or it is another one than when the run was begun.
    """
    saved_template = saved_copy.read_text(encoding="utf-8") if saved_copy.is_file() else None
    try:
        template = Path(file).expanduser().read_text(encoding="utf-8-sig")  # a byte order mark is no text
    except FileNotFoundError as error:
        if saved_template is None:
            raise UserError(f"{key}: there is no file {file}") from error
        template = saved_template
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{key}: {file} is not readable as text: {error}") from error
    if saved_template is not None and template != saved_template:
        raise UserError(
            f"{key}: {file} is not what it was when the run was begun ({saved_copy}): put that back, or give the run "
            "another name (name=...)"
        )
    if saved_template is None:
        saved_copy.parent.mkdir(parents=True, exist_ok=True)
        saved_copy.write_text(template, encoding="utf-8")
    with publishing(folder) as work:
        for source in base.iterdir():
            if source.is_file() and source.name not in (TEMPLATE, CHECKSUMS):
                (work / source.name).symlink_to(source.resolve())
        (work / TEMPLATE).write_text(template, encoding="utf-8")
    return folder
