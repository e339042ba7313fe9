"""A training run of a file from beginning to end."""

from pathlib import Path
from signal import Signals

from prefopt.core.console import say
from prefopt.core.errors import Interrupted, UsageError
from prefopt.models import RUN_FILE
from prefopt.training.spec import RunFile
from prefopt.training.stopping import StopOnSignal
from prefopt.training.trainer import Trainer


def make_trainer(run: RunFile) -> Trainer:
    """The trainer of a run.

    Raises:
        UsageError, DataError, ModelError: See `prefopt.Trainer`; or there is no training data.
    """
    if run.train_dataset is None:
        raise UsageError("data is missing: give --data, or data: {train: ...} in the config file.")
    return Trainer(**run.arguments())


def train(run: RunFile, resume: str | bool = False, *, replace: bool = False) -> None:
    """Train, evaluate where there is held-out data, and save the result.

    Args:
        run: The run.
        resume: A checkpoint's folder, or True for the newest one.
        replace: Whether a result that is in the folder already may be written over.

    Raises:
        UsageError: The folder holds a result.
        Interrupted: A signal came; the run has saved a checkpoint.
    """
    if not resume and not replace and (Path(run.out) / RUN_FILE).is_file():
        raise UsageError(
            f"{run.out} holds the result of a finished run: name another --out, move it away, or go on from its newest "
            "checkpoint with --resume."
        )
    trainer = make_trainer(run)
    stop = StopOnSignal()
    trainer.add_callback(stop)
    stop.attach(trainer.accelerator)
    with stop.listening():
        trainer.train(resume_from_checkpoint=resume, resume_anyway=run.resume_anyway)
    if stop.signal:
        raise Interrupted(
            f"stopped by {Signals(stop.signal).name} after step {trainer.state.global_step}, with a checkpoint in "
            f"{trainer.args.output_dir}: the same command with --resume goes on from there.",
            stop.signal,
        )
    if run.eval_dataset is not None:
        metrics = trainer.evaluate()
        say("evaluation: " + ", ".join(f"{key}={value:.4g}" for key, value in metrics.items()))
    trainer.save_model(run.out)
    say(f"saved to {run.out}")
