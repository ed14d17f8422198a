"""Parts of the package have a short name, that of their module: the folder is the list.

``grpo`` in ``calibrated_rl.learner.advantages`` stands for the one class with settings in ``grpo.py`` there. Adding a
file adds a name; nothing else has to be touched.
"""

import importlib
import inspect
import pkgutil
from functools import cache
from importlib.util import find_spec

from calibrated_rl.errors import UserError
from calibrated_rl.settings.fields import nearest

NO_PARTS = ("base", "checked")
"""Modules of such a folder that contain the protocol and its checks."""


@cache
def short_names(package: str) -> tuple[str, ...]:
    """The short names in ``package``, in alphabetical order. Imports none of their modules."""
    spec = find_spec(package)
    assert spec is not None, f"there is no package {package}"
    modules = (each.name for each in pkgutil.iter_modules(spec.submodule_search_locations))
    return tuple(sorted(name for name in modules if name not in NO_PARTS))


def full_path(package: str, name: str, kind: str) -> str:
    """The import path of the part that a short name of ``package`` means; any import path stays as it is.

    Args:
        kind: what it is called in messages.

    Raises:
        UserError: there is no such name.
    """
    if ":" in name:
        return name
    if name not in (names := short_names(package)):
        options = f"there are {', '.join(names)}, or package.module:Class"
        raise UserError(f"there is no {kind} '{name}'; {options}{nearest(name, names)}")
    module = importlib.import_module(f"{package}.{name}")
    parts = [
        cls for _, cls in inspect.getmembers(module, inspect.isclass)
        if cls.__module__ == module.__name__ and hasattr(cls, "Config")
    ]  # fmt: skip
    assert len(parts) == 1, f"{module.__name__} must contain one class with a Config, not {len(parts)}"
    return f"{module.__name__}:{parts[0].__name__}"


def short_names_of(package: str, cls: type) -> tuple[str, ...]:
    """Short names of the parts in ``package`` that ``cls`` is or derives from; none for a user's own part."""
    modules = (each.__module__.rpartition(".") for each in cls.__mro__)
    return tuple(name for parent, _, name in modules if parent == package and name in short_names(package))
