"""A training run: every argument of `prefopt.Trainer`, of a run file and of `prefopt train`, written once.

Nothing here needs torch, so that the flags of the command line are known at once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefopt.core.arguments import argument

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import (
        PreTrainedModel,
        PreTrainedTokenizerBase,
        TrainerCallback,
        TrainingArguments,
    )

    from prefopt.algorithms import Algorithm
    from prefopt.core.objective import Objective
    from prefopt.data import DataSettings
    from prefopt.rollouts import GenerationSettings

REWARD = str | list | dict
"""A reward as a file can say it."""


@dataclass(frozen=True, eq=False)
class RunSpec:
    """The arguments of `prefopt.Trainer`.

    A new argument is one field here, and the place that uses it: `prefopt.training.build`, which makes what a trainer
    works with from a `RunSpec`, or the trainer. Its metadata (see `argument`) say what it means, and its type in a
    file. The signature of the trainer and of `prefopt.plan`, the key of a run file and of a pipeline's stages, the
    flags of `prefopt train` and `prefopt plan`, and the descriptions of all of these follow.
    """

    model: "str | Path | PreTrainedModel | PeftModel" = field(
        metadata=argument(
            "Path or hub id of the policy. The folder of an adapter trains that adapter further.",
            python="Or a loaded transformers or peft model.",
            file=str,
            flags=("--model", "-m"),
            shared=True,
            model=True,
        )
    )
    algorithm: "str | Objective | Algorithm" = field(
        metadata=argument(
            "Name of the algorithm, or a weighted sum such as 'dpo + 0.2*sft'; `prefopt algorithms` lists the names.",
            python="Or an objective, or what `prefopt.get_algorithm` returns.",
            file=str,
        )
    )
    train_dataset: Any = field(
        default=None,
        metadata=argument(
            "Training data: a path or hub id. Rows are converted to what the algorithm takes.",
            python="Or a ``datasets.Dataset`` or a list of dicts.",
            file=str,
            key="data.train",
            flags=("--data", "-d"),
        ),
    )
    eval_dataset: Any = field(
        default=None,
        metadata=argument(
            "Held-out data for the evaluation, in the forms of the training data.",
            python="Or several datasets by name.",
            file=str,
            key="data.eval",
            flags=("--eval-data",),
        ),
    )
    _: KW_ONLY
    adapter: "str | LoraConfig | None" = field(
        default=None,
        metadata=argument(
            "lora, or qlora for a base in 4 bit; without it all weights are trained.",
            python="Or a ``peft.LoraConfig``.",
            file=str,
            shared=True,
        ),
    )
    reference: "str | Path | PreTrainedModel | PeftModel | None" = field(
        default=None,
        metadata=argument(
            "Path or hub id of the reference, if it is not the policy as it arrived.",
            python="Or a loaded model. For algorithms that need a reference.",
            file=str,
            model=True,
        ),
    )
    reward: Any = field(
        default=None,
        metadata=argument(
            "Reward of an online algorithm: FILE.py:NAME, a reward model, a built-in such as "
            "'length_penalty(limit=64)', or a judge; with a weight: '0.5*NAME'.",
            python="Or a function ``f(prompts, completions, **columns) -> list[float]``, or a list of these, each "
            "alone or as a pair with its weight (see `prefopt.make_reward`).",
            file=REWARD,
            model=True,
        ),
    )
    processing_class: "PreTrainedTokenizerBase | str | Path | None" = field(
        default=None, metadata=argument("The tokenizer, or its path; by default the model's own.")
    )
    data: "Mapping[str, Any] | DataSettings | None" = field(
        default=None,
        metadata=argument(
            "Settings of the data, fields of `prefopt.DataSettings`.",
            file=dict,
            settings="prefopt.data.settings:DataSettings",
            shared=True,
        ),
    )
    generation: "Mapping[str, Any] | GenerationSettings | None" = field(
        default=None,
        metadata=argument(
            "Settings of the sampling of online algorithms, fields of `prefopt.GenerationSettings`.",
            file=dict,
            settings="prefopt.rollouts.settings:GenerationSettings",
            shared=True,
        ),
    )
    args: "Mapping[str, Any] | TrainingArguments | None" = field(
        default=None,
        metadata=argument(
            "Fields of ``transformers.TrainingArguments``, merged over the algorithm's recipe. "
            "per_device_train_batch_size counts examples of the algorithm's kind: pairs, labelled rows, "
            "demonstrations, or prompts of an online algorithm.",
            python="Or a ``TrainingArguments`` object, taken as it is.",
            file=dict,
            settings="transformers:TrainingArguments",
            shared=True,
        ),
    )
    callbacks: "Sequence[TrainerCallback | type[TrainerCallback]]" = field(
        default=(),
        metadata=argument(
            "Callbacks of transformers, objects or classes. An online run without a `prefopt.Watch` gets one, which "
            "warns of reward hacking."
        ),
    )
    lora: Mapping[str, Any] | None = field(
        default=None,
        metadata=argument(
            "Fields of ``peft.LoraConfig`` over prefopt's defaults.",
            file=dict,
            settings="peft:LoraConfig",
            shared=True,
        ),
    )
    reference_cache: str | Path | None = field(
        default=None,
        metadata=argument(
            "Folder for the reference's log-probs of the datasets, scored once for every run with this reference and "
            "these tokens. Without it they are scored in every step.",
            file=str,
        ),
    )
    share_prompts: bool = field(
        default=True,
        metadata=argument(
            "One forward pass for the prompt of several completions, where the model allows it (which is checked on "
            "its numbers). Off, every row is padded by itself.",
            file=bool,
        ),
    )
    trust_remote_code: bool = field(
        default=False, metadata=argument("Permission to run code that comes with the model.", file=bool, shared=True)
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class RunFile(RunSpec):
    """A training run as a YAML file or a command line says it, with what the trainer itself does not take."""

    hyperparameters: Mapping[str, Any] = field(
        default_factory=dict,
        metadata=argument("Hyperparameters of the algorithm, by the names that `prefopt explain` lists.", file=dict),
    )
    watch: Mapping[str, Any] = field(
        default_factory=dict,
        metadata=argument(
            "Settings of `prefopt.Watch`, which looks out for reward hacking.",
            file=dict,
            settings="prefopt.training.watch:Watch",
        ),
    )
    out: str = field(
        metadata=argument(
            "Folder for the result; checkpoints go to its folder checkpoints.", file=str, flags=("--out", "-o")
        )
    )
    resume: bool = field(
        default=False, metadata=argument("Continuation of the run from its newest whole checkpoint.", file=bool)
    )
    resume_anyway: bool = field(
        default=False,
        metadata=argument(
            "Continuation from a checkpoint that another algorithm, adapter, base model or dataset wrote.", file=bool
        ),
    )

    def arguments(self) -> dict[str, Any]:
        """The arguments of `prefopt.Trainer`.

        Raises:
            UsageError: Hyperparameters or settings of the watch that cannot be.
        """
        from prefopt.algorithms import get_algorithm
        from prefopt.core.settings import read_settings
        from prefopt.training.watch import Watch

        own = {one.name: getattr(self, one.name) for one in fields(RunSpec)}
        own["algorithm"] = get_algorithm(self.algorithm, **self.hyperparameters)
        own["args"] = {"output_dir": str(Path(self.out) / "checkpoints"), **(self.args or {})}
        own["callbacks"] = [read_settings(Watch, self.watch)] if self.watch else ()
        return own


@dataclass(frozen=True, eq=False)
class PlanSpec(RunSpec):
    """The arguments of `prefopt.plan`: those of the trainer, and what a plan asks besides."""

    _: KW_ONLY
    device: str = field(
        default="cuda",
        metadata=argument("cuda, for a card with bfloat16 and its recipe, or cpu.", file=str),
    )
    prompt_length: int | None = field(
        default=None, metadata=argument("Tokens of a prompt, where no data is given.", file=int)
    )
