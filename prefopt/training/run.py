"""A training run of a file from beginning to end."""

from prefopt.core.console import say
from prefopt.core.errors import UsageError
from prefopt.training.spec import RunFile
from prefopt.training.trainer import Trainer


def make_trainer(run: RunFile) -> Trainer:
    """The trainer of a run.

    Raises:
        UsageError, DataError, ModelError: See `prefopt.Trainer`; or there is no training data.
    """
    if run.train_dataset is None:
        raise UsageError("data is missing: give --data, or data: {train: ...} in the config file.")
    return Trainer(**run.arguments())


def train(run: RunFile, resume: str | bool = False) -> None:
    """Train, evaluate where there is held-out data, and save the result.

    Args:
        run: The run.
        resume: A checkpoint's folder, or True for the newest one.
    """
    trainer = make_trainer(run)
    trainer.train(resume_from_checkpoint=resume)
    if run.eval_dataset is not None:
        metrics = trainer.evaluate()
        say("evaluation: " + ", ".join(f"{key}={value:.4g}" for key, value in metrics.items()))
    trainer.save_model(run.out)
    say(f"saved to {run.out}")
