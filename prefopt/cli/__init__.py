"""The command line. Commands import what they need when they run, so that ``prefopt --help`` is fast."""

import logging
import sys
import warnings

from prefopt.cli.processes import leave
from prefopt.core.errors import Interrupted, PrefoptError


def main() -> None:
    """Run the command line; an error raised on purpose becomes one line on standard error and exit status 2."""
    from prefopt.cli.app import app

    # What libraries mean to rename one day is for their callers, not for someone at the command line.
    warnings.simplefilter("ignore", FutureWarning)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        app()
    except Interrupted as error:
        print(f"prefopt: {error}", file=sys.stderr)
        sys.exit(128 + error.signal)
    except KeyboardInterrupt:
        print("prefopt: interrupted", file=sys.stderr)
        sys.exit(130)
    except PrefoptError as error:
        print(f"prefopt: error: {error}", file=sys.stderr)
        sys.exit(2)
    except SystemExit as end:
        if not end.code:  # where a process failed the others may never answer
            leave()
        raise


__all__ = ["main"]
