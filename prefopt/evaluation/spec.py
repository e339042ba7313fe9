"""An evaluation of a saved model: every argument of a pipeline's stage that evaluates, written once."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefopt.core.arguments import argument
from prefopt.core.errors import UsageError
from prefopt.data import DataSettings
from prefopt.rollouts import GenerationSettings
from prefopt.training.spec import REWARD


@dataclass(frozen=True, eq=False, kw_only=True)
class Evaluation:
    """The arguments of an evaluation."""

    model: str = field(
        metadata=argument(
            "Path or hub id of a policy or a reward model, whole or an adapter.", file=str, key="evaluate", model=True
        )
    )
    data: str = field(
        default="",
        metadata=argument(
            "Held-out data: prompts for a policy, pairs for a reward model; a path or hub id.",
            file=str,
            key="data.eval",
        ),
    )
    settings: Mapping[str, Any] = field(
        default_factory=dict,
        metadata=argument(
            "Settings of the data, fields of `prefopt.DataSettings`.",
            file=dict,
            key="data",
            settings="prefopt.data.settings:DataSettings",
            shared=True,
        ),
    )
    reward: Any = field(
        default=None,
        metadata=argument("Reward that judges a policy, as in a training run.", file=REWARD, model=True),
    )
    against: str | None = field(
        default=None,
        metadata=argument(
            "Path or hub id of the model that a policy started from, or of another one to compare it with.",
            file=str,
            model=True,
        ),
    )
    generation: Mapping[str, Any] = field(
        default_factory=dict,
        metadata=argument(
            "Settings of the sampling of a policy, fields of `prefopt.GenerationSettings`.",
            file=dict,
            settings="prefopt.rollouts.settings:GenerationSettings",
            shared=True,
        ),
    )
    seed: int = field(
        default=0,
        metadata=argument("Seed of the policy's completions; the next one is the other model's.", file=int),
    )
    out: str = field(metadata=argument("Folder for the report.", file=str))
    trust_remote_code: bool = field(
        default=False, metadata=argument("Permission to run code that comes with the models.", file=bool, shared=True)
    )

    def check(self, *, rewards: bool) -> None:
        """Refuse what does not go together.

        Args:
            rewards: whether the model is a reward model.

        Raises:
            UsageError: a policy without a reward, a reward model with what only policies have, or settings that are
                wrong by themselves.
        """
        DataSettings.of(self.settings)
        GenerationSettings.of(dict(self.generation))
        if not rewards and self.reward is None:
            raise UsageError(
                f"{self.model} is a language model, which a reward has to judge: give reward (--reward), a reward "
                "model, FILE.py:NAME or a built-in."
            )
        given = [name for name in ("reward", "against", "generation") if getattr(self, name)]
        if rewards and given:
            raise UsageError(
                f"{self.model} is a reward model, which is evaluated on pairs: leave {' and '.join(given)} out."
            )
        if Path(self.out).is_file():
            raise UsageError(f"--out {self.out} is a file; name a folder.")
