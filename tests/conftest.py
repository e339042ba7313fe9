"""What all tests share: run-time shape checks, the profile of the certificates, and the shared folder."""

import os
import pkgutil
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "2")
# bitsandbytes decorates with `torch.compile` where it is imported, which loads the whole compiler: 2 s a process.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE / "reference")]

import typechecker

# Before anything imports prefopt. The kit that tests the rest is left out: it calls itself a million times. So is what
# registers algorithms: it has no shapes, and looks at the module that calls it, which would be the checker's.
UNCHECKED = {"verify", "algorithms"}
ROOMS = [room.name for room in pkgutil.iter_modules([str(HERE.parent / "prefopt")]) if room.name not in UNCHECKED]
# Twice as slow, and shapes do not depend on the profile; PREFOPT_SHAPES=off is for a quick look at a single test.
if os.environ.get("PREFOPT_CERTIFY", "quick") == "quick" and os.environ.get("PREFOPT_SHAPES") != "off":
    typechecker.install([f"prefopt.{room}" for room in ROOMS])

import pytest
import torch

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def pytest_configure(config: pytest.Config) -> None:
    """beartype looks at a random item of each container, which Hypothesis remarks on."""
    config.addinivalue_line("filterwarnings", "ignore:Do not use the `random` module")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--certify",
        choices=("quick", "full", "random"),
        default=os.environ.get("PREFOPT_CERTIFY", "quick"),
        help="examples per property of the certificates: a few, at least 1000, or 1000 other ones at every run",
    )


@pytest.fixture(scope="session")
def profile(pytestconfig: pytest.Config) -> str:
    """Which form of the certificates runs: quick, full or random."""
    return pytestconfig.getoption("--certify")


def shared_folder() -> Path:
    """The folder with real data and models."""
    return Path(os.environ.get("PREFOPT_SHARED", HERE.parent.parent / "shared")).resolve()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The shared folder; tests that use it are skipped where it is absent."""
    folder = shared_folder()
    if not folder.is_dir():
        pytest.skip(f"there is no shared folder at {folder}; set PREFOPT_SHARED")
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked ``shared`` where the folder is absent."""
    folder = shared_folder()
    if folder.is_dir():
        return
    for item in items:
        if item.get_closest_marker("shared"):
            item.add_marker(pytest.mark.skip(reason=f"there is no shared folder at {folder}; set PREFOPT_SHARED"))
