"""The arguments of public functions: their types are checked before any work."""

from __future__ import annotations

import inspect
import numbers
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

from chestxray.errors import OutOfRange
from chestxray.files import LONGEST_NAME

P = ParamSpec("P")
R = TypeVar("R")
# No path has these; the surrogates that are missing here stand for the bytes of a name that is no text.
_NOT_IN_PATHS: Final = re.compile(r"[\0\ud800-\udc7f\udd00-\udfff]")
_SHOWN: Final = 40  # characters of a refused value


def is_number(value: object, *, whole: bool = False) -> bool:
    """Check whether a value is a real number, NumPy's included; a truth value is none, and NaN is one."""
    return isinstance(value, numbers.Integral if whole else numbers.Real) and not isinstance(value, bool)


def _is_path(value: object) -> bool:
    if not isinstance(value, str | os.PathLike):
        return False
    path = os.fspath(value)
    return isinstance(path, str) and path != "" and not _NOT_IN_PATHS.search(path) and _is_short(path)


def _is_short(path: str) -> bool:
    return "://" in path or all(len(os.fsencode(part)) <= LONGEST_NAME for part in Path(path).parts)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_list_of(holds: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, Sequence) and not isinstance(value, str | bytes) and all(map(holds, value))


# For an annotation as it is written: the words for its values, and their check. Whatever is not here is not checked.
_PATH: Final = (f"a path, as text or Path: not empty, and no name in it over {LONGEST_NAME} bytes", _is_path)
_CHECKS: Final[Mapping[str, tuple[str, Callable[[Any], bool]]]] = {
    "StrPath": _PATH,
    "str": ("a text", _is_text),
    "bool": ("True or False", lambda value: "bool" in type(value).__name__),
    "int": ("a whole number above 0", lambda value: is_number(value, whole=True) and value > 0),
    "float": ("a number in 0 to 1", lambda value: is_number(value) and 0 <= value <= 1),
    "Sequence[StrPath]": ("a list of paths", _is_list_of(_is_path)),
    "Sequence[str]": ("a list of texts", _is_list_of(_is_text)),
    "ProgressCallback": ("a function", callable),
    "Log": ("a function", callable),
    "Reporter": (
        "a reporter, with log and progress",
        lambda value: hasattr(value, "log") and hasattr(value, "progress"),
    ),
    "None": ("None", lambda value: value is None),
}
_CLASSES: Final = ("Settings", "Options", "Recipe", "Audit", "Prediction")  # known by their names, so not imported here


def arguments_checked(function: Callable[P, R]) -> Callable[P, R]:
    """Check the types of a public function's arguments before it does anything. Raises: OutOfRange."""
    signature = inspect.signature(function)
    wanted = {name: str(one.annotation).replace("Path | str", "StrPath") for name, one in signature.parameters.items()}

    @wraps(function)
    def after_a_check(*args: P.args, **kwargs: P.kwargs) -> R:
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            _check(name, value, wanted[name].split(" | "))
        return function(*args, **kwargs)

    return after_a_check


def _check(name: str, value: object, kinds: Sequence[str]) -> None:
    if not any(_fits(value, kind) for kind in kinds):
        words = " or ".join(_CHECKS[kind][0] if kind in _CHECKS else kind for kind in kinds)
        shown = "empty" if isinstance(value, str) and not value else repr(str(value)[:_SHOWN])
        raise OutOfRange(f"{name} is {shown}; it must be {words}")


def _fits(value: object, kind: str) -> bool:
    if kind.endswith(_CLASSES):
        return any(one.__name__ == kind for one in type(value).__mro__)
    return kind not in _CHECKS or _CHECKS[kind][1](value)
