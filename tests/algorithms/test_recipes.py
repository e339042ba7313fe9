"""What every algorithm declares about its training: a recipe, the paper's own settings, and where to tune."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

import prefopt
from prefopt.core import registry
from prefopt.core.recipe import DEFAULTS, ONLINE_DEFAULTS, Range
from prefopt.objectives.dpo import DPO

NAMES = prefopt.algorithms()

# Without a strength to tune: likelihood and reward models, and selections whose loss is the likelihood.
WITHOUT_STRENGTH = {
    "rejection_sampling", "rest_em", "reward", "reward_best_of_k", "reward_kwise", "reward_margin",
    "reward_regression", "sft", "wpo_weighted",
}  # fmt: skip
# The weight of the KL is 0 in the paper, which a range in logarithms cannot hold.
WITHOUT_KL = {"cispo", "dapo", "dr_grpo", "gspo"}
# `online` tunes the loss that it is given.
RANGES = [name for name in NAMES if name not in WITHOUT_STRENGTH | WITHOUT_KL]


@pytest.fixture
def registered() -> Iterator[None]:
    """Objectives that a test registers are forgotten after it."""
    before = dict(registry.REGISTRY)
    yield
    registry.REGISTRY.clear()
    registry.REGISTRY.update(before)


@pytest.mark.parametrize("name", NAMES)
def test_every_algorithm_declares_a_recipe(name: str) -> None:
    recipe = prefopt.get_algorithm(name).recipe
    assert recipe.declared
    assert 1e-7 <= recipe.full <= 1e-4
    assert recipe.adapter == pytest.approx(10 * recipe.full)
    assert recipe.full in recipe.tune
    assert len(f"{recipe.adapter!r}") < 8


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_that_is_not_the_papers_says_why(name: str) -> None:
    algorithm = prefopt.get_algorithm(name)
    recipe, paper = algorithm.recipe, algorithm.recipe.paper
    # Hyperparameters are called as prefopt calls them, so that the two can be compared.
    assert set(paper.values) <= set(algorithm.hyperparameters)
    same = (recipe.full, recipe.batch) == (paper.rate, paper.batch)
    same &= all(algorithm.hyperparameters[key] == value for key, value in paper.values.items())
    assert same or recipe.reason
    known = paper.rate is not None or paper.batch is not None or bool(paper.values)
    assert bool(paper.source) == known


@pytest.mark.parametrize(
    ("name", "rate", "batch"),
    [("dpo", 1e-6, 64), ("kto", 5e-6, 64), ("apo_zero", 2e-7, 64), ("bco", 5e-7, 128), ("sppo_hard", 5e-7, 64),
     ("nca_pair", 5e-6, 32), ("rpo_nll", 7e-7, 32), ("orpo", 8e-6, 32), ("exo_pair", 1e-6, 64),
     ("discopop", 5e-7, 64), ("simpo", 6e-7, 128), ("rloo", 1e-6, 16)],
)  # fmt: skip
def test_rates_and_batches_of_the_papers(name: str, rate: float, batch: int) -> None:
    recipe = prefopt.get_algorithm(name).recipe
    assert (recipe.full, recipe.batch) == (rate, batch)


@pytest.mark.parametrize("name", ["js_dpo", "forward_kl_dpo", "alpha_div_dpo"])
def test_a_name_that_fixes_hyperparameters_trains_as_its_base_and_has_evidence_of_its_own(name: str) -> None:
    preset, base = prefopt.get_algorithm(name), prefopt.get_algorithm("fdpo")
    assert preset.recipe == base.recipe
    assert [one.kind for one in preset.evidence] == ["optimum or identity"]
    assert len(base.evidence) == 3


@pytest.mark.parametrize("name", ["aot_paired", "aot_unpaired", "aot_paired + 0.1*sft", "dpo + 0.1*aot_paired"])
def test_what_couples_rows_gets_its_step_as_one_batch(name: str) -> None:
    recipe = prefopt.get_algorithm(name).recipe
    assert (recipe.batch, recipe.micro_batch) == (16, 16)


@pytest.mark.parametrize("name", RANGES)
def test_the_strength_of_an_algorithm_has_a_range_around_its_default(name: str) -> None:
    algorithm = prefopt.get_algorithm(name)
    ranges = algorithm.ranges()
    assert ranges.pop("learning_rate") == algorithm.recipe.tune
    assert ranges
    for key, found in ranges.items():
        assert algorithm.hyperparameters[key] in found
        # Both ends are allowed, or the algorithm would refuse what a search proposes.
        for value in (found.low, found.high):
            assert prefopt.get_algorithm(name, **{key: value}).hyperparameters[key] == value


@pytest.mark.parametrize("name", sorted(WITHOUT_STRENGTH | WITHOUT_KL))
def test_the_others_tune_the_learning_rate_alone(name: str) -> None:
    assert list(prefopt.get_algorithm(name).ranges()) == ["learning_rate"]


def test_ranges_of_adapters_are_those_of_their_rate() -> None:
    algorithm = prefopt.get_algorithm("simpo")
    assert algorithm.ranges(trains_adapter=True)["learning_rate"] == Range(3e-6, 1e-5, "the authors' README")


def test_an_objective_derived_from_another_inherits_neither_recipe_nor_evidence(registered: None) -> None:
    @prefopt.register("dpo_of_my_own")
    @dataclass(frozen=True, kw_only=True)
    class Mine(DPO):
        """Another loss."""

    for algorithm in (prefopt.get_algorithm("dpo_of_my_own"), prefopt.get_algorithm(Mine())):
        assert algorithm.recipe == DEFAULTS
        assert algorithm.evidence == ()
    text = prefopt.explain("dpo_of_my_own")
    assert "evidence   none declared" in text and "eric-mitchell" not in text
    assert (
        "recipe     none declared; prefopt's defaults: learning rate 1e-06 (1e-05 for LoRA and QLoRA), batch 32" in text
    )
    assert "dpo_of_my_own" in prefopt.algorithms()


def test_defaults_are_not_declared() -> None:
    assert not DEFAULTS.declared and not ONLINE_DEFAULTS.declared


def test_an_explanation_has_the_recipe_the_papers_settings_the_reason_and_the_ranges() -> None:
    lines = prefopt.explain("robust_dpo").splitlines()
    found = {line.split()[0]: line for line in lines if line.startswith("  ") and line.strip()}
    assert "learning rate 1e-06 (1e-05 for LoRA and QLoRA), batch 64 in micro-batches of 4" in found["recipe"]
    assert "learning rate 0.001, batch 16, beta 0.1, label_smoothing 0.1 (appendix B" in found["paper"]
    assert "would wreck a language model of today" in found["note"]
    assert "learning rate 2e-07 to 5e-06, beta 0.01 to 0.5; evenly in the logarithm" in found["tune"]
