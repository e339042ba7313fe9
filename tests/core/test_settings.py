"""One way to declare settings, to read them, and to say what is wrong with them."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from typing import Any, ClassVar

import pytest

from prefopt.algorithms.assembly import CriticSettings
from prefopt.core.errors import UsageError
from prefopt.core.settings import Settings, parameter, read_settings, wrong_type
from prefopt.data import DataSettings
from prefopt.models import ModelSettings
from prefopt.objectives import get_objective
from prefopt.rewards.judge import Judge
from prefopt.rewards.penalties import LengthPenalty
from prefopt.rewards.reward import EnsembleSettings
from prefopt.rollouts import GenerationSettings, UpdateSchedule
from prefopt.training.arguments import merged_fields
from prefopt.training.watch import Watch


def refuse(value: Any) -> str:
    return "" if value == "right" else "must be right."


@dataclass(frozen=True, kw_only=True)
class Example(Settings):
    name: ClassVar[str] = "example"
    needed: str = parameter(MISSING, "text that has no default")
    size: int = parameter(4, "a size", at_least=1, below=100)
    share: float = parameter(0.5, "a share", above=0, at_most=1)
    limit: int | None = parameter(None, "a limit", at_least=2)
    on: bool = parameter(False, "a switch")
    kind: str = parameter("first", "one of two", choices=("first", "second"))
    map: Mapping[str, Any] = parameter({}, "a mapping")
    checked: str = parameter("right", "something with a rule of its own", check=refuse)


def test_settings_come_from_a_mapping_from_an_object_or_from_nothing() -> None:
    made = Example.of({"needed": "x", "size": 8.0, "limit": None, "map": {"a": 1}})
    assert (made.size, type(made.size), made.share, made.map) == (8, int, 0.5, {"a": 1})
    assert Example.of(made) is made
    assert GenerationSettings.of(None) == GenerationSettings()
    assert Example(needed="x").map is not Example(needed="x").map


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "example: needed is missing: text that has no default."),
        ({"needed": 3}, "example: needed=3 must be text."),
        ({"size": 0}, "example: size=0 is out of range: it must be >= 1."),
        ({"size": 100}, "example: size=100 is out of range: it must be < 100."),
        ({"size": 1.5}, "example: size=1.5 must be a whole number."),
        ({"size": True}, "example: size=True must be a whole number."),
        ({"size": "4"}, "example: size='4' must be a whole number."),
        ({"share": 0}, "example: share=0 is out of range: it must be > 0."),
        ({"share": 1.5}, "example: share=1.5 is out of range: it must be <= 1."),
        ({"share": float("nan")}, "example: share=nan must be a finite number."),
        ({"share": None}, "example: share=None must be a finite number."),
        ({"limit": 1}, "example: limit=1 is out of range: it must be >= 2."),
        ({"on": 1}, "example: on=1 must be true or false."),
        ({"kind": "secnd"}, "example: kind='secnd' is not one of 'first', 'second'. Did you mean 'second'?"),
        ({"map": []}, "example: map=[] must be a mapping."),
        ({"checked": "wrong"}, "example: checked='wrong' must be right."),
        (3, "example=3 must be a mapping of settings or a Example."),
    ],
)
def test_a_value_that_is_not_allowed_is_told_in_one_line(given: Any, message: str) -> None:
    if isinstance(given, dict) and given:
        given = {"needed": "x", **given}
    with pytest.raises(UsageError) as caught:
        read_settings(Example, given)
    assert str(caught.value) == message


def test_the_same_holds_where_an_object_is_made() -> None:
    with pytest.raises(UsageError, match=r"example: size=0 is out of range: it must be >= 1\."):
        Example(needed="x", size=0)


def test_a_type_that_is_written_as_text_is_checked_too() -> None:
    assert wrong_type("float", "high") == "must be a finite number."
    assert wrong_type("Something", "high") == ""
    assert wrong_type(str | list | dict, 3) == "must be text or a list or a mapping."


UNKNOWN = {
    "data": (lambda: DataSettings.of({"max_lenght": 1}), "data has no setting 'max_lenght'. Did you mean 'max_length'"),
    "generation": (
        lambda: GenerationSettings.of({"topp": 1}),
        "generation has no setting 'topp'. Did you mean 'top_p'",
    ),
    "critic": (lambda: CriticSettings.of({"vf_coeff": 1}), "critic has no setting 'vf_coeff'. Did you mean 'vf_coef'"),
    "schedule": (lambda: UpdateSchedule.of({"pases": 1}), "schedule has no setting 'pases'. Did you mean 'passes'"),
    "watch": (lambda: read_settings(Watch, {"stopp": 1}), "watch has no setting 'stopp'. Did you mean 'stop'"),
    "penalty": (lambda: LengthPenalty.of({"limt": 1}), "length_penalty has no setting 'limt'. Did you mean 'limit'"),
    "judge": (lambda: Judge.of({"modle": 1}), "judge has no setting 'modle'. Did you mean 'model'"),
    "ensemble": (lambda: EnsembleSettings.of({"hwo": 1}), "ensemble has no setting 'hwo'. Did you mean 'how'? It has"),
    "lora": (lambda: ModelSettings(lora={"rr": 1}), "lora has no setting 'rr'. Did you mean 'r'? See peft.LoraConfig."),
    "args": (
        lambda: merged_fields({"learning_rat": 1}, {}, "dpo"),
        "args has no setting 'learning_rat'. Did you mean 'learning_rate'? See transformers.TrainingArguments.",
    ),
    "hyperparameters": (lambda: get_objective("dpo", bta=1), "dpo has no hyperparameter 'bta'. Did you mean 'beta'"),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_an_unknown_key_is_told_alike_everywhere(case: str) -> None:
    read, message = UNKNOWN[case]
    with pytest.raises(UsageError) as caught:
        read()
    assert str(caught.value).startswith(message)
    if "See " not in message:
        assert "? It has " in str(caught.value)
