"""A part of the user's, wrapped in checks: every call passes through here, and its return value is used or refused.

``CheckedPart`` takes the place of a part (a task, a human, a reader, a method) wherever the system uses it. What the
part raises names the user's line (``user_code.py``); what it returns goes through the check of that method, which
converts what can be converted and refuses the rest. The part's own calls of itself are its own affair.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from calibrated_rl.components.plain_data import NotPlain
from calibrated_rl.components.user_code import UserCodeError, call, described


class CheckedPart:
    """Wraps ``part``: has its attributes and passes for an object of its class."""

    _KIND: ClassVar[str] = "part"
    """What it is called in messages."""
    _DRIVES: ClassVar[tuple[str, ...]] = ()
    """Methods that call the running system in turn."""

    def __init__(self, part: Any) -> None:
        attributes = self.__dict__
        attributes["_part"], attributes["_owner"] = part, type(part)
        for name in dir(part):
            attribute = getattr(type(part), name, None) or getattr(part, "__dict__", {}).get(name)
            if not name.startswith("_") and callable(attribute) and not isinstance(attribute, type):
                attributes[name] = self._checked(name)  # on the instance, where protocols look for methods

    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # type: ignore[override]
        """The part's class, so that ``isinstance`` sees through the wrapper."""
        return self.__dict__["_owner"]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        part, owner = self.__dict__["_part"], self.__dict__["_owner"]
        if not hasattr(owner, name):
            return getattr(part, name)
        return call(owner, lambda: described(owner, self._KIND, name), getattr, part, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.__dict__["_part"], name, value)

    def __repr__(self) -> str:
        return repr(self.__dict__["_part"])

    def __reduce__(self) -> Any:
        return type(self), (self.__dict__["_part"],)

    def _checks(self) -> Mapping[str, Callable[..., Any]]:
        """Check of each method: called with its return value and arguments, it returns the value to use, or raises
        ``NotPlain``."""
        return {}

    def _about(self, name: str, arguments: tuple[Any, ...]) -> str:
        """Which call it was, such as ``, scenario 'a'``; empty where the method's name is enough."""
        return ""

    def _checked(self, name: str) -> Callable[..., Any]:
        part, owner, drives = self.__dict__["_part"], self.__dict__["_owner"], name in self._DRIVES
        method, check = getattr(part, name), self._checks().get(name)

        def checked(*arguments: Any, **named: Any) -> Any:
            def description() -> str:
                return f"{described(owner, self._KIND, name)}{self._about(name, arguments)}"

            value = call(owner, description, method, *arguments, drives=drives, **named)
            if check is None:
                return value
            try:
                if inspect.iscoroutine(value):
                    value.close()
                    raise NotPlain("it", "is 'async def', and nobody awaits it: write 'def'")
                # A mapping of the user's may raise while it is looked at.
                return call(owner, description, check, value, *arguments, **named)
            except NotPlain as problem:
                failed = UserCodeError(f"{description()}: {problem}")
                failed.raised = str(failed)
                raise failed from None

        checked.__name__ = name
        return checked
