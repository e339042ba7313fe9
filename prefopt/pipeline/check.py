"""Everything about a pipeline that can be found wrong before its first stage starts."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefopt.algorithms import Algorithm
from prefopt.core import console
from prefopt.core.errors import ModelError, PrefoptError, UsageError
from prefopt.data import DataSettings, check_rows
from prefopt.evaluation.spec import Evaluation
from prefopt.pipeline.stages import RESULTS, Pipeline, Stage, about, makes_adapter, trains_rewards
from prefopt.rewards.reward import make_reward
from prefopt.rewards.reward_model import is_reward_model
from prefopt.training.arguments import training_arguments
from prefopt.training.build import check_assembly, model_settings, resolved
from prefopt.training.rollout_source import generation_settings
from prefopt.training.spec import RunFile, RunSpec

AS_FOLDER = "prefopt-stage/"
"""Stands for ``stage:`` while a reward is read, where the name of a model is told from others by its form."""


@dataclass(frozen=True)
class Result:
    """What is known of a model before it is there.

    Attributes:
        rewards: whether it is a reward model.
        adapter: whether it is an adapter.
    """

    rewards: bool
    adapter: bool


def check_pipeline(pipeline: Pipeline) -> None:
    """Validate every stage: names, settings, what they read of each other, models, rewards and data files.

    Raises:
        UsageError, DataError, ModelError: the first thing that is wrong, with the stage that it is in.
    """
    with console.quiet():
        for stage in pipeline.stages:
            try:
                _Check(pipeline, stage).run()
            except PrefoptError as error:
                raise error if str(error).startswith("stage ") else about(stage.name, error) from None


class _Check:
    """One stage of a pipeline."""

    def __init__(self, pipeline: Pipeline, stage: Stage) -> None:
        self.stages = {one.name: one for one in pipeline.stages}
        self.stage = stage
        self.config = stage.config(pipeline.out)

    def run(self) -> None:
        if isinstance(self.config, Evaluation):
            self._evaluation(self.config)
        else:
            self._training(self.config)

    # ---- models --------------------------------------------------------------------------------------------------

    def _result(self, name: str) -> Result:
        """What a model is, by the stage that will make it or by its files."""
        named = RESULTS.fullmatch(name)
        if named is None:
            rewards = is_reward_model(name, trust_remote_code=self.config.trust_remote_code)
            return Result(rewards, (Path(name) / "adapter_config.json").is_file())
        stage = self.stages[named[1]]
        if stage.evaluates:
            raise UsageError(f"{name} makes a report and no model.")
        return Result(trains_rewards(stage), makes_adapter(stage, tuple(self.stages.values())))

    def _policy(self, key: str) -> None:
        """A model that must be a policy."""
        name = self.stage.values.get(key)
        if name is not None and self._result(name).rewards:
            raise ModelError(f"{key}: {name} is a reward model, and a language model is needed there.")

    def _rewards(self) -> None:
        """Every reward can be made; reward models are reward models."""
        given = self.stage.values.get("reward")
        if given is None:
            return

        def load(name: str) -> Any:
            if not self._result(name).rewards:
                raise ModelError(f"reward: {name} is a language model, and gives no reward.")
            return lambda prompts, completions: [0.0] * len(completions)

        make_reward(_loadable(given), load=lambda name: load(name.replace(AS_FOLDER, "stage:", 1)))

    # ---- the two kinds of stages ------------------------------------------------------------------------------------

    def _training(self, file: RunFile) -> None:
        spec = RunSpec(**file.arguments())
        algorithm = resolved(spec.algorithm)
        check_assembly(algorithm, spec)
        if algorithm.online:
            generation_settings(algorithm, spec.generation)
        settings = model_settings(algorithm, spec)
        arrived = self._model(settings.rewards)
        if arrived.adapter and spec.lora:
            raise UsageError(f"model {self.stage.values['model']} brings an adapter of its own: leave lora out.")
        training_arguments(
            spec.args,
            algorithm.recipe,
            algorithm=algorithm.name,
            trains_adapter=arrived.adapter or spec.adapter is not None,
            quantized=settings.quantize,
        )
        self._policy("reference")
        self._rewards()
        self._datasets(spec, algorithm)

    def _model(self, rewards: bool) -> Result:
        name = self.stage.values["model"]
        arrived = self._result(name)
        if rewards and arrived.adapter and not arrived.rewards:
            raise ModelError(
                f"model: {name} is an adapter of a language model, which has no reward head: train the reward model "
                "on its base, or the stage before without adapter (adapter: null)."
            )
        if arrived.rewards and not rewards:
            raise ModelError(f"model: {name} is a reward model, and a language model is needed there.")
        return arrived

    def _datasets(self, spec: RunSpec, algorithm: Algorithm) -> None:
        if spec.train_dataset is None:
            raise UsageError("data is missing: give data: PATH, or data: {train: PATH}.")
        settings = DataSettings.of(spec.data)
        check_rows(spec.train_dataset, algorithm.data_kind, settings)
        if spec.eval_dataset is not None:
            check_rows(spec.eval_dataset, algorithm.data_kind, settings, held_out=True)
        for watch in spec.callbacks:
            if isinstance(watch.held_out, str):
                check_rows(watch.held_out, "pairs", settings, held_out=True)

    def _evaluation(self, evaluation: Evaluation) -> None:
        rewards = self._result(self.stage.values["evaluate"]).rewards
        evaluation.check(rewards=rewards)
        self._policy("against")
        self._rewards()
        if not evaluation.data:
            raise UsageError("data is missing: give held-out data as data: PATH, or data: {eval: PATH}.")
        check_rows(evaluation.data, "pairs" if rewards else "prompts", DataSettings.of(evaluation.settings))


def _loadable(reward: Any) -> Any:
    """A reward with results of stages written as names that read as those of models."""
    if isinstance(reward, str):
        return RESULTS.sub(lambda found: AS_FOLDER + found[1], reward)
    if isinstance(reward, (list, tuple)):
        return [_loadable(each) for each in reward]
    if isinstance(reward, Mapping):
        return {key: _loadable(each) for key, each in reward.items()}
    return reward
