"""Why rows were left out, as a user reads it."""

from collections.abc import Sequence

from prefopt.data.reasons import Skipped, tally


def sentences(skipped: Sequence[Skipped]) -> dict[str, int]:
    """Reason in words → number of rows."""
    return {str(cause): count for cause, count in tally(skipped)}
