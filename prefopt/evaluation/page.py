"""The pages of all reports: templates with one style sheet, each page one HTML file that asks nothing of the network.

The templates lie in ``templates/``. A page extends ``page.html``, which takes ``facts`` and optional ``warnings``.
Values are escaped, unless they are `Markup`: charts that this package drew itself.
"""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def render(template: str, **values: Any) -> str:
    """Fill in a template.

    Args:
        template: The name of a file in ``templates/``.
        values: What the template names; a name without a value is an error.
    """
    return environment().get_template(template).render(values)


@cache
def environment() -> Environment:
    """The templates and how they are filled in."""
    found = Environment(
        loader=PackageLoader("prefopt.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters["percent"] = percent
    return found


def percent(share: float) -> str:
    """A share as the reports write it."""
    return f"{share:.1%}"


def write_files(out: Path, numbers: Mapping[str, Any], html: str) -> Path:
    """Write ``report.json`` and ``report.html`` into a folder, which is made if it is not there.

    Returns:
        The path of the HTML file.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    path = out / "report.html"
    path.write_text(html, encoding="utf-8")
    return path
