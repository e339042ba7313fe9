"""`prefopt evaluate`."""

from typing import Any

from prefopt.evaluation.run import evaluate
from prefopt.evaluation.spec import Evaluation
from prefopt.training.run_file import parse_rewards


def run_evaluate(rewards: list[str], generation: dict[str, Any], **given: Any) -> None:
    """Measure a policy or a reward model, print its report and write it into a folder.

    Args:
        rewards: as in ``--reward``; empty for a reward model.
        generation: settings; None where a flag was not given.
        given: the other fields of `Evaluation`.
    """
    chosen = {name: value for name, value in generation.items() if value is not None}
    evaluate(Evaluation(reward=parse_rewards(rewards) if rewards else None, generation=chosen, **given))
