"""The watch for reward hacking."""

import pytest
import tiny
from helpers import trainer
from transformers import TrainerControl, TrainerState

import prefopt
from prefopt.core.errors import UsageError

STEADY = {"completions/length": 20.0, "completions/repetition": 0.05, "kl": 1.0}


def run(watch: prefopt.Watch, logs: list[dict[str, float]]) -> TrainerControl:
    control = TrainerControl()
    for entry in logs:
        watch.on_log(None, TrainerState(), control, STEADY | entry)
    return control


def rising(**changes: float) -> list[dict[str, float]]:
    """Ten logs in which the reward rises, and what is named goes to its value in the second half."""
    return [{"reward": 0.1 * i, **(changes if i >= 5 else {})} for i in range(10)]


def test_nothing_is_said_while_only_the_reward_rises() -> None:
    watch = prefopt.Watch(kl_budget=5.0)
    assert not run(watch, rising()).should_training_stop
    assert watch.reasons == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("completions/length", 31.0),
        ("completions/length", 13.0),
        ("completions/repetition", 0.2),
        ("kl", 6.0),
    ],
)
def test_each_sign_is_a_reason_while_the_reward_rises(name: str, value: float, capsys: pytest.CaptureFixture) -> None:
    watch = prefopt.Watch(kl_budget=5.0)
    assert not run(watch, rising(**{name: value})).should_training_stop
    assert list(watch.reasons) == [name]
    assert capsys.readouterr().err.count("watch, step") == 1


def test_a_falling_reward_is_no_hacking_but_the_kl_has_a_budget_all_the_same() -> None:
    watch = prefopt.Watch(kl_budget=5.0)
    run(watch, [{"reward": -i, "completions/length": 20.0 + 5 * i, "kl": float(i)} for i in range(10)])
    assert list(watch.reasons) == ["kl"]


def test_it_can_stop_the_run() -> None:
    assert run(prefopt.Watch(stop=True), rising(**{"completions/repetition": 0.5})).should_training_stop


def test_held_out_accuracy_is_compared_with_its_best() -> None:
    watch, state, control = prefopt.Watch(window=2), TrainerState(), TrainerControl()
    run(watch, rising())
    for value in (0.6, 0.7, 0.66):
        watch.on_evaluate(None, state, control, {"eval_rewards/accuracies": value})
    assert watch.reasons == {}
    watch.on_evaluate(None, state, control, {"eval_rewards/accuracies": 0.64})
    assert list(watch.reasons) == ["eval_rewards/accuracies"]


def test_senseless_settings_are_refused() -> None:
    with pytest.raises(UsageError, match="window"):
        prefopt.Watch(window=0)


def test_a_run_is_stopped_that_learns_to_repeat_itself() -> None:
    """The reward counts a word, so that repeating it pays; held-out pairs are looked at on the way."""
    watch = prefopt.Watch(window=2, repetition=0.2, length=100.0, held_out=tiny.pairs(8), every=2, stop=True)
    online = trainer(
        "online_dpo",
        [{"prompt": row["prompt"]} for row in tiny.pairs(16)],
        reward=lambda prompts, completions: [text.split().count("good") for text in completions],
        generation={"n": 6, "max_new_tokens": 8},
        args={"per_device_train_batch_size": 8, "max_steps": 40, "learning_rate": 3e-3},
        callbacks=[watch],
    )
    online.train()
    assert "completions/repetition" in watch.reasons or "held-out accuracy" in watch.reasons
    assert online.state.global_step < 40
    assert 0 <= watch._best["held-out accuracy"] <= 1


def test_online_runs_are_watched_unless_they_bring_a_watch() -> None:
    def watches(**options: object) -> list[prefopt.Watch]:
        rows = [{"prompt": "a b "}, {"prompt": "c "}]
        online = trainer("grpo", rows, reward=lambda p, c: [0.0] * len(c), **options)
        return [one for one in online.callback_handler.callbacks if isinstance(one, prefopt.Watch)]

    own = prefopt.Watch()
    assert len(watches()) == 1
    assert watches(callbacks=[own]) == [own]
