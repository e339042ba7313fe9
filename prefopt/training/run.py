"""Carrying out a training run from beginning to end."""

from prefopt.core.console import say
from prefopt.training.spec import RunConfig, make_trainer


def train(config: RunConfig, resume: str | bool = False) -> None:
    """Train, evaluate where there is held-out data, and save the result.

    Args:
        config: of the run.
        resume: a checkpoint's folder, or True for the newest one.
    """
    trainer = make_trainer(config)
    trainer.train(resume_from_checkpoint=resume)
    if config.data.eval is not None:
        metrics = trainer.evaluate()
        say("evaluation: " + ", ".join(f"{key}={value:.4g}" for key, value in metrics.items()))
    trainer.save_model(config.out)
    say(f"saved to {config.out}")
