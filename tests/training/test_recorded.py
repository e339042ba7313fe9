"""Every algorithm trains to the numbers that were recorded, in all weights and under LoRA."""

import json

import pytest
import recorded
import torch

KNOWN = json.loads(recorded.FILE.read_text())
# Sums in another order (another torch, another processor) differ by some 1e-6 after three steps.
TOLERANCE = {"rel": 2e-4, "abs": 2e-5}


def test_every_algorithm_is_recorded() -> None:
    assert list(recorded.cases()) == list(KNOWN["runs"])


@pytest.mark.parametrize(
    "name",
    [name if name.endswith("lora") else pytest.param(name, marks=pytest.mark.slow) for name in KNOWN["runs"]],
)
def test_numbers(name: str) -> None:
    found, known = recorded.record(name), KNOWN["runs"][name]
    assert found["losses"] == pytest.approx(known["losses"], **TOLERANCE)
    assert found["gradients"] == pytest.approx(known["gradients"], **TOLERANCE)
    assert found["metrics"].keys() == known["metrics"].keys()
    for key, value in known["metrics"].items():
        assert found["metrics"][key] == pytest.approx(value, **TOLERANCE), key
    assert found["weights"] == pytest.approx(known["weights"], **TOLERANCE)
    if torch.__version__ == KNOWN["torch"]:
        assert found["losses"][0] == pytest.approx(known["losses"][0], rel=1e-6)
