"""Parity with TRL, where it has the loss; where it differs, the difference and its reason."""

import pytest

pytest.importorskip("trl")

from prefopt.core.evidence import INDEPENDENT
from prefopt.core.registry import REGISTRY
from prefopt.objectives import names
from prefopt.verify.against_trl import compare

DIFFERENT = {
    ("sigmoid, label_smoothing=0.1", "cdpo"): "label_smoothing has no effect",
    ("ipo", "ipo"): "divides by the number of tokens",
    ("bco_pair", "bco_pair"): "no shift",
    ("sigmoid, alpha_divergence, f_alpha_divergence_coef=0.3", "fdpo(alpha)"): "1 − α of the paper",
}


def test_losses_of_trl() -> None:
    comparison = compare()
    assert "TRL 1.16" in comparison.versions
    differing = {(row.theirs, row.ours): row.note for row in comparison.rows if not row.agrees}
    assert set(differing) == set(DIFFERENT)
    for key, reason in DIFFERENT.items():
        assert reason in differing[key]
    agreeing = {row.ours.partition("(")[0] for row in comparison.rows if row.agrees}
    assert {
        name
        for name in names()
        if any((one.kind, one.what) == (INDEPENDENT, "TRL 1.16") for one in REGISTRY[name].evidence)
    } == agreeing
