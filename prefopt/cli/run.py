"""`prefopt run`."""

from prefopt.pipeline import read_pipeline, run_pipeline
from prefopt.training.run_file import read_yaml


def run_file(file: str, out: str | None, again: str | None, assignments: list[str], only_check: bool) -> None:
    """Read a pipeline file, validate all of it, and run the stages that are not finished."""
    run_pipeline(read_pipeline(read_yaml(file), assignments, out), again=again, only_check=only_check)
