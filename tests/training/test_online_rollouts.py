"""What a rollout holds, how often it is used, and that looking at it changes nothing."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from helpers import quick
from online_runs import ADAPTER, PROMPTS, Spy, collector, logs, online, weights, worth
from transformers import TrainerCallback

import prefopt
from prefopt.algorithms.online import assemblies
from prefopt.core.errors import UsageError
from prefopt.core.micro_batch import MicroBatch
from prefopt.rollouts import GenerationSettings, Sample, TransformersGenerator, generator, kv_cache
from prefopt.scoring import share_prompts

ONLINE = sorted(assemblies())
# One of every kind: advantages in a group, a critic, pairs of the policy's and of two samplers', the best of n, rounds.
KINDS = ["grpo", "ppo", "online_dpo", "xpo", "rejection_sampling", "rest_em"]
RATIO = [name for name in ONLINE if prefopt.get_algorithm(name).uses_ratio]
HOW = [pytest.param({}, id="full"), pytest.param(ADAPTER, id="lora")]


def by_hand(model: torch.nn.Module, prompt: np.ndarray, ids: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """log softmax(logits/T) of each completion token, from one unpadded sequence."""
    whole = torch.from_numpy(np.concatenate([prompt, ids]).astype(np.int64))
    with torch.no_grad():
        logits = model(whole[None]).logits[0, len(prompt) - 1 : -1].double() / temperature
    return logits.log_softmax(-1).gather(-1, whole[len(prompt) :, None])[:, 0].numpy()


def words(examples: list) -> Counter:
    return Counter((example.prompt.tobytes(), example.completions[0].tobytes()) for example in examples)


def rows_of(batch: MicroBatch) -> list[tuple]:
    """Prompt and completion of each row of a micro-batch."""
    rows = []
    padded = batch.rows
    for ids, attention, mask in zip(padded.input_ids, padded.attention_mask, padded.completion_mask, strict=True):
        kept = attention.bool()
        prompt, completion = ids[kept & ~mask].numpy().astype(np.int32), ids[mask].numpy().astype(np.int32)
        rows.append((prompt.tobytes(), completion.tobytes()))
    return rows


def batches_of(run: prefopt.Trainer) -> list[list[MicroBatch]]:
    """Filled with the micro-batches of every optimizer step."""
    steps: list[list[MicroBatch]] = []
    inner = run.get_batch_samples

    def keep(*given: Any, **options: Any) -> Any:
        found = inner(*given, **options)
        steps.append(list(found[0]))
        return found

    run.get_batch_samples = keep
    return steps


# ---- probabilities -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_at_the_first_step_the_ratio_is_one_and_the_kl_nothing(name: str, how: dict) -> None:
    algorithm = prefopt.get_algorithm(name, passes=2, **({"beta": 0.04} if name == "grpo" else {}))
    run = online(algorithm, args={"max_steps": 3, "learning_rate": 1e-2}, generation={"temperature": 0.7}, **how)
    steps = batches_of(run)
    run.train()
    ratios, kls = logs(run, "policy/ratio"), logs(run, "kl")
    assert ratios[0] == pytest.approx(1.0, abs=1e-6)
    assert logs(run, "policy/approx_kl")[0] == pytest.approx(0.0, abs=1e-9)
    assert kls[0] == pytest.approx(0.0, abs=1e-6)
    assert abs(ratios[1] - 1) > 1e-3
    assert logs(run, "policy/approx_kl")[1] > 1e-5
    # The next rollout begins at ratio 1 again, and by now away from the reference.
    assert ratios[2] == pytest.approx(1.0, abs=1e-6)
    assert kls[-1] > 1e-3
    old = [batch.labels["old_logps"] for step in steps[:2] for batch in step]
    assert torch.equal(old[0].sort().values, old[1].sort().values)


def test_mixed_precision_samples_scores_and_trains_alike() -> None:
    run = online("ppo", eval_dataset=PROMPTS[:2], args={"bf16": True, "max_steps": 5, "learning_rate": 1e-2}, **ADAPTER)
    run.train()
    assert logs(run, "policy/ratio")[0] == pytest.approx(1.0, abs=0.02)
    assert logs(run, "generator/gap")[0] < 0.05
    assert np.isfinite(run.evaluate()["eval_loss"])
    assert all(torch.isfinite(value).all() for value in run.policy.parameters())


@pytest.mark.parametrize("how", HOW)
def test_old_and_reference_log_probs_are_those_of_the_sampling_temperature(how: dict) -> None:
    algorithm = prefopt.get_algorithm("rloo", kl_coef=0.1)
    run = online(algorithm, generation={"temperature": 0.7}, args={"max_steps": 2, "learning_rate": 1e-2}, **how)
    run.train()
    spy = Spy(run)
    run.source.collector.collect(run.source.loader.prompts.draw, 3, seed=1)
    reference = tiny.model()
    apart = 0.0
    for group in spy.groups[0]:
        for sample, tokens in zip(group.samples, group.tokens, strict=True):
            expected = by_hand(run.policy, group.prompt.prompt, sample.ids, 0.7)
            np.testing.assert_allclose(tokens["old_logps"], expected, atol=1e-5)
            np.testing.assert_allclose(sample.logps, expected, atol=1e-5)
            original = by_hand(reference, group.prompt.prompt, sample.ids, 0.7)
            np.testing.assert_allclose(tokens["ref_logps"], original, atol=1e-5)
            apart = max(apart, np.abs(original - expected).max())
    assert apart > 1e-2


@pytest.mark.parametrize("how", HOW)
def test_the_generators_own_log_probs_are_compared_with_the_scorers(how: dict) -> None:
    run = online("grpo", args={"max_steps": 3, "learning_rate": 1e-2}, generation={"temperature": 1.3}, **how)
    run.train()
    assert len(logs(run, "generator/gap")) == 3
    assert max(logs(run, "generator/gap")) < 1e-5

    class Stale(TransformersGenerator):
        """Samples from weights that are not the policy's."""

        def generate(self, model: torch.nn.Module, *given: Any, **options: Any) -> list[list[Sample]]:
            return super().generate(tiny.model(5), *given, **options)

    broken = online("grpo", args={"max_steps": 1}, **how)
    broken.source.collector.generator = Stale(tiny.tokenizer())
    broken.train()
    assert logs(broken, "generator/gap")[0] > 0.1


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_a_prompt_read_once_for_n_samples_gives_the_samples_of_the_plain_way(
    temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With left padding, a prompt of one token, and more prompts than one call takes."""
    prompts = [np.array(ids, dtype=np.int32) for ids in ([1, 7, 8, 9, 10, 11], [1, 12], [9], [1, 20, 21, 22])]
    settings = GenerationSettings(n=5, max_new_tokens=7, temperature=temperature, batch_size=15)
    found = []
    for plain in (False, True):
        if plain:
            monkeypatch.setattr(kv_cache, "keeps_all", lambda model: False)
        torch.manual_seed(4)
        found.append(TransformersGenerator(tiny.tokenizer()).generate(tiny.model(), prompts, settings))
    for cached, other in zip(*found, strict=True):
        assert len(cached) == 5
        for one, two in zip(cached, other, strict=True):
            assert one.ids.tolist() == two.ids.tolist()
            np.testing.assert_allclose(one.logps, two.logps, atol=1e-5)
    assert len({sample.ids.tobytes() for sample in found[0][0]}) > 1


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_rows_that_have_ended_leave_and_the_others_go_on_as_they_were(
    temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every token has the probability that it has after its own prompt and the tokens before it."""
    monkeypatch.setattr(generator, "STAGE", 2)
    model, prompts = tiny.model(3).eval(), [np.array(ids, dtype=np.int32) for ids in ([1, 7, 8, 9, 10], [1, 12])]
    widths: list[int] = []
    hook = model.register_forward_pre_hook(
        lambda _, args, kwargs: widths.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    settings = GenerationSettings(n=24 if temperature else 1, max_new_tokens=12, temperature=temperature)
    # Some of the tokens that are likely end a completion, so that rows end at many places.
    stops = [2, 8, 15, 21] if temperature else [99]
    torch.manual_seed(0)
    groups = TransformersGenerator(tiny.tokenizer(), stops).generate(model, prompts, settings)
    hook.remove()
    if temperature:
        assert widths == [2, *sorted(widths[1:], reverse=True)]
        assert len(set(widths[1:])) > 3
        assert len({len(sample.ids) for group in groups for sample in group}) > 4
    for prompt, group in zip(prompts, groups, strict=True):
        for sample in group:
            assert sample.ended == bool(np.isin(sample.ids[-1], stops))
            assert not np.isin(sample.ids[:-1], stops).any()
            assert sample.ended or len(sample.ids) == 12
            np.testing.assert_allclose(sample.logps, by_hand(model, prompt, sample.ids), atol=1e-5)
    if not temperature:
        plain = model.generate(torch.tensor([[1, 12]]), max_new_tokens=12, do_sample=False, eos_token_id=99)
        assert groups[1][0].ids.tolist() == plain[0, 2:].tolist()


@pytest.mark.parametrize("name", RATIO)
@pytest.mark.parametrize(("key", "value"), [("top_p", 0.9), ("top_k", 5), ("temperature", 0.0)])
def test_sampling_whose_law_is_not_the_models_is_refused_where_a_ratio_is_taken(
    name: str, key: str, value: float
) -> None:
    with pytest.raises(UsageError, match=f"{name} .*{key}"):
        prefopt.training.rollout_source.generation_settings(prefopt.get_algorithm(name), {key: value})


def test_it_is_allowed_where_none_is() -> None:
    others = [name for name in ONLINE if name not in RATIO]
    assert {"online_dpo", "rejection_sampling", "rso", "xpo"} <= set(others)
    assert {"ppo", "grpo", "rloo", "reinforce", "nash_md"} <= set(RATIO)
    for name in others:
        for given in ({"top_p": 0.9}, {"top_k": 5}):
            prefopt.training.rollout_source.generation_settings(prefopt.get_algorithm(name), given)
    run = online("online_dpo", generation={"top_p": 0.9, "top_k": 8, "temperature": 0.7}, args={"max_steps": 1})
    run.train()
    with pytest.raises(UsageError, match="n=3 must be even"):
        prefopt.training.rollout_source.generation_settings(prefopt.get_algorithm("xpo"), {"n": 3})


@pytest.mark.parametrize("how", HOW)
def test_each_sampler_gives_its_share_of_the_completions(how: dict) -> None:
    """XPO: the first half of a group is the policy's, the second the reference's."""
    run = online("xpo", generation={"n": 4}, args={"max_steps": 2, "learning_rate": 3e-2}, **how)
    run.train()
    groups = run.source.collector.roll_out([run.train_dataset[i] for i in range(3)], range(3), seed=1)
    reference = tiny.model()
    for group in groups:
        assert len(group.samples) == len(group.rewards) == 4
        for k, sample in enumerate(group.samples):
            own, other = (by_hand(m, group.prompt.prompt, sample.ids) for m in (run.policy, reference))
            right, wrong = (own, other) if k < 2 else (other, own)
            np.testing.assert_allclose(sample.logps, right, atol=1e-5)
            assert np.abs(sample.logps - wrong).max() > 1e-4


# ---- passes, minibatches, micro-batches --------------------------------------------------------------------------


def test_a_rollout_is_gone_through_in_passes_of_minibatches() -> None:
    """2 minibatches × 2 micro-batches × 2 prompts: 8 prompts a rollout, 3 passes, 6 optimizer steps."""
    algorithm = prefopt.get_algorithm("grpo", passes=3, minibatches=2)
    run = online(algorithm, args={"gradient_accumulation_steps": 2, "max_steps": 12}, generation={"n": 3})
    spy, steps = Spy(run), batches_of(run)
    run.train()
    assert len(spy.examples) == 2
    assert len(steps) == run.state.global_step == 12
    assert [len(examples) for examples in spy.examples] == [24, 24]
    orders = []
    for number in range(6):
        found = [row for step in steps[2 * number : 2 * number + 2] for batch in step for row in rows_of(batch)]
        assert Counter(found) == words(spy.examples[number // 3])
        orders.append(found)
    assert orders[0] != orders[1]  # shuffled in every pass
    assert all(len(batch.rows) == 6 for step in steps for batch in step)
    assert run.state.epoch == pytest.approx(2.0)


def test_epochs_are_passes_over_the_prompts() -> None:
    algorithm = prefopt.get_algorithm("ppo", passes=2, minibatches=1)
    run = online(algorithm, args={"num_train_epochs": 2, "max_steps": -1})
    spy = Spy(run)
    run.train()
    # 8 prompts at 2 a rollout are 4 rollouts of 2 steps, twice.
    assert run.state.global_step == 16
    prompts = [tuple(example.prompt.tolist()) for examples in spy.examples for example in examples[::4]]
    assert len(prompts) == 16
    assert len(set(prompts[:8])) == len(set(prompts[8:])) == 8
    assert prompts[:8] != prompts[8:]


@pytest.mark.parametrize(("name", "options"), [("grpo", {"beta": 0.04}), ("ppo", {}), ("ppo", {"critic": "head"})])
def test_a_step_of_eight_is_two_of_four(name: str, options: dict) -> None:
    ends = []
    for batch, accumulation in ((4, 1), (2, 2)):
        algorithm = prefopt.get_algorithm(name, passes=2, minibatches=2, **options)
        args = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation, "max_steps": 6}
        args |= {"learning_rate": 1e-2, "optim": "sgd"}
        run = online(algorithm, model=tiny.model(0, torch.float64), args=args, **ADAPTER)
        run.train()
        ends.append((weights(run), logs(run, "loss")))
    (one, losses), (two, others) = ends
    assert others == pytest.approx(losses, rel=1e-5, abs=1e-7)
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-5, atol=1e-7)
    start = weights(online(algorithm, model=tiny.model(0, torch.float64), **ADAPTER))
    assert max((one[key] - value).abs().max() for key, value in start.items()) > 1e-3


def test_completions_of_a_prompt_go_together_in_a_step() -> None:
    algorithm = prefopt.get_algorithm("grpo", passes=2)
    args = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "max_steps": 4}
    run = online(algorithm, args=args)
    steps = batches_of(run)
    run.train()
    found = [[[prompt for prompt, _ in rows_of(batch)] for batch in step] for step in steps]
    for step in found:
        assert all(len(set(prompts)) == 1 for prompts in step)
        assert len({prompts[0] for prompts in step}) == 4


def test_a_round_of_rest_em_begins_with_the_weights_of_the_start() -> None:
    """Sampled by the policy as it has become, learned from by the one that began, with a fresh optimizer."""
    run = online(
        prefopt.get_algorithm("rest_em", minibatches=2, threshold=-9.0), args={"max_steps": 5, "learning_rate": 1e-2}
    )
    start, sampled, trained, counts = weights(run), [], [], []
    made = collector(run).roll_out

    def roll_out(*given: Any) -> list:
        sampled.append(weights(run))
        return made(*given)

    class Look(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            trained.append(weights(run))

        def on_step_end(self, *_: Any, optimizer: Any, **__: Any) -> None:
            counts.append({int(state["step"]) for state in optimizer.state.values()})

    def same(one: dict, other: dict) -> bool:
        return all(torch.equal(value, other[key]) for key, value in one.items())

    collector(run).roll_out = roll_out
    run.add_callback(Look())
    run.train()
    assert [same(each, start) for each in sampled] == [True, False]
    assert [same(each, start) for each in trained] == [True, False, True, False, False]
    # The last round takes the step that would be left over: a round of one step is hardly trained at all.
    assert counts == [{1}, {2}, {1}, {2}, {3}]
    onwards = online(
        prefopt.get_algorithm("rest_em", minibatches=2, threshold=-9.0, restart=False), args={"max_steps": 5}
    )
    onwards.train()
    assert onwards.source.initial_weights is None


def test_the_kl_of_the_reward_and_that_of_the_loss_have_names_of_their_own() -> None:
    algorithm = prefopt.get_algorithm("ppo", beta=0.1, kl="k2", passes=2, critic="head")
    run = online(algorithm, args={"max_steps": 4, "learning_rate": 1e-2}, **ADAPTER)
    spy = Spy(run)
    run.train()
    expected = [
        np.mean([(tokens["old_logps"] - tokens["ref_logps"]).sum() for group in groups for tokens in group.tokens])
        for groups in spy.groups
    ]
    assert logs(run, "kl") == pytest.approx(expected, abs=1e-5)
    assert len(logs(run, "kl/loss")) == 4
    assert min(logs(run, "kl/loss")) >= 0
    alone = online(prefopt.get_algorithm("ppo", beta=0.1, kl_coef=0.0), args={"max_steps": 2, "learning_rate": 1e-2})
    alone.train()
    assert len(logs(alone, "kl")) == 2
    assert not logs(alone, "kl/loss")


def test_a_rollout_is_left_when_the_policy_has_moved_too_far() -> None:
    made = {}
    for target in (0.0, 1e-6, 1e6):
        algorithm = prefopt.get_algorithm("ppo", passes=4, target_kl=target)
        run = online(algorithm, args={"max_steps": 8, "learning_rate": 1e-2})
        spy = Spy(run)
        run.train()
        assert run.state.global_step == 8
        made[target] = len(spy.examples)
    # The first step of a rollout cannot have moved; the second has, and is the last.
    assert made == {0.0: 2, 1e-6: 4, 1e6: 2}


def test_a_plan_without_effect_is_refused() -> None:
    with pytest.raises(UsageError, match=r"online_dpo does not measure .* target_kl"):
        online(prefopt.get_algorithm("online_dpo", target_kl=0.1))
    with pytest.raises(UsageError, match="dapo uses no reference model: leave renew_reference out"):
        online(prefopt.get_algorithm("dapo", renew_reference=True))
    with pytest.raises(UsageError, match="samples of the very policy that it improves: leave restart out"):
        online(prefopt.get_algorithm("grpo", restart=True))


# ---- groups that teach nothing -----------------------------------------------------------------------------------


def stuck(prompts: list[str], completions: list[str]) -> list[float]:
    """Every other prompt's completions are all worth the same."""
    even = {row["prompt"]: i % 2 == 0 for i, row in enumerate(PROMPTS)}
    return [0.5 if even[p] else r for p, r in zip(prompts, worth(prompts, completions), strict=True)]


@pytest.mark.parametrize("name", ["dapo", "online_dpo", "iterative_dpo", "xpo"])
def test_groups_without_a_difference_are_replaced(name: str) -> None:
    run = online(name, reward=stuck, args={"max_steps": 1, "per_device_train_batch_size": 4})
    spy = Spy(run)
    run.train()
    size = run.source.loader.size
    useless = {run.train_dataset[i].prompt.tobytes() for i in range(0, 8, 2)}
    assert len({id(example) for example in spy.examples[0]}) >= size
    assert not useless & {example.prompt.tobytes() for example in spy.examples[0]}
    assert logs(run, "groups/kept")[0] < 0.9
    assert run.source.loader.prompts.place > size


@pytest.mark.parametrize("name", ["dapo", "online_dpo", "rso", "rest_em"])
def test_rewards_that_are_equal_everywhere_are_one_clear_error(name: str) -> None:
    run = online(name, reward=lambda prompts, completions: [0.25] * len(completions), args={"max_steps": 1})
    with pytest.raises(UsageError, match="check the reward") as caught:
        run.train()
    assert "\n" not in str(caught.value)


def test_equal_rewards_are_no_error_where_they_are_a_result() -> None:
    """GRPO's advantages are then 0: nothing moves."""
    run = online("grpo", reward=lambda prompts, completions: [0.25] * len(completions), args={"max_steps": 2})
    before = weights(run)
    run.train()
    assert all(torch.equal(value, before[key]) for key, value in weights(run).items())


# ---- evaluation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", quick(ONLINE, KINDS))
def test_evaluation_gives_the_same_numbers_twice_and_leaves_no_trace(name: str) -> None:
    given = {"kl_controller": "adaptive", "kl_target": 1e-3, "kl_horizon": 10} if name == "ppo" else {}
    run = trains(name, ADAPTER, **given)
    loader, before = run.source.loader, weights(run)

    def state() -> tuple:
        inner = loader.number, loader.given, loader._cursor, loader._skip, loader.prompts.place, id(loader._examples)
        return *inner, loader.collector.controller.coefficient, torch.random.get_rng_state().tolist()

    found, kept = state(), np.random.get_state()[1].tolist()
    first = run.evaluate()
    assert state() == found
    assert np.random.get_state()[1].tolist() == kept
    torch.manual_seed(99)
    second = run.evaluate()
    timing = {key for key in first if "second" in key or "runtime" in key}
    assert {k: v for k, v in first.items() if k not in timing} == {k: v for k, v in second.items() if k not in timing}
    assert {"eval_loss", "eval_reward", "eval_completions/length"} <= first.keys()
    assert all(np.isfinite(value) for value in first.values())
    assert all(torch.equal(value, before[key]) for key, value in weights(run).items())


def test_the_batches_of_an_evaluation_are_sampled_once_however_often_they_are_read() -> None:
    run = online("online_dpo", eval_dataset=PROMPTS[:3])
    sampled: list[int] = []
    inner = collector(run).roll_out
    collector(run).roll_out = lambda prompts, *given: sampled.append(len(prompts)) or inner(prompts, *given)
    batches = run.source.eval_batches(run.eval_dataset, 2)
    first, second = ([rows_of(batch) for batch in batches] for _ in range(2))
    assert sampled == [3]
    assert first == second
    assert len(batches.dataset) == 3


@pytest.mark.parametrize("name", ["ppo", "rloo", "online_dpo"])
def test_evaluation_does_not_depend_on_the_batch_size(name: str) -> None:
    found = []
    for size in (1, 3):
        options = {"critic": "head"} if name == "ppo" else {}
        args = {"per_device_eval_batch_size": size, "max_steps": 1, "learning_rate": 1e-2}
        run = online(prefopt.get_algorithm(name, **options), eval_dataset=PROMPTS, args=args, **ADAPTER)
        run.train()
        found.append({k: v for k, v in run.evaluate().items() if "second" not in k and "runtime" not in k})
    assert found[0]["eval_loss"] != 0
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-4, abs=1e-6)


def test_evaluation_between_steps_changes_nothing_of_a_run() -> None:
    ends = []
    for when in ("no", "steps"):
        algorithm = prefopt.get_algorithm("ppo", passes=2, kl_controller="adaptive", kl_target=1e-3, kl_horizon=10)
        args = {"max_steps": 5, "eval_strategy": when, "eval_steps": 1, "learning_rate": 1e-2}
        run = online(algorithm, eval_dataset=PROMPTS[:3], args=args, **ADAPTER)
        run.train()
        ends.append((weights(run), [(logs(run, key)) for key in ("reward", "kl", "kl_coef", "loss", "value/error")]))
    assert ends[0][1] == ends[1][1]
    assert len(set(ends[0][1][2])) > 1
    assert all(torch.equal(value, ends[1][0][key]) for key, value in ends[0][0].items())


@pytest.mark.parametrize("name", ["online_dpo", "dapo"])
def test_evaluation_of_what_yields_no_examples_still_tells_the_reward(name: str) -> None:
    run = online(name, eval_dataset=PROMPTS[:3], reward=lambda prompts, completions: [0.25] * len(completions))
    metrics = run.evaluate()
    assert metrics["eval_reward"] == 0.25
    assert "eval_loss" not in metrics


# ---- masks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("critic", ["adapter", "head", "model"])
def test_nothing_of_the_padding_reaches_advantages(critic: str) -> None:
    """Every token that is masked out becomes another one before any model sees it."""
    run = online(prefopt.get_algorithm("ppo", critic=critic, passes=1), args={"learning_rate": 1e-2}, **ADAPTER)
    run.train()
    collector, dataset = run.source.collector, run.train_dataset
    clean = collector.collect(lambda number: [(i, dataset[i]) for i in range(number)], 4, seed=1)
    poisoned: list[int] = []

    def poison(module: torch.nn.Module, given: tuple, named: dict) -> tuple[tuple, dict]:
        ids, mask = named["input_ids"], named.get("attention_mask")
        if mask is not None and ids.shape == mask.shape:
            poisoned.append(int((mask == 0).sum()))
            # Without a draw of random numbers, which sampling would miss.
            named = {**named, "input_ids": torch.where(mask == 0, 7 + torch.arange(ids.shape[1]) % 23, ids)}
        return given, named

    models = {id(m): m for m in (run.policy, getattr(run.source.critic, "model", run.policy))}.values()
    for model in models:  # in rows that are padded, as where prompts cannot be shared
        share_prompts(model, False)
    hooks = [model.register_forward_pre_hook(poison, with_kwargs=True) for model in models]
    dirty = collector.collect(lambda number: [(i, dataset[i]) for i in range(number)], 4, seed=1)
    for hook in hooks:
        hook.remove()
    assert sum(poisoned) > 10
    assert words(dirty) == words(clean)
    for one, two in zip(clean, dirty, strict=True):
        assert (
            one.labels.keys() == two.labels.keys() == {"old_logps", "ref_logps", "advantages", "returns", "old_values"}
        )
        for name, value in one.labels.items():
            np.testing.assert_allclose(two.labels[name], value, atol=2e-5, err_msg=name)
    assert max(np.abs(example.labels["old_values"]).max() for example in clean) > 1e-3


def test_the_reward_lands_on_the_last_token_whether_a_completion_ended_or_was_cut() -> None:
    """λ = 0 and a critic that says 0: the advantage of a token is its own reward."""
    algorithm = prefopt.get_algorithm("ppo", lam=0.0, kl_coef=0.0, whiten_advantages=False)
    run = online(algorithm, generation={"n": 16})
    spy = Spy(run)
    collector = run.source.collector
    collector.collect(run.source.train_batches(run.train_dataset, 2).prompts.draw, 4, seed=2)
    samples = [(s, r) for group in spy.groups[0] for s, r in zip(group.samples, group.rewards, strict=True)]
    assert 5 < sum(sample.ended for sample, _ in samples) < 60
    for example, (sample, reward) in zip(spy.examples[0], samples, strict=True):
        assert example.completions[0].tolist() == sample.ids.tolist()
        assert sample.ended == (sample.ids[-1] == 2)
        assert example.labels["advantages"][-1] == pytest.approx(reward, abs=1e-6)
        assert not example.labels["advantages"][:-1].any()


# ---- everything that has a name ----------------------------------------------------------------------------------


def trains(name: str, how: dict, **given: Any) -> prefopt.Trainer:
    """Three steps, all weights that are trained move, and every number is one."""
    given |= {"minibatches": 1} if "minibatches" in assemblies()[name].schedule else {}
    # All steps in one round: the next one would begin with the start again.
    given |= {"threshold": 0.0, "minibatches": 3} if name == "rest_em" else {}
    algorithm = prefopt.get_algorithm(name, **given)
    run = online(algorithm, eval_dataset=PROMPTS[:3], args={"learning_rate": 1e-2}, **how)
    before = {key: value.detach().clone() for key, value in run.policy.named_parameters() if value.requires_grad}
    run.train()
    assert run.state.global_step == 3
    assert len(logs(run, "loss")) == 3
    assert all(np.isfinite(value) for entry in run.state.log_history for value in entry.values())
    now = dict(run.policy.named_parameters())
    moved = [key for key, value in before.items() if not torch.equal(now[key], value)]
    assert len(moved) == len(before)
    assert all(torch.isfinite(value).all() for value in now.values())
    return run


@pytest.mark.parametrize("name", quick(ONLINE, KINDS))
def test_every_online_algorithm_trains(name: str) -> None:
    """All weights; those of an adapter in test_recorded.py, every name of them."""
    trains(name, {})
