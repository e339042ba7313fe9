"""Measures of a trained policy against values known in closed form."""

import time
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from toy_lab import ToyLab, toy_lab

import prefopt
from prefopt.data import prepare_dataset
from prefopt.evaluation.samples import Samples, log_ratios, win_rates
from prefopt.evaluation.statistics import t_interval
from prefopt.lab.demo import Budget, make_yardstick
from prefopt.lab.measure import (
    Cost,
    HeldOutPairs,
    Measurement,
    Result,
    costing,
    sample,
)
from prefopt.rollouts import Sample


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> ToyLab:
    return toy_lab(tmp_path_factory.mktemp("toy"))


def samples(rewards: list[list[float]]) -> Samples:
    one = Sample(np.array([9, 2], dtype=np.int32), "c", True)
    values = np.array(rewards)
    n, k = values.shape
    return Samples(["p"] * n, [np.array([1, 8], dtype=np.int32)] * n, [[one] * k] * n, values)


def test_win_rates_count_every_comparison_of_a_prompt_and_ties_one_half() -> None:
    policy, start = samples([[0.5, 1.0], [0.2, 0.2]]), samples([[0.5, 0.7], [0.2, 0.9]])
    assert win_rates(policy, start).tolist() == [(0.5 + 0 + 1 + 1) / 4, (0.5 + 0 + 0.5 + 0) / 4]


def test_sampling_repeats_with_its_seed_and_leaves_the_global_one_alone(lab: ToyLab) -> None:
    model, tokenizer = tiny.model(), tiny.tokenizer()
    state = torch.random.get_rng_state()
    draws = [
        sample(model, tokenizer, lab.held_out_prompts, lab.reward, k=3, max_new_tokens=5, seed=seed)
        for seed in (1, 1, 2)
    ]
    assert torch.equal(torch.random.get_rng_state(), state)
    texts = [[[each.text for each in group] for group in draw.groups] for draw in draws]
    assert texts[0] == texts[1] != texts[2]
    assert draws[0].rewards.shape == draws[0].lengths.shape == (len(lab.held_out_prompts), 3)
    assert draws[0].rewards.tolist() == [lab.reward(["p"] * 3, group) for group in texts[0]]
    assert draws[0].lengths.max() <= 5


def test_log_ratios_are_those_of_plain_forward_passes(lab: ToyLab) -> None:
    policy, start = tiny.model(1), tiny.model(0)
    drawn = sample(policy, tiny.tokenizer(), lab.held_out_prompts[:5], lab.reward, k=2, max_new_tokens=6)
    ratios = log_ratios(policy, start, drawn, pad_token_id=0)
    for i, (prompt, group) in enumerate(zip(drawn.prompt_ids, drawn.groups, strict=True)):
        for j, each in enumerate(group):
            ids = torch.tensor([[*prompt.tolist(), *each.ids.tolist()]])
            place = torch.arange(len(prompt) - 1, ids.shape[1] - 1)
            logps = [
                m(ids).logits.double().log_softmax(-1)[0, place, ids[0, place + 1]].sum().item()
                for m in (policy, start)
            ]
            assert ratios[i, j] == pytest.approx(logps[0] - logps[1], abs=1e-4)


def test_the_kl_estimate_is_the_exact_divergence_for_completions_of_one_token() -> None:
    policy, start, tokenizer = tiny.model(1), tiny.model(0), tiny.tokenizer()
    prompt = "a b c"
    drawn = sample(policy, tokenizer, [prompt], lambda p, c: [0.0] * len(c), k=4000, max_new_tokens=1, batch_size=4000)
    ratios = log_ratios(policy, start, drawn, pad_token_id=0)
    ids = torch.tensor(drawn.prompt_ids[0][None].astype(np.int64))
    p, q = (model(ids).logits[0, -1].double().log_softmax(-1) for model in (policy, start))
    exact = (p.exp() * (p - q)).sum().item()
    assert exact > 0.05
    low, high = t_interval(ratios.ravel(), level=0.9999)
    assert low < exact < high
    assert high - low < exact


def test_a_policy_equal_to_its_start_has_no_kl_and_wins_half(lab: ToyLab) -> None:
    yardstick = make_yardstick(lab, Budget(prompts=16, k=8, pairs=16, max_new_tokens=6))
    measured, _ = yardstick.measure(tiny.model(), prefopt.get_objective("dpo"))
    assert np.abs(measured.kl).max() < 1e-5
    assert measured.accuracy.tolist() == [0.5] * 16
    low, high = t_interval(measured.win_rate, level=0.999)
    assert low < 0.5 < high
    assert not np.array_equal(measured.reward, yardstick.of_start().reward)


@pytest.mark.parametrize("name", ["dpo", "ipo", "orpo", "simpo"])
def test_accuracy_is_that_of_the_trainers_evaluation(lab: ToyLab, name: str, tmp_path: Path) -> None:
    args = {"use_cpu": True, "max_steps": 3, "learning_rate": 1e-2, "disable_tqdm": True, "save_strategy": "no"}
    run = prefopt.Trainer(
        str(lab.model), name, lab.pairs, lab.held_out_pairs, args={**args, "output_dir": str(tmp_path)}
    )
    run.train()
    outcomes = HeldOutPairs(run.eval_dataset, tiny.model()).outcomes(run.objective, run.policy)
    expected = run.evaluate()["eval_rewards/accuracies"]
    assert outcomes.mean() == pytest.approx(expected, abs=1e-6)
    assert expected != 0.5


@pytest.mark.parametrize("name", ["sft", "kto"])
def test_accuracy_of_objectives_that_take_no_pairs_follows_their_own_reward(lab: ToyLab, name: str) -> None:
    policy, start = tiny.model(1), tiny.model(0)
    pairs = prepare_dataset(lab.held_out_pairs, "pairs", tiny.tokenizer(), context=64)
    held_out = HeldOutPairs(pairs, start)
    outcomes = held_out.outcomes(prefopt.get_objective(name), policy)
    dpo = held_out.outcomes(prefopt.get_objective("dpo"), policy)
    likelihood = [
        log_likelihood(policy, e.prompt, e.completions[0]) > log_likelihood(policy, e.prompt, e.completions[1])
        for e in pairs.examples
    ]
    # KTO's reward is a log-ratio as DPO's is; that of SFT is the likelihood alone.
    assert outcomes.tolist() == (dpo.tolist() if name == "kto" else [float(right) for right in likelihood])
    assert dpo.tolist() != [float(right) for right in likelihood]


def log_likelihood(model: torch.nn.Module, prompt: np.ndarray, completion: np.ndarray) -> float:
    ids = torch.tensor([[*prompt.tolist(), *completion.tolist()]])
    logps = model(ids).logits.log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None])
    return logps[len(prompt) - 1 :].sum().item()


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak can be set back on Linux only")
def test_the_cost_of_a_block_is_its_own() -> None:
    with costing() as large:
        block = np.ones(25_000_000)
        time.sleep(0.05)
        del block
    with costing() as small:
        np.ones(1000)
    assert 195 < large.added_mb < 260
    assert small.added_mb < 20
    assert large.peak_mb > small.peak_mb + 150
    assert 0.05 <= large.seconds < 5


def test_a_result_averages_seconds_and_keeps_the_largest_memory() -> None:
    runs = [
        Measurement(np.array([0.1, 0.3]), np.array([3.0, 5.0])),
        Measurement(np.array([0.3, 0.5]), np.array([5.0, 7.0])),
    ]
    result = Result.of("dpo", runs, [Cost(1.0, 100.0, 10.0), Cost(3.0, 90.0, 20.0)])
    assert (result.seeds, result.reward.mean, result.length.mean) == (2, pytest.approx(0.3), 5.0)
    assert result.cost == Cost(2.0, 100.0, 20.0)
    assert result.kl is None


def test_the_start_is_asked_about_the_pairs_once(lab: ToyLab) -> None:
    calls, start = [], tiny.model(0)
    start.register_forward_pre_hook(lambda *_: calls.append(1))
    held_out = HeldOutPairs(prepare_dataset(lab.held_out_pairs, "pairs", tiny.tokenizer(), context=64), start)
    first = held_out.outcomes(prefopt.get_objective("dpo"), tiny.model(1))
    asked = len(calls)
    assert asked > 0
    assert held_out.outcomes(prefopt.get_objective("ipo"), tiny.model(1)).tolist() == first.tolist()
    assert len(calls) == asked
