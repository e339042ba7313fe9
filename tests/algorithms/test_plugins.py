"""Other packages' objectives and algorithms: installed ones, broken ones, and ones whose name is taken."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import prefopt
from prefopt.algorithms import assembly
from prefopt.algorithms.online import assemblies
from prefopt.core.errors import UsageError
from prefopt.core.recipe import ONLINE_DEFAULTS
from prefopt.rollouts import BestAndWorst, LeaveOneOut

OBJECTIVE = '''
from dataclasses import dataclass
from prefopt import register
from prefopt.objectives.dpo import DPO

@register("{name}")
@dataclass(frozen=True, kw_only=True)
class Mine(DPO):
    """A loss of another package."""
'''
ALGORITHM = """
from prefopt import register_algorithm
from prefopt.rollouts import LeaveOneOut

register_algorithm("my_rloo", processor=LeaveOneOut, objective="reinforce", schedule={"minibatches": 2})
"""


@pytest.fixture
def installed(tmp_path: Path) -> Callable[..., Callable[..., subprocess.CompletedProcess]]:
    """Install a package of modules by entry points, and return what runs prefopt beside it."""

    def install(modules: dict[str, str], entry_points: str) -> Callable[..., subprocess.CompletedProcess]:
        for name, text in modules.items():
            (tmp_path / f"{name}.py").write_text(text)
        info = tmp_path / "my_package-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(entry_points)
        path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])

        def run(*arguments: str) -> subprocess.CompletedProcess:
            command = [sys.executable, "-m", "prefopt", *arguments]
            return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})

        return run

    return install


def test_installed_plugins_are_listed_and_a_broken_one_is_named_on_one_line(installed: Callable) -> None:
    run = installed(
        {
            "my_loss": OBJECTIVE.format(name="my_dpo"),
            "my_algorithm": ALGORITHM,
            "my_mistake": OBJECTIVE.format(name="half_done") + "\nraise RuntimeError('no such card')\n",
        },
        "[prefopt.objectives]\nbroken = my_mistake\nloss = my_loss\n[prefopt.algorithms]\nrloo = my_algorithm\n",
    )
    done = run("algorithms")
    assert done.returncode == 0, done.stderr
    names = [line.split()[0] for line in done.stdout.splitlines()]
    assert {"dpo", "my_dpo", "my_rloo", "ppo"} <= set(names)
    # What it registered before it failed is gone too.
    assert "half_done" not in names
    assert done.stderr.strip().splitlines() == [
        "the plug-in 'broken' of my-package (my_mistake) cannot be imported and is left out: RuntimeError: no such card"
    ]


def test_a_plugin_that_takes_a_name_of_prefopt_is_left_out(installed: Callable) -> None:
    run = installed({"my_loss": OBJECTIVE.format(name="dpo")}, "[prefopt.objectives]\nloss = my_loss\n")
    done = run("explain", "apo")
    lines = done.stderr.strip().splitlines()
    assert "an objective named 'dpo' is registered already, by prefopt.objectives.dpo" in lines[0]
    assert lines[1].startswith("prefopt: error: 'apo' names several losses")
    assert len(lines) == 2


@pytest.fixture
def registry() -> Iterator[None]:
    """Algorithms that a test registers are forgotten after it."""
    assemblies()  # ours are there before those of others
    before = dict(assembly.ASSEMBLIES), dict(assembly.ALIASES)
    yield
    for table, kept in zip((assembly.ASSEMBLIES, assembly.ALIASES), before, strict=True):
        table.clear()
        table.update(kept)


def test_a_registered_algorithm_is_known_everywhere(registry: None) -> None:
    prefopt.register_algorithm(
        "my_ipo",
        processor=BestAndWorst,
        objective="ipo",
        recipe=prefopt.Recipe(full=2e-6, batch=8, reason="A test."),
        evidence=(prefopt.Evidence("authors' code", "me/my_ipo", "tests/test_my_ipo.py"),),
        schedule={"passes": 2},
        generation={"n": 8},
        aliases=("ipo_of_mine",),
    )
    assert "my_ipo" in prefopt.algorithms()
    algorithm = prefopt.get_algorithm("ipo_of_mine", tau=0.3)
    assert (algorithm.name, algorithm.online, algorithm.data_kind) == ("my_ipo", True, "prompts")
    assert (algorithm.hyperparameters["tau"], algorithm.hyperparameters["passes"]) == (0.3, 2)
    assert (algorithm.recipe.full, algorithm.generation) == (2e-6, {"n": 8})
    assert (algorithm.about.title, algorithm.about.arxiv) == ("no paper declared", "")
    assert algorithm.about.formula == prefopt.get_objective("ipo").about.formula
    text = prefopt.explain("my_ipo")
    assert "also       ipo_of_mine" in text
    assert "evidence   authors' code: me/my_ipo" in text
    assert "evidence   of the loss ipo: optimum or identity" in text
    assert "recipe     learning rate 2e-06" in text


def test_examples_that_the_loss_cannot_read_are_refused(registry: None) -> None:
    prefopt.register_algorithm("my_mix", processor=LeaveOneOut, objective="dpo")
    with pytest.raises(UsageError, match="my_mix: LeaveOneOut makes rollouts, and dpo reads pairs"):
        prefopt.get_algorithm("my_mix")


def test_the_loss_may_be_left_to_the_user(registry: None) -> None:
    prefopt.register_algorithm(
        "mine", processor=BestAndWorst, objective=None, about=prefopt.About(title="Mine", year=2026, formula="any")
    )
    assert prefopt.get_algorithm("mine", objective="ipo", tau=0.3).hyperparameters["objective"] == "ipo(tau=0.3)"
    assert "objective = 'dpo'" in prefopt.explain("mine")


def test_one_without_a_recipe_says_which_defaults_it_trains_with(registry: None) -> None:
    prefopt.register_algorithm("my_rloo", processor=LeaveOneOut, objective="reinforce")
    assert prefopt.get_algorithm("my_rloo").recipe == ONLINE_DEFAULTS
    assert "recipe     none declared; prefopt's defaults: learning rate 1e-06" in prefopt.explain("my_rloo")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ppo", {}, "an algorithm named 'ppo' is registered already"),
        ("raft", {}, "an algorithm named 'raft' is registered already"),
        ("dpo", {}, "an objective named 'dpo' is registered already"),
        ("dpo", {"objective": "dpo"}, "an objective named 'dpo' is registered already"),
        ("my_own", {"aliases": ("sigmoid",)}, "an objective named 'sigmoid' is registered already"),
        ("my_own", {"objective": None}, r"no objective whose paper it could name: pass about="),
        ("my_own", {"schedule": {"pass": 2}}, "schedule has no field 'pass'"),
        ("my_own", {"schedule": {"passes": 0}}, "passes=0 is out of range"),
    ],
)
def test_what_cannot_be_registered(name: str, options: dict, message: str, registry: None) -> None:
    before = set(assembly.ASSEMBLIES)
    with pytest.raises(UsageError, match=message):
        prefopt.register_algorithm(name, **{"processor": LeaveOneOut, "objective": "reinforce", **options})
    assert set(assembly.ASSEMBLIES) == before
