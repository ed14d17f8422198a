"""Containers and formats are found by their files: a folder is the list, and one class in each file is the part."""

import importlib
import inspect
from typing import Any

from calibrated_rl.components.short_names import short_names


def parts_of(package: str, suffix: str) -> dict[str, Any]:
    """An instance of the class of each module of ``package`` whose name ends in ``suffix``, by the module's name."""
    found = {}
    for name in short_names(package):
        module = importlib.import_module(f"{package}.{name}")
        parts = [
            cls for _, cls in inspect.getmembers(module, inspect.isclass)
            if cls.__module__ == module.__name__ and cls.__name__.endswith(suffix)
        ]  # fmt: skip
        assert len(parts) == 1, f"{module.__name__} must contain one class that ends in {suffix}, not {len(parts)}"
        found[name] = parts[0]()
    return found
