"""The type checker behind the jaxtyping import hook: shapes and types of every prefopt function, at run time."""

from collections.abc import Callable
from typing import Any, Self, get_args

from beartype import BeartypeConf, beartype

# ``beta=1`` for a float is right.
_beartype = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check(function: Callable) -> Callable:
    """`beartype` without the hints that it refuses: `Self`, which it takes in decorated classes only while the hook
    decorates methods one by one, and protocols that cannot be checked at run time."""
    if function.__module__.startswith("prefopt.cli"):
        # typer fills the parameters of commands by rules of its own.
        return function
    hints = getattr(function, "__annotations__", {})
    function.__annotations__ = {name: hint for name, hint in hints.items() if not _uncheckable(hint)}
    return _beartype(function)


def _uncheckable(hint: Any) -> bool:
    protocol = getattr(hint, "_is_protocol", False) and not getattr(hint, "_is_runtime_protocol", False)
    return hint is Self or protocol or any(_uncheckable(part) for part in get_args(hint))
