"""Rows of different lengths in several passes: the values and gradients of one padded pass, and fewer positions."""

import sys
from collections.abc import Callable
from itertools import combinations

import pytest
import torch
from parity import InFloat64, tiny_model
from torch import nn
from transformers import AutoModelForSequenceClassification

from prefopt.core.micro_batch import PaddedRows
from prefopt.scoring import rows_of, score, score_values, share_prompts, sharing, tiles
from prefopt.scoring.passes import cheapest
from prefopt.scoring.scorer import rewards_of

# The package exports a function of the same name.
scoring = sys.modules["prefopt.scoring.score"]
MODELS = ("jamba", "bamba", "falcon-h1", "lfm2", "bloom", "falcon", "gpt-neo", "stablelm")
STATISTICS = frozenset({"entropy", "kl", "log_sum_p2"})


def batch(*shape: tuple[int, int]) -> PaddedRows:
    """Rows with prompts and completions of these lengths, padded on the right."""
    generator = torch.Generator().manual_seed(0)
    width = max(map(sum, shape))
    place, total = torch.arange(width), torch.tensor([sum(row) for row in shape])
    attention = place < total[:, None]
    counts = attention & (place >= torch.tensor([prompt for prompt, _ in shape])[:, None])
    ids = torch.randint(3, 30, (len(shape), width), generator=generator) * attention
    return PaddedRows(input_ids=ids, attention_mask=attention.long(), completion_mask=counts)


ROWS = batch((4, 8), (9, 21), (2, 3), (20, 12), (5, 1), (3, 9))


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass costs its positions only."""
    monkeypatch.setattr(sharing, "call_of", lambda _: 0)


class Calls:
    """The shape of the input of every forward pass."""

    def __init__(self, model: nn.Module) -> None:
        self.seen: list[tuple[int, ...]] = []
        embeddings = model.get_input_embeddings()
        embeddings.register_forward_hook(lambda _, args, out: self.seen.append(tuple(out.shape[:2])))


# ---- which rows go together ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [0, 3, 10, 60])
def test_rows_are_cut_where_it_costs_least(call: int) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        lengths = torch.randint(1, 40, (6,), generator=generator).tolist()

        def cost(parts: list[list[int]], lengths: list[int] = lengths) -> int:
            return sum(max(lengths[i] for i in part) * len(part) + call for part in parts)

        found = cheapest(lengths, call)
        assert sorted(row for part in found for row in part) == list(range(6))
        order = sorted(range(6), key=lambda i: lengths[i])
        cuts = [cut for count in range(6) for cut in combinations(range(1, 6), count)]
        every = [[order[a:b] for a, b in zip((0, *cut), (*cut, 6), strict=True)] for cut in cuts]
        assert cost(found) == min(map(cost, every))


def test_small_batches_and_rows_that_are_alike_stay_together() -> None:
    assert len(cheapest([60, 50, 30, 10], 128)) == 1
    assert len(cheapest([512, 508, 500, 490] * 2, 128)) == 1
    assert cheapest([100, 900, 880, 90], 128) == [[1, 2], [0, 3]]


# ---- the same numbers ------------------------------------------------------------------------------------------------


def measured(
    model: nn.Module, reference: nn.Module, rows: PaddedRows, value_head: nn.Module
) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        kept = rows_of(reference, rows)
    found = score(model, rows, statistics=STATISTICS, reference=kept, value_head=value_head)
    found["apart"] = score_values(model, rows, value_head)
    return found


def gradients(model: nn.Module, values: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    used = [weight for weight in model.parameters() if weight.requires_grad]
    differentiable = [value for value in values.values() if value.requires_grad]
    assert len(differentiable) == 4
    loss = sum((torch.linspace(0.5, 1.5, len(value)).double() * value).sum() for value in differentiable)
    found = torch.autograd.grad(loss, used, allow_unused=True)
    return [torch.zeros_like(w) if g is None else g for w, g in zip(used, found, strict=True)]


@pytest.mark.usefixtures("free")
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("size", [5, 10**6], ids=["head in chunks", "at once"])
def test_values_and_gradients_are_those_of_one_padded_pass(
    name: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, reference = tiny_model(name), tiny_model(name)
    monkeypatch.setattr(scoring, "CHUNK", size * model.config.vocab_size)
    monkeypatch.setattr(tiles, "TILE", size * model.config.vocab_size)
    for weight in reference.parameters():
        weight.data += 0.05 * torch.randn_like(weight)
    head = nn.Linear(32, 1).double()
    with InFloat64():
        # Stablelm is asked for a flat sequence first, and gives none.
        score(model, ROWS)
        score(reference, ROWS)
        calls = Calls(model)
        several = measured(model, reference, ROWS, head)
        assert calls.seen == 2 * [(1, 32), (1, 30), (2, 12), (1, 6), (1, 5)]
        own = gradients(model, several)
        calls.seen.clear()
        share_prompts(model, on=False)
        share_prompts(reference, on=False)
        whole = measured(model, reference, ROWS, head)
        assert calls.seen == 2 * [(6, 32)]
        expected = gradients(model, whole)
    assert several.keys() == whole.keys()
    for key, value in whole.items():
        assert (several[key] - value).abs().max() < 1e-9, key
    largest = max(gradient.abs().max() for gradient in expected)
    assert largest > 1e-3
    for one, other in zip(own, expected, strict=True):
        assert (one - other).abs().max() < 1e-9 * largest


@pytest.mark.usefixtures("free")
def test_values_out_of_order_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("bloom")
    share_prompts(model, on=False)
    whole = score(model, ROWS)["logps"]
    share_prompts(model)
    monkeypatch.setattr(scoring, "in_order", lambda values, places: torch.cat(list(values)))
    assert (score(model, ROWS)["logps"] - whole).abs().max() > 1e-3


@pytest.mark.usefixtures("free")
def test_rows_without_a_token_that_counts_are_left_out() -> None:
    rows = ROWS.map(torch.clone)
    rows.completion_mask[3] = False
    model = tiny_model("bloom")
    calls = Calls(model)
    with InFloat64():
        found = score(model, rows)["logps"]
        assert calls.seen == [(1, 30), (2, 12), (1, 6), (1, 5)]
        share_prompts(model, on=False)
        assert (found - score(model, rows)["logps"]).abs().max() < 1e-9


@pytest.mark.usefixtures("free")
def test_checkpointed_layers_give_the_same_gradients() -> None:
    found = []
    for checkpointing in (False, True):
        model = tiny_model("jamba").train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        score(model, ROWS)["logps"].square().sum().backward()
        found.append([weight.grad for weight in model.parameters()])
    for one, other in zip(*found, strict=True):
        assert one is other is None or torch.allclose(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("free")
def test_a_head_that_is_found_out_in_a_later_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first pass keeps hidden states, the others logits."""
    monkeypatch.setattr(tiles, "TILE", 61)
    model, answers = tiny_model("bloom"), iter([True])
    expected = score(model, ROWS)["logps"]
    monkeypatch.setattr(scoring, "logits_equal", lambda *_: next(answers, False))
    rows = rows_of(model, ROWS)
    assert rows.values.shape == (len(expected), 61)
    assert torch.allclose(scoring.values_of(rows, ROWS.layout.target)["logps"], expected)


# ---- where rows stay together ----------------------------------------------------------------------------------------


class Wrapper(nn.Module):
    """Holds a model as data parallelism does."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: object, **options: object) -> object:
        return self.module(*args, **options)


def spread(model: nn.Module) -> nn.Module:
    for weight in model.parameters():
        weight.device_mesh = "one of two processes"
    return model


@pytest.mark.usefixtures("free")
@pytest.mark.parametrize("change", [Wrapper, spread], ids=["data parallel", "fully sharded"])
def test_processes_that_work_together_do_one_pass(change: Callable[[nn.Module], nn.Module]) -> None:
    inner = tiny_model("bloom")
    calls, model = Calls(inner), change(inner)
    score(model, ROWS)
    score_values(model, ROWS, nn.Linear(32, 1).double())
    assert calls.seen == 2 * [(6, 32)]


def test_what_a_pass_costs_keeps_small_batches_whole() -> None:
    for name in MODELS:
        model = tiny_model(name)
        score(model, ROWS)
        calls = Calls(model)
        score(model, ROWS)
        assert calls.seen == [(6, 32)], name


# ---- reward models ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("free")
@pytest.mark.parametrize("name", ["llama", "jamba", "bloom"])
def test_rewards_and_their_gradients_are_those_of_one_padded_pass(name: str) -> None:
    config = tiny_model(name).config
    config.num_labels = 1
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).double().eval()
    for weight in model.parameters():
        weight.data += 0.3 * torch.randn_like(weight)
    calls, found = Calls(model), []
    for on in (True, False):
        share_prompts(model, on=on)
        with InFloat64():
            rewards = rewards_of(model, ROWS)
            (torch.linspace(0.5, 1.5, 6).double() * rewards).sum().backward()
        found.append((rewards.detach(), [w.grad for w in model.parameters() if w.grad is not None]))
        model.zero_grad()
    assert calls.seen == [(1, 32), (1, 30), (2, 12), (1, 6), (1, 5), (6, 32)]
    (rewards, own), (expected, whole) = found
    assert (rewards - expected).abs().max() < 1e-9
    assert (rewards - rewards.flip(0)).abs().max() > 1e-3
    largest = max(gradient.abs().max() for gradient in whole)
    for one, other in zip(own, whole, strict=True):
        assert (one - other).abs().max() < 1e-9 * largest


def test_rewards_of_one_pass_stay_in_the_order_of_the_rows() -> None:
    config = tiny_model("llama").config
    config.num_labels = 1
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).double().eval()
    calls = Calls(model)
    rewards = rewards_of(model, ROWS)
    assert calls.seen == [(6, 32)]
    inputs = ROWS.inputs
    assert torch.equal(rewards, model(**inputs).logits[:, 0])
