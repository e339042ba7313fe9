"""The index that lists and explanations are read from says what the algorithms themselves say."""

import inspect
import subprocess
import sys

import pytest

import prefopt
from prefopt.algorithms import index
from prefopt.algorithms.algorithm import all_names
from prefopt.algorithms.card import head
from prefopt.algorithms.describe import describe, docstrings

HINT = "the index is not up to date: run `python -m prefopt.algorithms.index`"


def own_names() -> set[str]:
    """Those of prefopt itself, whatever other tests have registered."""
    cards = [describe(prefopt.get_algorithm(name)) for name in all_names()]
    return {card.name for card in cards if all(one.startswith("prefopt.") for one in card.documented)}


def test_the_index_has_every_algorithm() -> None:
    assert set(index.indexed()) == own_names(), HINT


@pytest.mark.parametrize("name", sorted(index.indexed()))
def test_the_index_says_what_the_algorithm_says(name: str) -> None:
    algorithm = prefopt.get_algorithm(name)
    card = describe(algorithm)
    assert index.indexed()[name] == card, HINT
    assert prefopt.explain(name) == "\n".join([*head(card), "", "\n\n".join(docstrings(algorithm))])


def test_the_file_is_what_would_be_written() -> None:
    assert index.FILE.read_text() == index.text_of(index.indexed())


@pytest.mark.parametrize("name", ["raft", "sigmoid"])
def test_an_alias_is_explained_as_what_it_stands_for(name: str) -> None:
    assert prefopt.explain(name) == prefopt.explain(prefopt.get_algorithm(name).name)


def test_a_docstring_that_is_not_there_is_empty() -> None:
    assert index.docstring("prefopt.objectives.dpo:Nothing") == ""
    assert index.docstring("prefopt.objectives.dpo:DPO") == inspect.getdoc(prefopt.get_objective("dpo").__class__)


def test_lists_and_explanations_of_all_names_import_no_torch() -> None:
    code = (
        "import sys, prefopt, prefopt.cli.app\n"
        "names = prefopt.algorithms()\n"
        "assert len(names) > 60 and 'dpo' in names\n"
        "assert all(prefopt.explain(name).startswith(name + ': ') for name in names)\n"
        "from prefopt.algorithms.listing import list_algorithms\n"
        "assert len(list_algorithms()) == 1 + len(names)\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
