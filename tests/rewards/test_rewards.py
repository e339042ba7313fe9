"""What a reward may be written as, what it is given, and what it must return."""

import functools
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from prefopt.core.errors import UsageError
from prefopt.rewards import names
from prefopt.rewards.calling import ROLLOUT_COLUMNS, join_columns
from prefopt.rewards.penalties import BUILT_IN, LengthPenalty
from prefopt.rewards.reward import Ensemble, Reward, make_reward
from prefopt.training.run_file import parse_rewards, read_run, read_yaml

PROMPTS = ["p", "p", "q"]
TEXTS = ["a a a a", "a b c", ""]
COLUMNS = {
    "ended": [True, False, True],
    "lengths": [5, 4, 1],
    "max_new_tokens": [8, 8, 8],
    "group": [0, 0, 1],
    "answer": ["b", " a b c\n", None],
}


def words(prompts: list, completions: list) -> list[float]:
    return [float(len(text.split())) for text in completions]


def values(reward: object) -> list[float]:
    return make_reward(reward)(PROMPTS, TEXTS, COLUMNS)[0]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a file of rewards."""
    (tmp_path / "mine.py").write_text(
        "def two(prompts, completions):\n    return [2.0] * len(completions)\n\n\n"
        "class Three:\n    def __call__(self, prompts, completions):\n        return [3.0] * len(completions)\n\n\n"
        "three = Three()\nnumber = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> list:
    """Stands in for what loads reward models; lists what was asked of it."""
    asked: list = []

    def load_reward(name: str, *, trust_remote_code: bool = False) -> Callable:
        asked.append((name, trust_remote_code))
        return lambda prompts, completions, *, ended, **columns: [float(end) for end in ended]

    monkeypatch.setattr(names, "load_reward", load_reward)
    return asked


FORMS = {
    "a function": (words, [4, 3, 0]),
    "a list of one": ([words], [4, 3, 0]),
    "a pair": ((words, 0.5), [2, 1.5, 0]),
    "pairs": ([(words, 2), [words, -1]], [4, 3, 0]),
    "a file": ("mine.py:two", [2, 2, 2]),
    "an object in a file": (["mine.py:three"], [3, 3, 3]),
    "a module": ("mine:two", [2, 2, 2]),
    "a weight in the text": ("0.5*mine.py:two", [1, 1, 1]),
    "a negative weight in the text": ("-1e1 * mine.py:two", [-20, -20, -20]),
    "nested weights": (["2*mine.py:two", ["3*mine.py:two", 0.5]], [7, 7, 7]),
    "a built-in": ("missing_eos_penalty", [0, -1, 0]),
    "a built-in with arguments": ("length_penalty(limit=3, per_token=0.5)", [-1, -0.5, 0]),
    "a weighted built-in with arguments": ("2*length_penalty(limit=3, per_token=0.5)", [-2, -1, 0]),
    "a built-in object": ([words, (LengthPenalty(limit=4, per_token=1), 2)], [2, 3, 0]),
    "a mapping": ({"reward": "mine.py:two", "weight": 0.25}, [0.5, 0.5, 0.5]),
    "an ensemble as a mapping": ({"ensemble": [words, "mine.py:two"], "how": "min"}, [2, 2, 0]),
    "a weighted ensemble": ([{"ensemble": [words, "mine.py:two"], "how": "min", "weight": -1}], [-2, -2, 0]),
    "a sum inside an ensemble": ({"ensemble": [[words, "mine.py:two"], "mine.py:three"], "how": "min"}, [3, 3, 2]),
    "a made reward": (make_reward([words, words]), [8, 6, 0]),
    "a hub id": ("owner/name-1.0", [1, 0, 1]),
    "a folder": ("rm", [1, 0, 1]),
    "a folder by its path": ("./rm", [1, 0, 1]),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_reward(form: str, folder: Path, models: list) -> None:
    (folder / "rm").mkdir()
    reward, expected = FORMS[form]
    assert values(reward) == pytest.approx(expected)


def test_a_reward_model_is_loaded_by_name_or_by_what_is_given_for_it(folder: Path, models: list) -> None:
    (folder / "runs" / "rm").mkdir(parents=True)
    made = make_reward(["owner/name", "runs/rm"])
    assert list(made.functions) == ["name", "rm"]
    assert models == [("owner/name", False), ("runs/rm", False)]
    loaded: list[str] = []
    make_reward({"ensemble": ["owner/a", ["2*runs/rm"]]}, load=lambda name: loaded.append(name) or words)
    assert loaded == ["owner/a", "runs/rm"]
    assert len(models) == 2


WRONG = {
    "a word that is neither": ("lenght_penalty", "no built-in (length_penalty, "),
    "and its nearest name": ("lenght_penalty", "Did you mean 'length_penalty'?"),
    "an unknown call": (
        "lenght_penalty(limit=3)",
        "no built-in reward 'lenght_penalty'. Did you mean 'length_penalty'?",
    ),
    "an unknown parameter": ("length_penalty(limt=3)", "length_penalty has no setting 'limt'. Did you mean 'limit'?"),
    "a parameter of one without": ("missing_eos_penalty(a=3)", "no setting 'a'. It has none."),
    "a value out of bounds": ("length_penalty(limit=-3)", "length_penalty: limit=-3 is out of range: it must be >= 0"),
    "a call by position": ("length_penalty(3)", "cannot read reward 'length_penalty(3)'"),
    "half of a call": ("length_penalty(limit=3", "put quotes around a call"),
    "no regular expression": ("pattern_reward(pattern='(')", "is no regular expression"),
    "no pattern": ("pattern_reward", "pattern_reward needs a pattern"),
    "an address": ("http://localhost/v1", "write {judge: http://localhost/v1, model: NAME}"),
    "no such name": ("mine.py:too", "mine.py has no 'too'. Did you mean 'two'?"),
    "a file without a name": ("mine.py", "not of the form FILE.py:NAME"),
    "no function": (
        "mine.py:number",
        "must be a function f(prompts, completions) that returns a list of numbers, and its type is int",
    ),
    "a class in a file": ("mine.py:Three", "is a class"),
    "a class": (LengthPenalty, "is the class LengthPenalty"),
    "nothing": ([], "empty list"),
    "a number": (3, "not int"),
    "a weight that is no number": ({"reward": words, "weight": "high"}, "the weight 'high' is not a finite number"),
    "a weight that is not finite": ((words, math.nan), "the weight nan is not a finite number"),
    "a built-in that is a folder too": ("length_penalty", "write 'length_penalty()' or './length_penalty'"),
    "a mapping of nothing": (
        {"rewrd": words},
        "has one of the keys reward, ensemble or judge, not rewrd. Did you mean",
    ),
    "a mapping of two": ({"ensemble": [words, words], "judge": "http://a"}, "has one of the keys"),
    "a mapping with more": ({"reward": "mine.py:two", "wieght": 1}, "no setting 'wieght'. Did you mean 'weight'?"),
    "an ensemble of one": ({"ensemble": [words]}, "two or more"),
    "an ensemble of a pair": ({"ensemble": [words, 0.5]}, "two or more"),
    "an unknown way": ({"ensemble": [words, words], "how": "median"}, "how='median' is not one of 'mean', 'min'"),
    "a k without effect": ({"ensemble": [words, words], "how": "min", "k": 2}, "k=2 has no effect with how='min'"),
    "an unknown key": ({"ensemble": [words, words], "hwo": "min"}, "no setting 'hwo'. Did you mean 'how'?"),
    "a negative k": (
        {"ensemble": [words, words], "how": "mean_minus_std", "k": -1},
        "k=-1 is out of range: it must be >= 0",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_reward_is_refused_in_one_line(case: str, folder: Path) -> None:
    if "folder" in case:
        (folder / "length_penalty").mkdir()
    reward, message = WRONG[case]
    with pytest.raises(UsageError) as raised:
        make_reward(reward)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_loaded_model_is_refused() -> None:
    from torch import nn

    with pytest.raises(UsageError, match="reward is a loaded Linear, which lacks its tokenizer"):
        make_reward(nn.Linear(1, 1))


def test_parts_are_reported_under_their_names_without_their_weights() -> None:
    def half(prompts: list, completions: list, scale: float = 0.5) -> list[float]:
        return [scale] * len(completions)

    reward = [(words, 2.0), words, functools.partial(half, scale=0.25), Ensemble([words, "empty_penalty"])]
    total, parts = make_reward(reward)(PROMPTS, TEXTS, COLUMNS)
    assert parts == {
        "words": [4, 3, 0],
        "words_1": [4, 3, 0],
        "half": [0.25] * 3,
        "ensemble": [2, 1.5, -0.5],
        "ensemble/words": [4, 3, 0],
        "ensemble/empty_penalty": [0, 0, -1],
    }
    assert total == [14.25, 10.75, -0.25]


def test_a_function_gets_the_columns_that_it_names() -> None:
    def some(prompts: list, completions: list, answer: list, *, lengths: list, extra: int = 3) -> list[float]:
        assert extra == 3
        assert answer == COLUMNS["answer"]
        return [float(length) for length in lengths]

    def every(prompts: list, completions: list, **columns: list) -> list[float]:
        assert columns == COLUMNS
        return [0.0] * len(completions)

    assert values([some, every]) == [5, 4, 1]


def test_a_column_called_completions_does_not_replace_the_sampled_ones() -> None:
    def every(prompts: list, completions: list, **columns: list) -> list[float]:
        assert completions == TEXTS
        assert "completions" not in columns
        return [0.0] * len(completions)

    make_reward(every)(PROMPTS, TEXTS, COLUMNS | {"completions": [["x"], ["y"], ["z"]]})


def test_a_column_that_is_not_there_is_named() -> None:
    with pytest.raises(
        UsageError, match=r"length_penalty reads the column 'lengths', which is not there\. Did you mean"
    ):
        make_reward("length_penalty")(PROMPTS, TEXTS, {"length": [1, 2, 3]})


@pytest.mark.parametrize("name", ROLLOUT_COLUMNS)
def test_a_column_of_the_data_with_the_name_of_a_fact_of_the_rollout_is_refused(name: str) -> None:
    rollout = {key: COLUMNS[key] for key in ROLLOUT_COLUMNS}
    assert join_columns({"topic": [1, 2, 3]}, rollout) == {"topic": [1, 2, 3], **rollout}
    with pytest.raises(UsageError, match=rf"the data has a column '{name}'.*data.columns="):
        join_columns({name: [1, 2, 3]}, rollout)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "reward bad returned NoneType"),
        ([1.0, 2.0], "reward bad returned 2 values for 3 completions"),
        ([1.0, None, 2.0], "reward bad returned None for completion 1: it must be a number"),
        ([1.0, 2.0, math.inf], "reward bad returned inf for completion 2: rewards must be finite"),
    ],
)
def test_what_a_function_must_return(returned: object, message: str) -> None:
    def bad(prompts, completions):
        return returned

    with pytest.raises(UsageError, match=message):
        make_reward(bad)(PROMPTS, TEXTS, COLUMNS)
    with pytest.raises(UsageError, match=f"ensemble, member bad: {message}"):
        make_reward(Ensemble([words, bad]))(PROMPTS, TEXTS, COLUMNS)


def test_an_error_inside_a_member_names_it() -> None:
    def broken(prompts: list, completions: list) -> list[float]:
        raise KeyError("x")

    with pytest.raises(KeyError) as raised:
        make_reward(Ensemble([words, broken]))(PROMPTS, TEXTS, COLUMNS)
    assert raised.value.__notes__ == ["in the member broken of an ensemble of rewards"]


def test_the_three_ways_of_an_ensemble() -> None:
    """Values 1, 2 and 6 of three members: mean 3, minimum 1, population variance (4 + 1 + 9) / 3."""
    members = [lambda p, c, v=value: [v] * len(c) for value in (1.0, 2.0, 6.0)]
    assert values(Ensemble(members)) == pytest.approx([3] * 3)
    assert values(Ensemble(members, how="min")) == pytest.approx([1] * 3)
    assert values(Ensemble(members, how="mean_minus_std")) == pytest.approx([3 - math.sqrt(14 / 3)] * 3)
    assert values(Ensemble(members, how="mean_minus_std", k=0.5)) == pytest.approx([3 - math.sqrt(14 / 3) / 2] * 3)
    weighted = [(members[0], 4), members[1], members[2]]
    assert values(Ensemble(weighted, how="min")) == pytest.approx([2] * 3)
    inner = Ensemble(weighted, how="mean")
    total, parts = make_reward(Ensemble([inner, (inner, -1)]))(PROMPTS, TEXTS, COLUMNS)
    assert total == pytest.approx([0] * 3)
    assert parts["ensemble/ensemble_1"] == pytest.approx([4] * 3)


def test_penalties_by_their_formulas() -> None:
    assert values("length_penalty(limit=4, per_token=0.5)") == [-0.5, 0, 0]
    assert values("min_length_penalty(limit=5, per_token=0.5)") == [0, -0.5, -2]
    assert values("missing_eos_penalty") == [0, -1, 0]
    assert values("empty_penalty") == [0, 0, -1]
    # Trigrams: "a a a" twice; "a b c" once; none.
    assert values("repetition_penalty") == [-0.5, 0, 0]
    assert values("repetition_penalty(n=1)") == [-0.75, 0, 0]
    assert values("pattern_reward(pattern='^a b')") == [0, 1, 0]
    assert values("exact_match") == [0, 1, 0]
    with pytest.raises(UsageError, match=r"there is no column 'anwser'\. Did you mean 'answer'\?"):
        values("exact_match(column=anwser)")


def test_soft_overlong_punishment_is_dapos() -> None:
    """Equation 13 of arXiv 2503.14476 with the paper's L_max = 20480 and L_cache = 4096."""
    punish = BUILT_IN["soft_overlong_punishment"]
    lengths, limit, cache = [1, 16384, 16385, 18432, 20479, 20480], 20480, 4096
    expected = [0.0 if n <= limit - cache else ((limit - cache) - n) / cache for n in lengths]
    assert expected[3] == -0.5
    assert expected[-1] == -1
    texts, limits = ["x"] * len(lengths), [limit] * len(lengths)
    for one in (punish(cache=cache), punish()):
        assert one(texts, texts, lengths=lengths, max_new_tokens=limits) == pytest.approx(expected)
    assert punish(cache=1)(["x"], ["x"], lengths=[9], max_new_tokens=[8]) == [-1]
    with pytest.raises(UsageError, match="cache=9 is more than max_new_tokens=8"):
        punish(cache=9)(["x"], ["x"], lengths=[1], max_new_tokens=[8])


def test_flags_and_yaml_say_the_same(folder: Path) -> None:
    flags = [
        "mine.py:two",
        "0.5*length_penalty(limit=3, per_token=0.5)",
        "[mine.py:two, 0.25]",
        "{ensemble: [mine.py:two, empty_penalty], how: min, weight: 2}",
        "{judge: http://localhost:8000/v1, model: m}",
    ]
    (folder / "run.yaml").write_text(
        "algorithm: rejection_sampling\nmodel: m\nout: o\nreward:\n"
        "- mine.py:two\n"
        "- reward: length_penalty(limit=3, per_token=0.5)\n  weight: 0.5\n"
        "- [mine.py:two, 0.25]\n"
        "- ensemble: [mine.py:two, empty_penalty]\n  how: min\n  weight: 2\n"
        "- judge: http://localhost:8000/v1\n  model: m\n"
    )
    from_yaml = make_reward(read_run(read_yaml(folder / "run.yaml")).reward)
    from_flags = make_reward(parse_rewards(flags))
    weights = [1, 0.5, 0.25, 2, 1]
    for reward in (from_yaml, from_flags):
        assert [weight for _, weight in reward.functions.values()] == weights
        without_judge = Reward({name: part for name, part in reward.functions.items() if name != "judge"})
        assert without_judge(PROMPTS, TEXTS, COLUMNS)[0] == pytest.approx([2, 2.25, 0.5])
    assert from_yaml.functions["judge"] == from_flags.functions["judge"]
    assert parse_rewards(["mine.py:two"]) == "mine.py:two"
    single = {"algorithm": "dpo", "model": "m", "out": "o", "reward": {"ensemble": ["a", "b"]}}
    assert read_run(single).reward == {"ensemble": ["a", "b"]}
    with pytest.raises(UsageError, match="is not YAML"):
        parse_rewards(["{judge: http://localhost"])
