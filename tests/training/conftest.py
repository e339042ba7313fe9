import gc
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session", autouse=True)
def _imported_modules_are_no_garbage() -> None:
    """Every run collects garbage, which would walk over torch and transformers each time: most of a short run."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Default output folders are relative; no test may leave one in the checkout."""
    monkeypatch.chdir(tmp_path)
