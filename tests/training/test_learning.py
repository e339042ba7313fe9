"""Where training starts, what moves and what does not. That the loss of everything falls, test_zoo.py shows."""

import pytest
import tiny
import torch
import transformers
from helpers import losses, trainer

import prefopt
import prefopt.training.trainer


def test_a_full_fine_tune_moves_every_weight() -> None:
    run = trainer("dpo", tiny.pairs(4), args={"max_steps": 2, "learning_rate": 1e-3})
    before = {key: value.clone() for key, value in run.model.named_parameters()}
    run.train()
    assert all(not torch.equal(value, before[key]) for key, value in run.model.named_parameters())


@pytest.mark.parametrize("name", ["dpo", "ipo", "kto"])
@pytest.mark.parametrize("adapter", [None, "lora"])
def test_at_the_start_the_loss_is_that_of_the_reference(name: str, adapter: str | None) -> None:
    expected = {"dpo": 0.6931472, "ipo": 25.0, "kto": 0.5}
    run = trainer(name, tiny.pairs(4), adapter=adapter, args={"max_steps": 1})
    run.train()
    assert losses(run)[0] == pytest.approx(expected[name], rel=1e-6)


def test_the_reference_stays_as_it_was() -> None:
    """After training, the loss of the first step is that of a policy that has left its reference."""
    run = trainer("dpo", tiny.pairs(4), args={"max_steps": 6, "learning_rate": 3e-3})
    frozen = {key: value.clone() for key, value in run.reference.model.named_parameters()}
    run.train()
    assert all(torch.equal(value, frozen[key]) for key, value in run.reference.model.named_parameters())
    assert abs(losses(run)[-1] - losses(run)[0]) > 0.01


def test_an_adapter_that_does_not_start_at_zero_is_refused() -> None:
    run = trainer("dpo", tiny.pairs(4), adapter="lora", lora={"init_lora_weights": False}, args={"max_steps": 1})
    with pytest.raises(prefopt.core.errors.UsageError, match="at step 0 the policy differs from its reference"):
        run.train()


@pytest.mark.parametrize(("dtype", "refused"), [(torch.float32, True), (torch.bfloat16, False)])
def test_passes_that_differ_by_roundings_of_half_precision_are_the_same_model(
    dtype: torch.dtype, refused: bool
) -> None:
    model = tiny.model(0, dtype)
    model.lm_head.register_forward_hook(lambda _, __, logits: logits + 0.01 * torch.randn_like(logits))
    run = trainer("dpo", tiny.pairs(4), model=model, adapter="lora", args={"max_steps": 1})
    if not refused:
        run.train()
        return
    with pytest.raises(prefopt.core.errors.UsageError, match="draws random numbers"):
        run.train()


def test_an_adapter_that_does_not_start_at_zero_is_refused_in_half_precision() -> None:
    options = {"adapter": "lora", "lora": {"init_lora_weights": False}, "args": {"max_steps": 1}}
    run = trainer("dpo", tiny.pairs(4), model=tiny.model(0, torch.bfloat16), **options)
    with pytest.raises(prefopt.core.errors.UsageError, match="at step 0 the policy differs from its reference"):
        run.train()


def test_operations_are_those_that_transformers_counts() -> None:
    run = trainer("dpo", tiny.pairs(5), adapter="lora", args={"max_steps": 2, "per_device_train_batch_size": 4})
    batches = list(run.get_train_dataloader())
    assert len({batch.rows.input_ids.numel() for batch in batches}) == 2
    expected = sum(transformers.Trainer.floating_point_ops(run, batch.rows.inputs) for batch in batches)
    run.train()
    assert run.state.total_flos == expected > 0


@pytest.mark.parametrize("kind", ["all", "non_padding"])
def test_input_tokens_are_those_that_transformers_counts(kind: str) -> None:
    args = {"max_steps": 2, "per_device_train_batch_size": 4, "include_num_input_tokens_seen": kind}
    run = trainer("dpo", tiny.pairs(5), args=args)
    rows = [batch.rows for batch in run.get_train_dataloader()]
    run.train()
    expected = {
        "all": sum(one.input_ids.numel() for one in rows),
        "non_padding": sum(int(one.attention_mask.sum()) for one in rows),
    }
    assert expected["all"] > expected["non_padding"]
    assert run.state.num_input_tokens_seen == expected[kind]


def test_resuming_gives_the_weights_of_an_uninterrupted_run(tmp_path) -> None:
    def run(steps: int, resume: bool) -> prefopt.Trainer:
        made = trainer(
            "kto",
            tiny.pairs(10),
            adapter="lora",
            lora={"r": 4},
            args={
                "output_dir": str(tmp_path / ("a" if steps == 6 and not resume else "b")),
                "max_steps": 6,
                "save_strategy": "steps",
                "save_steps": 3,
                "learning_rate": 1e-2,
            },
        )
        if steps < 6:
            made.add_callback(_StopAt(steps))
        made.train(resume_from_checkpoint=resume)
        return made

    whole = run(6, False)
    run(3, False)
    resumed = run(6, True)
    for (key, a), (_, b) in zip(whole.model.named_parameters(), resumed.model.named_parameters(), strict=True):
        assert torch.equal(a, b), key


class _StopAt(prefopt.training.trainer.TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **_):
        control.should_training_stop = state.global_step >= self.step
