"""Everything that is registered trains through the trainer by its name, exactly as its mathematics says."""

from pathlib import Path

import pytest
import tiny
import torch
from helpers import Watch, losses, quick, trainer
from safetensors.torch import load_file
from transformers import TrainerCallback

import prefopt
from prefopt.algorithms.online import assemblies
from prefopt.core.errors import DataError, UsageError
from prefopt.data import load_rows
from prefopt.objectives import get_objective, names
from prefopt.training.checkpoint import STATE_FILE

# Those that learn from data on disk; the others are trained by name in test_online_rollouts.py.
ALL = [name for name in names() if name not in assemblies() and name != "value"]
COUPLED = [name for name in ALL if get_objective(name).needs.coupled]
SEPARABLE = [name for name in ALL if name not in COUPLED]
REMEMBERING = [name for name in ALL if get_objective(name).init_state()]
# One of every kind: demonstrations, pairs, labelled rows with mismatched ones, rankings, rows that are coupled, with a
# memory, with a statistic over the vocabulary, a reward model, a sum.
KINDS = ["sft", "dpo", "kto", "dpo_pl", "aot_paired", "bco", "beta_dpo", "tdpo2", "wpo", "reward", "dpo + 0.2*sft"]
SUMS = ["dpo + 0.2*sft", "dpo(beta=0.2) + 0.2*sft", "bco_pair + dpo_pl", "kto + 0.5*bco"]


def rows(name: str, n: int) -> list[dict]:
    """Data of the kind that an objective was made for, with every label."""
    kind = prefopt.get_algorithm(name).data_kind
    if kind == "ranked":
        return tiny.ranked(n)
    if kind == "labelled":
        return tiny.labelled(n)
    labels = [{"preference": 0.6 + 0.05 * (i % 8), "margin": 0.25 * (i % 4)} for i in range(n)]
    return [{**row, **label} for row, label in zip(tiny.pairs(n), labels, strict=True)]


def reference(name: str, dtype: torch.dtype = torch.float32) -> torch.nn.Module | None:
    return tiny.model(1, dtype) if get_objective(name).needs.reference else None


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **_):
        control.should_training_stop = state.global_step >= self.step


def test_the_zoo_is_whole() -> None:
    """The lists below are made from the registry; none of them may be empty by mistake."""
    assert len(ALL) >= 49
    assert COUPLED == ["aot_paired", "aot_unpaired"]
    assert {"bco", "bco_pair", "beta_dpo", "mpo"} <= set(REMEMBERING)


# That every algorithm trains, and to which numbers, test_recorded.py shows.
@pytest.mark.parametrize("name", quick([*ALL, *SUMS], KINDS))
def test_the_loss_falls_on_one_batch_and_the_adapter_moves(name: str) -> None:
    args = {"per_device_train_batch_size": 6, "max_steps": 8, "learning_rate": 3e-3}
    run = trainer(name, rows(name, 6), adapter="lora", lora={"r": 8}, args=args)
    before = {key: value.clone() for key, value in run.model.named_parameters()}
    run.train()
    history = losses(run)
    assert all(torch.isfinite(torch.tensor(history)))
    assert history[-1] < history[0] - 0.02 * abs(history[0]), history
    moved = {key for key, value in run.model.named_parameters() if not torch.equal(value, before[key])}
    # The head of a reward model is trained whole, beside the adapter.
    head = {key for key in before if "score.modules_to_save" in key}
    assert len(head) == get_objective(name).needs.rewards
    assert moved == head | {key for key in before if "lora_" in key}


def steps(name: str, batch: int, accumulation: int) -> prefopt.Trainer:
    """Two steps of 8 on two different sets of rows, so that what is remembered enters the second one."""
    watch = Watch()
    run = trainer(
        name,
        rows(name, 16),
        model=tiny.model(0, torch.float64),
        reference=reference(name, torch.float64),
        args={
            "per_device_train_batch_size": batch,
            "gradient_accumulation_steps": accumulation,
            "max_steps": 2,
            "learning_rate": 1e-4,
        },
        callbacks=[watch],
    )
    run.train()
    run.gradients = watch.gradients
    return run


# That every loss is separable is certified; this is about the trainer. test_accumulation.py has more, with metrics.
@pytest.mark.parametrize(
    "name",
    quick([*SEPARABLE, *SUMS], ["dpo_pl", "bco", "beta_dpo", "sampo", "tdpo2", "wpo", "reward", "kto + 0.5*bco"]),
)
def test_a_step_of_eight_is_four_times_two(name: str) -> None:
    whole, parts = steps(name, 8, 1), steps(name, 2, 4)
    for one, four in zip(whole.gradients, parts.gradients, strict=True):
        assert one.norm() > 0
        assert (one - four).norm() <= 1e-10 * one.norm()
    # The log is kept in single precision.
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-6)
    assert parts.objective_state.keys() == whole.objective_state.keys()
    for key, value in whole.objective_state.items():
        torch.testing.assert_close(parts.objective_state[key], value, rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", COUPLED)
def test_what_couples_rows_refuses_accumulation_and_a_batch_of_one(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} couples the examples.*gradient_accumulation_steps=1"):
        trainer(name, rows(name, 8), args={"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4})
    with pytest.raises(UsageError, match=f"{name} compares examples.*per_device_train_batch_size must be 2 or more"):
        trainer(name, rows(name, 8), args={"per_device_train_batch_size": 1})
    run = trainer(name, rows(name, 9), args={"per_device_train_batch_size": 4})
    assert [batch.num_examples for batch in run.get_train_dataloader()] == [4, 5]


@pytest.mark.parametrize("name", quick(REMEMBERING, ["bco", "beta_dpo"]))
def test_what_is_remembered_is_saved_and_resumed_bit_for_bit(name: str, tmp_path: Path) -> None:
    def run(folder: str, stop: int, resume: bool = False) -> prefopt.Trainer:
        made = trainer(
            name,
            rows(name, 12),
            reference=reference(name),
            callbacks=[StopAt(stop)],
            args={
                "output_dir": str(tmp_path / folder),
                "max_steps": 4,
                "per_device_train_batch_size": 3,
                "save_strategy": "steps",
                "save_steps": 2,
                "learning_rate": 1e-4,
            },
        )
        made.train(resume_from_checkpoint=resume)
        return made

    whole, half = run("whole", 4), run("halves", 2)
    saved = load_file(tmp_path / "halves" / "checkpoint-2" / STATE_FILE)
    assert saved.keys() == half.objective_state.keys()
    assert all(torch.equal(saved[key], value) for key, value in half.objective_state.items())
    start = half.objective.init_state()
    assert any(not torch.equal(saved[key].to(value.dtype), value) for key, value in start.items())
    resumed = run("halves", 4, resume=True)
    assert losses(resumed) == losses(whole)
    for key, value in whole.objective_state.items():
        assert torch.equal(resumed.objective_state[key], value), key
        assert not torch.equal(value, saved[key]), key
    for (key, one), (_, two) in zip(whole.model.named_parameters(), resumed.model.named_parameters(), strict=True):
        assert torch.equal(one, two), key


@pytest.mark.parametrize("name", quick(REMEMBERING, ["bco", "beta_dpo"]))
def test_evaluation_reads_what_is_remembered_and_leaves_it(name: str) -> None:
    """Between two steps an evaluation changes neither the memory nor the rest of the run."""
    data = rows(name, 12)

    def run(evaluate: bool) -> prefopt.Trainer:
        args = {"max_steps": 4, "learning_rate": 1e-4, "eval_strategy": "steps" if evaluate else "no", "eval_steps": 1}
        made = trainer(name, data, eval_dataset=tiny.pairs(5, seed=9), reference=reference(name), args=args)
        made.train()
        return made

    quiet, watched = run(False), run(True)
    assert losses(watched) == losses(quiet)
    for key, value in quiet.objective_state.items():
        assert torch.equal(watched.objective_state[key], value)
    before = {key: value.clone() for key, value in watched.objective_state.items()}
    remembered = watched.evaluate()["eval_loss"]
    assert all(torch.equal(watched.objective_state[key], value) for key, value in before.items())
    watched.objective_state = {key: value + 7 for key, value in before.items()}
    # β-DPO evaluates with β0, and SamPO with one draw, whatever they remember; a shift is part of the loss.
    assert (watched.evaluate()["eval_loss"] != remembered) == (name in ("bco", "bco_pair", "mpo"))


@pytest.mark.parametrize(
    "name",
    quick(
        ["infonca", "exo", "dpo_pl", "rrhf", "pro", "tdpo2", "wpo", *REMEMBERING, *SUMS],
        ["infonca", "rrhf", "tdpo2", "wpo", "bco", "beta_dpo", "dpo + 0.2*sft"],
    ),
)
def test_evaluation_does_not_depend_on_the_batch_size(name: str) -> None:
    results = []
    for size in (2, 16):
        args = {"per_device_eval_batch_size": size}
        run = trainer(name, None, eval_dataset=rows(name, 7), reference=reference(name), args=args)
        results.append({k: v for k, v in run.evaluate().items() if "per_second" not in k and "runtime" not in k})
    assert results[0].keys() == results[1].keys()
    for key, value in results[0].items():
        assert results[1][key] == pytest.approx(value, rel=2e-5, abs=1e-6), key


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("rebel", "'score_chosen' and 'score_rejected'"),
        ("reward_aware_rpo", "'score_chosen' and 'score_rejected'"),
        ("sppo", "'preference'"),
        ("exo", "'score_chosen' and 'score_rejected'"),
        ("infonca", "'score_chosen' and 'score_rejected'"),
        ("dpo + 0.5*rebel", "'score_chosen' and 'score_rejected'"),
    ],
)
def test_a_label_that_the_data_lacks_is_named_when_the_trainer_is_assembled(name: str, columns: str) -> None:
    data = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in tiny.pairs(8)]
    with pytest.raises(DataError) as caught:
        trainer(name, data)
    words = str(caught.value)
    assert f"{name} needs {columns}" in words
    assert "\n" not in words


@pytest.mark.parametrize("name", ["dpo", "sft", "exo", "rebel"])
def test_rankings_train_what_takes_pairs_demonstrations_or_rankings(name: str) -> None:
    run = trainer(name, tiny.ranked(6), args={"max_steps": 1})
    run.train()
    assert len(losses(run)) == 1


def test_rankings_do_not_become_labels_unless_that_is_asked_for() -> None:
    with pytest.raises(DataError, match=r"data\.pairs='best-worst'"):
        trainer("kto", tiny.ranked(6))
    assert len(trainer("kto", tiny.ranked(6), data={"pairs": "best-worst"}).train_dataset) == 12


def test_the_ranked_batch_size_counts_groups() -> None:
    run = trainer("dpo_pl", tiny.ranked(6), args={"per_device_train_batch_size": 3})
    batches = list(run.get_train_dataloader())
    assert [batch.num_examples for batch in batches] == [3, 3]
    assert sum(len(batch.rows) for batch in batches) == sum(len(row["completions"]) for row in tiny.ranked(6))


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("name", ALL)
def test_real_judgements_train_a_real_model(name: str, shared: Path) -> None:
    """AlpacaEval's annotations, which hold a probability of preference and no scores, and UltraFeedback's layout."""
    folder = str(shared / "models" / "tinystories-656k")
    judged = [row for row in load_rows(shared / "data" / "alpacaeval_pairs.jsonl.gz")[:40] if row["preference"] != 1.5]
    if {"scores", "chosen_score"} & set(get_objective(name).needs.labels):
        judged = [
            {
                "instruction": row["instruction"],
                "completions": [
                    {
                        "response": row[f"output_{k}"],
                        "annotations": {"help": {"Rating": str(4 - k + row["preference"])}},
                    }
                    for k in (1, 2)
                ],
            }
            for row in judged
        ]
    if "rated_margin" in get_objective(name).needs.labels:
        # As HelpSteer2 writes it: negative where the first is better.
        judged = [
            {
                "prompt": row["instruction"],
                "response_1": row["output_1"],
                "response_2": row["output_2"],
                "preference_strength": 4 * (row["preference"] - 1.5),
            }
            for row in judged
        ]
    run = prefopt.Trainer(
        folder,
        name,
        judged,
        adapter="lora",
        data={"max_length": 256, "truncation": "keep-start"},
        args={"max_steps": 2, "use_cpu": True, "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True}
        | {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "learning_rate": 1e-3},
    )
    before = {key: value.clone() for key, value in run.model.named_parameters() if value.requires_grad}
    run.train()
    assert all(torch.isfinite(torch.tensor(losses(run))))
    assert all(torch.isfinite(value).all() for value in run.model.parameters())
    assert any(not torch.equal(run.model.get_parameter(key), value) for key, value in before.items())
