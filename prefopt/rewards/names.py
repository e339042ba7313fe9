"""What a reward's text means: a function, a built-in with its parameters, or a reward model."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefopt.core.errors import UsageError, did_you_mean
from prefopt.core.importing import load_target
from prefopt.core.registry import parse_call
from prefopt.rewards.calling import Detailed, RewardFunction
from prefopt.rewards.penalties import BUILT_IN, build_reward

LoadModel = Callable[[str], RewardFunction]
"""From the folder or hub id of a reward model to a reward function."""


def named_reward(text: str, *, load: LoadModel | None = None) -> tuple[str, RewardFunction | Detailed]:
    """The name to log under, and the reward that a text names.

    Args:
        text: ``FILE.py:NAME``, ``module:NAME``, ``built_in(key=value)``, a folder, or a hub id ``OWNER/NAME``.
        load: makes a reward function of the name of a reward model; default `load_reward`.

    Raises:
        UsageError: it is none of these, or what it names cannot be had.
    """
    if re.match("https?://", text):
        raise UsageError(f"reward {text!r} is an address: for a judge write {{judge: {text}, model: NAME}}.")
    if "(" in text and not text.endswith(")"):
        raise UsageError(f"reward {text!r} has an open bracket: inside [...] or {{...}} put quotes around a call.")
    if text in BUILT_IN and os.path.isdir(text):
        raise UsageError(f"reward {text!r} is a built-in and a folder: write '{text}()' or './{text}'.")
    if text in BUILT_IN:
        return text, build_reward(text, {})
    if os.path.isdir(os.path.expanduser(text)):
        return _model(os.path.expanduser(text), load)
    if re.fullmatch(r"\w+\s*\(.*\)", text, flags=re.DOTALL):
        return _built_in(text)
    if re.search(r":\w+$", text) or text.endswith(".py"):
        return text.rpartition(":")[2], _function(text)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", text) and not text.startswith("."):
        return _model(text, load)
    near = did_you_mean(text, BUILT_IN)
    raise UsageError(
        f"reward {text!r} is no built-in ({', '.join(BUILT_IN)}), folder, hub id (OWNER/NAME) or FILE.py:NAME.{near}"
    )


def is_number(value: Any) -> bool:
    """Whether this is an int or a float and no bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _built_in(text: str) -> tuple[str, RewardFunction]:
    try:
        name, parameters = parse_call(text)
    except UsageError:
        raise UsageError(f"cannot read reward {text!r}; write a built-in as 'length_penalty(limit=64)'.") from None
    return name, build_reward(name, parameters)


def _function(text: str) -> RewardFunction:
    function = load_target(text, "reward")
    if isinstance(function, type):
        name = function.__name__
        raise UsageError(f"reward {text!r} is a class: name an object of it, made in that file with {name}(...).")
    if not (callable(function) or isinstance(function, Detailed)):
        raise UsageError(
            f"reward {text!r} must be a function f(prompts, completions) that returns a list of numbers, and its type "
            f"is {type(function).__name__}."
        )
    return function


def load_reward(name: str | Path, *, trust_remote_code: bool = False) -> RewardFunction:
    """The reward model in a folder or on the hub, a decoder's or an encoder's.

    Raises:
        ModelError: no such model, or one that gives no reward.
    """
    from prefopt.rewards.encoder import EncoderRewardModel, is_encoder
    from prefopt.rewards.reward_model import RewardModel

    kind = EncoderRewardModel if is_encoder(name, trust_remote_code=trust_remote_code) else RewardModel
    return kind.load(name, trust_remote_code=trust_remote_code)


def _model(name: str, load: LoadModel | None) -> tuple[str, RewardFunction]:
    return Path(name).name, (load or load_reward)(name)
