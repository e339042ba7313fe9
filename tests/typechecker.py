"""The type checker behind the jaxtyping import hook: shapes and types of every prefopt function, at run time."""

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable
from typing import Any, ForwardRef, Self, get_args

import jaxtyping
from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeCallHintViolation

# ``beta=1`` for a float is right.
_beartype = beartype(conf=BeartypeConf(is_pep484_tower=True))
_HOT = ("prefopt.lab.parse", "prefopt.lab.grammar")
"""Modules without tensors, whose functions call themselves a million times."""
_SHAPE = re.compile(r"\b(Float|Int|Bool|Shaped|Num)\d*\[")


def install(modules: list[str]) -> None:
    """Check the functions and dataclasses of these modules, which are not imported yet."""
    # The decorator that the hook writes before each function is looked up here. jaxtyping's own checks every argument
    # twice and binds signatures, also where there are no shapes to compare: most of what the tests would take.
    jaxtyping.jaxtyped, jaxtyped = _checked, jaxtyping.jaxtyped
    _checked.context = functools.partial(jaxtyped, "context")
    jaxtyping.install_import_hook(modules, "typechecker.check")


def _checked(*, typechecker: Callable) -> Callable:
    """In place of `jaxtyping.jaxtyped`."""

    def decorate(target: Any) -> Any:
        if getattr(target, "__module__", "").startswith(_HOT):
            return target
        if inspect.isclass(target):
            if dataclasses.is_dataclass(target) and "__init__" in vars(target):
                target.__init__ = decorate(target.__init__)
            return target
        if isinstance(target, classmethod | staticmethod):
            return type(target)(decorate(target.__func__))
        if isinstance(target, property):
            return property(*(each and decorate(each) for each in (target.fget, target.fset, target.fdel)))
        shapes = any(map(_has_shape, target.__annotations__.values()))
        if not shapes and "<locals>" in target.__qualname__:
            # What is made inside a function would be decorated at each call of it, which takes a millisecond.
            return target
        return _in_a_context(typechecker(target)) if shapes else typechecker(target)

    return decorate


def _in_a_context(function: Callable) -> Callable:
    """Sizes with one name are the same in all arguments and in what is returned."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with _checked.context():
            try:
                return function(*args, **kwargs)
            except BeartypeCallHintViolation:
                jaxtyping.print_bindings()
                raise

    return wrapped


def check(function: Callable) -> Callable:
    """`beartype` without the hints that it refuses: `Self`, which it takes in decorated classes only while the hook
    decorates methods one by one, protocols that cannot be checked at run time, and names of what is not there yet."""
    if function.__module__.startswith("prefopt.cli"):
        # typer fills the parameters of commands by rules of its own.
        return function
    hints = getattr(function, "__annotations__", {})
    function.__annotations__ = {name: hint for name, hint in hints.items() if not _uncheckable(hint)}
    wrapped = _beartype(function)
    function.__annotations__ = wrapped.__annotations__ = hints
    return wrapped


def _has_shape(hint: Any) -> bool:
    if isinstance(hint, str):
        return _SHAPE.search(hint) is not None
    return (inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray)) or any(map(_has_shape, get_args(hint)))


def _uncheckable(hint: Any) -> bool:
    protocol = getattr(hint, "_is_protocol", False) and not getattr(hint, "_is_runtime_protocol", False)
    later = isinstance(hint, str | ForwardRef)
    return hint is Self or protocol or later or any(_uncheckable(part) for part in get_args(hint))
