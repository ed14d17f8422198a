"""Users' files as modules, each by its location: ``folder/file.py:Class`` in a YAML file.

A file is known by a name that is made from its full path, below this package. So two files of one name are two
modules, none takes the place of a module of the standard library, and ``sys.path`` stays as it is. What is pickled of
such a module names it like any other; a process that unpickles it imports this package, which finds the file at the
same place. Every machine of a cluster needs it there, as it needs the installed packages.

A file's folder is its package: ``from .words import GREETINGS`` finds ``words.py`` beside it. ``import words`` does
not, and nothing above the folder can be reached; a package of several folders is installed, or named on PYTHONPATH, and
written as ``package.module:Class``.
"""

import importlib.util
import os
import re
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

__path__: list[str] = []
"""Makes this module a package, whose modules are found by ``_UserFiles`` alone."""
PREFIX = f"{__name__}."
_ESCAPED = "="
"""Opens the name of a file that could not be imported by its own, such as ``v1.2.py``."""


def _encode(text: str) -> str:
    """``text`` without dots and slashes; only letters and digits stay as they are."""
    return "".join(chr(b) if chr(b).isalnum() and b < 128 else f"_{b:02x}" for b in os.fsencode(text))


def _decode(name: str) -> str:
    plain = re.sub(rb"_([0-9a-f]{2})", lambda match: bytes.fromhex(match[1].decode()), name.encode("ascii"))
    return os.fsdecode(plain)


def module_name(file: Path) -> str:
    """The name of the module that ``file`` is, the same in every process."""
    file = file.resolve()
    stem = file.name.removesuffix(".py")
    return f"{PREFIX}{_encode(str(file.parent))}.{stem if stem.isidentifier() else _ESCAPED + _encode(stem)}"


def is_user_file(module: str) -> bool:
    """Whether ``module`` is the name of a user's file."""
    return module.startswith(PREFIX)


class _UserFiles(MetaPathFinder):
    """Finds folders and files by the names of ``module_name``; what a folder contains besides is found as in
    packages."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith(PREFIX):
            return None
        folder, _, module = fullname.removeprefix(PREFIX).partition(".")
        if not folder.isascii() or not (place := Path(_decode(folder))).is_absolute():
            return None
        if not module:
            spec = ModuleSpec(fullname, None, is_package=True)
            spec.submodule_search_locations = [str(place)]
            return spec
        stem = _decode(module.removeprefix(_ESCAPED)) if module.startswith(_ESCAPED) and module.isascii() else module
        file = place / f"{stem}.py"
        # Before a folder of the same name, which Python itself would take.
        return importlib.util.spec_from_file_location(fullname, file) if "." not in module and file.is_file() else None


sys.meta_path.insert(0, _UserFiles())
