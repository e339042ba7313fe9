"""`prefopt evaluate`."""

from pathlib import Path
from typing import Any

from rich.console import Console

from prefopt import __version__
from prefopt.console import say
from prefopt.data import DataSettings, prepare_dataset
from prefopt.errors import UsageError
from prefopt.evaluation import report_on, score_pairs, write_reward_report
from prefopt.evaluation.reward_page import printed
from prefopt.rollouts.reward_model import RewardModel, is_reward_model


def run_evaluate(model: str, data: str, out: str, settings: dict[str, Any], trust_remote_code: bool) -> None:
    """Score held-out pairs with a reward model, print its report and write it into a folder.

    Raises:
        UsageError: the model is no reward model, or the folder is a file.
    """
    if not is_reward_model(model, trust_remote_code=trust_remote_code):
        raise UsageError(
            f"{model} is a language model, and `prefopt evaluate` takes a reward model, such as `prefopt train reward` "
            "makes, and pairs."
        )
    if Path(out).is_file():
        raise UsageError(f"--out {out} is a file; name a folder.")
    reward = RewardModel.load(model, trust_remote_code=trust_remote_code)
    chosen = DataSettings.of(settings | {"template_args": reward.template_args})
    dataset = prepare_dataset(data, "pairs", reward.tokenizer, chosen, context=reward.context, reader="evaluate")
    lines = [*dataset.notes, *dataset.audit.lines()]
    for line in lines:
        say(line)
    report = report_on(score_pairs(reward, dataset))
    facts = {"model": model, "data": data, "rows": dataset.audit.lines()[0], "prefopt": __version__}
    path = write_reward_report(report, facts, Path(out))
    Console().print(printed(report), markup=False)
    say(f"report in {path}")
