"""The evidence that papers' files declare is there, and the page that lists it names every objective."""

from pathlib import Path

import pytest
from equivalent import EQUIVALENT
from mutate import mutants
from table import PAGE, details

from prefopt import objectives
from prefopt.algorithms.online import assemblies
from prefopt.core.errors import UsageError
from prefopt.core.evidence import CLASSES, INDEPENDENT, Evidence, verdict
from prefopt.core.registry import ALIASES, REGISTRY

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", objectives.names())
def test_every_test_named_as_evidence_exists(name: str) -> None:
    found = REGISTRY[name].evidence
    assert [CLASSES.index(one.kind) for one in found] == sorted(CLASSES.index(one.kind) for one in found)
    for one in found:
        text = text_of_test(one)
        if (one.kind, one.what) == (INDEPENDENT, "TRL 1.16"):
            continue  # held against the rows of the comparison in test_against_trl.py
        # The objective is named in the test file, under its name, an alias, or the name of its family.
        names = [
            name,
            *(alias for alias, target in ALIASES.items() if target == name),
            name.split("_")[-1],
            "nemotron_rpo",
        ]
        assert any(word in text for word in names)


@pytest.mark.parametrize("name", sorted(assemblies()))
def test_every_test_named_as_evidence_of_an_online_algorithm_exists(name: str) -> None:
    found = assemblies()[name].evidence
    assert [CLASSES.index(one.kind) for one in found] == sorted(CLASSES.index(one.kind) for one in found)
    for one in found:
        text_of_test(one)


def text_of_test(one: Evidence) -> str:
    """The file of a test, which must have that test."""
    file, _, test = one.test.partition("::")
    text = (ROOT / "tests" / file).read_text()
    assert not test or f"def {test}(" in text
    return text


def test_evidence_is_of_a_known_kind() -> None:
    with pytest.raises(UsageError, match="evidence of kind 'hearsay'"):
        Evidence("hearsay", "a forum", "tests/test_it.py")
    assert (verdict(()), verdict(REGISTRY["dpo"].evidence)) == ("transcribed", "certified")


def test_the_page_lists_the_evidence_that_is_declared() -> None:
    page = (ROOT / PAGE).read_text()
    assert details(objectives.names()) in page, "the page is not up to date: run `python tests/verify/table.py`"


def test_the_page_lists_every_objective() -> None:
    page = (ROOT / PAGE).read_text()
    for name in objectives.names():
        assert f"| `{name}` |" in page, f"{name} is missing: run `python tests/verify/table.py`"


@pytest.mark.parametrize("name", EQUIVALENT)
def test_mutants_that_are_argued_away_are_still_made(name: str) -> None:
    made = {str(mutant) for mutant in mutants(REGISTRY[name].cls)}
    assert set(EQUIVALENT[name]) <= made
