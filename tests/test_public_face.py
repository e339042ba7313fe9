"""What users write is importable from the top, and nothing else is promised."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import prefopt

ROOT = Path(__file__).parents[1]

PUBLIC = [
    "About",
    "AdvantageEstimator",
    "Algorithm",
    "Completions",
    "DataError",
    "DataSettings",
    "Demonstrations",
    "Ensemble",
    "Evidence",
    "GenerationSettings",
    "Group",
    "Judge",
    "KLPenalty",
    "KLShapedEstimator",
    "Labelled",
    "Loss",
    "ModelError",
    "Needs",
    "Objective",
    "OutOfMemory",
    "Pairs",
    "PolicyGradient",
    "PrefoptError",
    "Published",
    "Range",
    "Ranked",
    "Recipe",
    "RewardModel",
    "Rollout",
    "RolloutProcessor",
    "Rollouts",
    "Selection",
    "State",
    "Term",
    "TokenLogps",
    "Trainer",
    "UsageError",
    "Watch",
    "__version__",
    "algorithms",
    "example_of",
    "explain",
    "get_algorithm",
    "get_objective",
    "keyed_uniform",
    "log1mexp",
    "make_reward",
    "masked_logsumexp",
    "parameter",
    "plan",
    "register",
    "register_algorithm",
    "register_preset",
    "verify",
]


def test_the_public_names_are_these() -> None:
    assert sorted(prefopt.__all__) == sorted(PUBLIC)
    assert set(PUBLIC) <= set(dir(prefopt))


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_can_be_had_and_says_what_it_is(name: str) -> None:
    thing = getattr(prefopt, name)
    assert thing is not None
    if name not in ("State", "__version__"):
        assert thing.__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trainer_of_dogs'"):
        _ = prefopt.trainer_of_dogs


def test_algorithms_is_a_function_before_and_after_its_package_is_imported() -> None:
    code = (
        "import prefopt; before = prefopt.algorithms(); import prefopt.algorithms.listing;"
        "assert prefopt.algorithms() == before and 'dpo' in before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))])
def test_pages_import_from_the_top_alone(page: str) -> None:
    code = "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.S))
    imported = set(re.findall(r"^\s*(?:from|import) (prefopt[\w.]*)", code, flags=re.M))
    assert imported <= {"prefopt", "prefopt.verify"}
