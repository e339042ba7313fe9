"""``prefopt verify``: a function in a file, an objective in a module, or the losses of another library."""

from prefopt.core.console import results
from prefopt.core.errors import UsageError
from prefopt.core.importing import load_target


def main_verify(target: str, as_: str | None = None, against: str | None = None) -> int:
    """Verify and print the report.

    Args:
        target: ``file.py:name`` or ``package.module:name``, a function or a subclass of `Objective`; an empty string
            with ``against``, or the name of a loss to look at alone.
        as_: the loss that a function is meant to be.
        against: ``"trl"``: the installed TRL, one row per loss.

    Returns:
        The exit status: 0 if every check passed.

    Raises:
        UsageError: a target that cannot be loaded, or an unknown name.
    """
    console = results()
    if against is not None:
        if against != "trl":
            raise UsageError(f"cannot compare with {against!r}; 'trl' is the library that is known.")
        from prefopt.verify.against_trl import compare

        comparison = compare([target] if target else None)
        console.print(comparison)
        return 0
    from prefopt.verify.verifier import verify

    report = verify(load_target(target, "verify"), as_)
    console.print(report)
    return 0 if report else 1
