"""The table of labels: that it says what containers, formats and the verifier take from it."""

import dataclasses

import pytest
import torch

from prefopt.core.batches import Completions, Demonstrations, Labelled, Pairs, Ranked, Rollouts
from prefopt.core.errors import UsageError
from prefopt.core.labels import LABELS, columns_of, labels_of, meaning_of, sources_of

CONTAINERS = {kind.kind: kind for kind in (Demonstrations, Labelled, Pairs, Ranked, Rollouts)}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_containers_have_the_fields_that_the_table_says(kind: str) -> None:
    declared = {label.name for label in labels_of(kind)}
    assert declared == set(CONTAINERS[kind].label_fields())
    tensors = {one.name for one in dataclasses.fields(CONTAINERS[kind]) if "Completions" not in str(one.type)}
    assert tensors == declared


def test_the_table_is_whole() -> None:
    names = list(LABELS)
    for label in LABELS.values():
        assert set(label.containers) <= set(CONTAINERS)
        assert all(source in LABELS for sources in label.derived.values() for source in sources)
        assert not label.above or names.index(label.above) < names.index(label.name)
        if label.bounds is not None:
            assert label.bounds[0] <= label.typical[0] <= label.typical[1] <= label.bounds[1]
    for kind in CONTAINERS:
        columns = [column for label in LABELS.values() for column in label.columns.get(kind, ())]
        assert len(columns) == len(set(columns)), f"two labels of {kind} are read from one column"


def test_columns_and_meanings_follow_the_layout() -> None:
    assert columns_of("scores", "ranked") == ("scores",)
    assert columns_of("scores", "pairs") == ("score_chosen", "score_rejected")
    assert columns_of("chosen_score", "ranked") == ("scores",)
    assert columns_of("rated_margin", "ranked") == ("margin",)
    assert columns_of("someone's own", "pairs") == ("someone's own",)
    assert meaning_of("scores", "pairs") == meaning_of("chosen_score", "pairs") == "numbers, higher is better"
    assert meaning_of("chosen_score", "ranked") == meaning_of("scores", "ranked") != meaning_of("scores", "pairs")


def test_a_view_has_its_labels_from_those_of_the_container() -> None:
    assert sources_of("scores", "pairs") == ("chosen_score", "rejected_score")
    assert sources_of("chosen_score", "ranked") == ("scores",)
    assert sources_of("preference", "pairs") == ("preference",)


def test_a_container_takes_its_own_labels_and_asks_for_the_missing() -> None:
    rows = Completions.unscored(torch.tensor([1, 2]))
    labels = {"ids": torch.tensor([4, 5]), "desirable": torch.tensor([True, False]), "preference": torch.zeros(2)}
    found = Labelled.assemble(rows, labels)
    assert found.desirable is labels["desirable"] and found.ids is labels["ids"]
    with pytest.raises(UsageError, match=r"a batch of labelled needs the label 'desirable' \(true for a desirable"):
        Labelled.assemble(rows, {"ids": labels["ids"]})
