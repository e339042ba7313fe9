"""Progress bars that nothing tears."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as transformers_logging

from prefopt.core import console


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back the lines of a trainer, which would tear progress bars; warnings and errors still show."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    bits = logging.getLogger("bitsandbytes")
    bits_level = bits.level
    try:
        transformers_logging.set_verbosity_error()
        # Those of loading and saving, which come between ours.
        transformers_logging.disable_progress_bar()
        bits.setLevel(logging.ERROR)
        with console.quiet():
            yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
        bits.setLevel(bits_level)
