"""The cards of prefopt's own algorithms, read from a file: importing the algorithms themselves takes torch and seconds.

The file is written by ``python -m prefopt.algorithms.index``, and a test compares it with the algorithms.
"""

import ast
import json
import sys
from functools import cache
from pathlib import Path

from prefopt.algorithms.card import Card
from prefopt.core import plugins

FILE = Path(__file__).with_name("index.json")
PACKAGE = Path(__file__).parents[2]
"""The folder that holds the package."""


@cache
def indexed() -> dict[str, Card]:
    """The cards of prefopt's own algorithms by name."""
    return {name: Card.from_json(data) for name, data in json.loads(FILE.read_text(encoding="utf-8")).items()}


def is_complete() -> bool:
    """Whether there are no other algorithms: no plug-in is installed, and none was registered in this process."""
    if any(map(plugins.installed, (plugins.OBJECTIVES, plugins.ALGORITHMS))):
        return False
    # Asked of modules that are imported already, because importing them is what this file avoids.
    registry = sys.modules.get("prefopt.core.registry")
    assembly = sys.modules.get("prefopt.algorithms.assembly")
    offline = [name for name, entry in registry.REGISTRY.items() if entry.trains_from_data] if registry else []
    return {*offline, *(assembly.ASSEMBLIES if assembly else ())} <= indexed().keys()


def docstring(documented: str) -> str:
    """The docstring of one of prefopt's own classes, read from its file without importing it."""
    module, _, name = documented.partition(":")
    path = PACKAGE.joinpath(*module.split(".")).with_suffix(".py")
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return ast.get_docstring(node) or ""
    return ""


def text_of(cards: dict[str, Card]) -> str:
    """The content of the file for some cards."""
    data = {name: card.to_json() for name, card in cards.items()}
    return json.dumps(data, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    """Write the file anew."""
    from prefopt.algorithms.describe import all_cards

    if any(map(plugins.installed, (plugins.OBJECTIVES, plugins.ALGORITHMS))):
        sys.exit("prefopt's plug-ins are installed here, and the index has its own algorithms only: uninstall them.")
    FILE.write_text(text_of(all_cards()), encoding="utf-8")


if __name__ == "__main__":
    main()
