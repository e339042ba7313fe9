"""The layouts that are known, by name, in the order in which they are tried."""

from prefopt.data.exported import EXPORTED
from prefopt.data.judged import JUDGED
from prefopt.data.layouts import BASIC, OTHER, Format

FORMATS: dict[str, Format] = {each.name: each for each in (*JUDGED, *EXPORTED, *BASIC, *OTHER)}
