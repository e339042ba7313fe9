"""Several runs in a row, each with the results of earlier ones as its inputs: sft → reward → ppo → evaluation."""

from prefopt.pipeline.check import check_pipeline
from prefopt.pipeline.run import run_pipeline
from prefopt.pipeline.stages import Pipeline, Stage, read_pipeline

__all__ = ["Pipeline", "Stage", "check_pipeline", "read_pipeline", "run_pipeline"]
