"""Other packages' objectives and algorithms, which they offer under entry points."""

from collections.abc import MutableMapping
from importlib.metadata import EntryPoint, entry_points

OBJECTIVES, ALGORITHMS = "prefopt.objectives", "prefopt.algorithms"
"""The entry point groups. Each entry point names a module, or something in one, whose import registers names."""

_loaded: set[str] = set()


def installed(group: str) -> tuple[EntryPoint, ...]:
    """The plug-ins of a group, without importing them."""
    return tuple(entry_points(group=group))


def load_plugins(group: str, *tables: MutableMapping) -> None:
    """Import the plug-ins of a group, once. One that cannot be imported is named on one line and left out.

    Args:
        group: The entry point group.
        tables: The registries that plug-ins add to. What a plug-in registered before it failed is taken out again.
    """
    if group in _loaded:
        return
    # Before any import: a plug-in may itself ask for an algorithm by name, which leads here again.
    _loaded.add(group)
    for point in installed(group):
        before = [dict(table) for table in tables]
        try:
            point.load()
        except (Exception, SystemExit) as error:  # whatever it is, the other algorithms still work
            for table, kept in zip(tables, before, strict=True):
                table.clear()
                table.update(kept)
            _say_left_out(point, error)


def _say_left_out(point: EntryPoint, error: BaseException) -> None:
    from prefopt.core.console import say  # rich takes a while to import, and few plug-ins are broken

    package = f" of {point.dist.name}" if point.dist else ""
    reason = " ".join(str(error).split()) or "no message"
    say(
        f"the plug-in {point.name!r}{package} ({point.value}) cannot be imported and is left out: "
        f"{type(error).__name__}: {reason}"
    )
