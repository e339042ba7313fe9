"""bfloat16 around float32 weights, which a full fine-tune on a card has by default: who computes in it, and who not."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import tiny
import torch
from helpers import trainer
from online_runs import online
from torch import nn

import prefopt
from prefopt.core.recipe import Recipe
from prefopt.models import make_critic
from prefopt.models.precision import compute_dtype
from prefopt.scoring import attention, why_not_shared
from prefopt.training.arguments import recipe_fields
from prefopt.training.held_out import HeldOutAccuracy

HALF = {"bf16": True}


@contextmanager
def products(model: nn.Module) -> Iterator[list[torch.dtype]]:
    """What dtype a layer of a model multiplies in, every time."""
    seen: list[torch.dtype] = []
    layer = next(module for name, module in model.named_modules() if name.endswith("v_proj"))
    handle = layer.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    yield seen
    handle.remove()


@pytest.mark.parametrize("name", ["orpo", "dpo"])
def test_a_full_fine_tune_shares_prompts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[set[torch.dtype]] = []
    attend = attention.FlatAttention.by_bucket

    def watched(*args: torch.Tensor, **options: object) -> torch.Tensor:
        entered.append({one.dtype for one in args[1:4]})
        return attend(*args, **options)

    monkeypatch.setattr(attention.FlatAttention, "by_bucket", watched)
    run = trainer(name, tiny.pairs(12), args=HALF)
    run.train()
    assert why_not_shared(run.policy) == ""
    # Rotary embeddings leave queries and keys in float32, which no flash kernel takes.
    assert entered and all(dtypes == {torch.bfloat16} for dtypes in entered)


def test_a_reference_scored_in_the_loss_computes_as_the_policy_does() -> None:
    run = trainer("tdpo2", tiny.pairs(8), args=HALF)
    with products(run.policy) as own, products(run.reference.model) as beside:
        run.train()
    assert set(own) == set(beside) == {torch.bfloat16}


@pytest.mark.parametrize("critic", ["model", "head"])
def test_a_critic_computes_as_the_policy_does_and_its_head_in_float32(critic: str) -> None:
    run = online(prefopt.get_algorithm("ppo", critic=critic), args=HALF)
    values: list[torch.dtype] = []
    run.source.critic.head.register_forward_hook(lambda _, __, out: values.append(out.dtype))
    body = getattr(run.source.critic, "model", run.policy)
    with products(body) as seen:
        run.train()
    assert set(seen) == {torch.bfloat16}
    assert len(values) > 3 and set(values) == {torch.float32}


def test_a_watch_computes_as_the_trainer_does() -> None:
    run = trainer("dpo", tiny.pairs(8), args=HALF)
    held_out = HeldOutAccuracy(run.context, run.reference, run.processing_class, run.data_settings)
    measure = held_out(tiny.pairs(4, seed=1))
    with products(run.reference.model) as seen:
        measure()
    assert set(seen) == {torch.bfloat16}


def test_cards_that_emulate_bfloat16_train_in_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    args = recipe_fields(Recipe(full=1e-6), trains_adapter=False, quantized=False)
    assert (args["bf16"], args["fp16"], compute_dtype()) == (False, True, torch.float32)


@pytest.mark.parametrize("kind", ["model", "head"])
def test_a_critic_follows_the_policy_to_its_device(kind: str) -> None:
    """All that an optimizer gets of it: states that are loaded for a resumed run go where the weights are."""
    policy = tiny.model()
    critic = make_critic(kind, policy)
    weights = critic.parameters(policy)
    critic.follow(policy.to("meta"))
    moved = critic.parameters(policy)
    assert len(moved) == len(weights) and {weight.device.type for weight in moved} == {"meta"}
