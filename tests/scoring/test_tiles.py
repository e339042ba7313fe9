"""The vocabulary head in tiles against a log-softmax of all logits: values, gradients, precision, memory, work."""

import itertools
import sys
from collections.abc import Callable, Sequence

import pytest
import tiny
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers.modeling_outputs import CausalLMOutputWithPast

from prefopt.core.errors import UsageError
from prefopt.core.micro_batch import PaddedRows
from prefopt.scoring import rows_of, score, tiles
from prefopt.scoring.head import AfterHead, LinearHead
from prefopt.scoring.score import STATISTICS
from prefopt.scoring.tiles import Through, tile_values

AFTER = {
    "plain": AfterHead(),
    "scaled": AfterHead(scale=0.25),
    "divided": AfterHead(divisor=5.0),
    "capped": AfterHead(cap=3.0),
    "all three": AfterHead(scale=1.5, divisor=0.7, cap=2.0),
}


def given(
    rows: int = 13,
    vocabulary: int = 37,
    width: int = 5,
    *,
    dtype: torch.dtype = torch.float64,
    bias: bool = True,
    after: AfterHead = AFTER["plain"],
    seed: int = 0,
) -> tuple[Through, torch.Tensor]:
    """Rows before a head, and tokens."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    weight, offset = normal(vocabulary, width), normal(vocabulary) if bias else None
    target = torch.randint(0, vocabulary, (rows,), generator=generator)
    return Through(normal(rows, width).requires_grad_(), LinearHead(weight, offset, dtype, after)), target


def learn(rows: Through, *names: str) -> list[torch.Tensor]:
    """What has gradients: the hidden states, and of the head what is named."""
    chosen = [getattr(rows.head, name) for name in names]
    return [rows.hidden, *(one.requires_grad_() for one in chosen if one is not None)]


def logits_of(rows: Through) -> torch.Tensor:
    return rows.head.after(nn.functional.linear(rows.hidden, rows.head.weight, rows.head.bias))


def plain(
    own: Through, target: torch.Tensor, reference: Through | None = None, temperature: float = 1.0
) -> dict[str, torch.Tensor]:
    """The definitions."""
    logps = (logits_of(own) / temperature).log_softmax(-1)
    values = {
        "logps": logps.gather(1, target[:, None])[:, 0],
        "entropy": -(logps.exp() * logps).sum(1).detach(),
        "log_sum_p2": logps.exp().square().sum(1).log().detach(),
    }
    if reference is not None:
        ref = (logits_of(reference) / temperature).log_softmax(-1).detach()
        values["kl"] = (ref.exp() * (ref - logps)).sum(1)
    return values


def gradients(values: dict[str, torch.Tensor], by: list[torch.Tensor]) -> list[torch.Tensor]:
    weights = torch.linspace(-0.5, 1.5, len(values["logps"]), dtype=values["logps"].dtype)
    loss = (weights * values["logps"]).sum()
    if "kl" in values:
        loss = loss + (weights.flip(0) * values["kl"]).sum()
    return list(torch.autograd.grad(loss, by, retain_graph=True))


def small_tiles(monkeypatch: pytest.MonkeyPatch, size: int, rows: int) -> None:
    monkeypatch.setattr(tiles, "TILE", size)
    monkeypatch.setattr(tiles, "_ROWS", rows)


def assert_same(found: dict, expected: dict, by: list[torch.Tensor]) -> None:
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-11, atol=1e-11)
        assert value.requires_grad == (name in ("logps", "kl"))
    expected = {name: expected[name] for name in found}
    for one, other in zip(gradients(found, by), gradients(expected, by), strict=True):
        assert other.abs().sum() > 0 or not len(found["logps"])
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("after", AFTER)
@pytest.mark.parametrize("learns", [(), ("weight",), ("bias",), ("weight", "bias")], ids="+".join)
@pytest.mark.parametrize("statistics", [(), ("entropy", "log_sum_p2"), ("kl",), sorted(STATISTICS)], ids="+".join)
def test_values_and_gradients_are_those_of_a_log_softmax(
    after: str, learns: tuple[str, ...], statistics: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small_tiles(monkeypatch, 24, 4)
    for bias, temperature in itertools.product((True, False), (1.0, 0.7)):
        own, target = given(after=AFTER[after], bias=bias)
        # The reference's head is another kind of head.
        reference, _ = given(after=AfterHead(divisor=2.0), bias=not bias, seed=1)
        by = learn(own, *learns)
        found = tile_values(own, target, statistics=frozenset(statistics), reference=reference, temperature=temperature)
        assert found.keys() == {"logps", *statistics}
        assert_same(found, plain(own, target, reference, temperature), by)


@pytest.mark.parametrize("rows", [0, 1, 3, 4])
@pytest.mark.parametrize("vocabulary", [1, 7, 8])
@pytest.mark.parametrize("tile", [(1, 1), (6, 2), (7, 100), (2**22, 2048)], ids=str)
def test_tiles_may_have_any_size(
    rows: int, vocabulary: int, tile: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    small_tiles(monkeypatch, *tile)
    for learns in ((), ("weight", "bias")):
        own, target = given(rows, vocabulary)
        reference, _ = given(rows, vocabulary, seed=1)
        by, expected = learn(own, *learns), plain(own, target, reference)
        for statistics in (STATISTICS, STATISTICS - {"kl"}):
            found = tile_values(own, target, statistics=statistics, reference=reference)
            for name, value in found.items():
                torch.testing.assert_close(value, expected[name], rtol=1e-11, atol=1e-11)
            # Of one token alone the gradients are 0.
            one, other = (gradients({k: v[k] for k in found if k != "entropy"}, by) for v in (found, expected))
            torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def test_tiles_cover_everything_once_and_are_of_equal_size(monkeypatch: pytest.MonkeyPatch) -> None:
    small_tiles(monkeypatch, 100, 8)
    rows, columns = tiles._tiles(21, 50)
    assert [(part.start, part.stop) for part in rows] == [(0, 7), (7, 14), (14, 21)]
    assert [(part.start, part.stop) for part in columns] == [(0, 10), (10, 20), (20, 30), (30, 40), (40, 50)]


@pytest.mark.parametrize("learns", [(), ("weight",)], ids=["frozen", "learns"])
def test_logits_far_apart_do_not_overflow(learns: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    small_tiles(monkeypatch, 24, 4)
    own, target = given()
    own = Through((own.hidden.detach() * 1e4).requires_grad_(), own.head)
    by = learn(own, *learns)
    found = tile_values(own, target, statistics=STATISTICS - {"kl"})
    expected = plain(own, target)
    assert expected["logps"].min() < -1e4
    torch.testing.assert_close(found["logps"], expected["logps"], rtol=1e-11, atol=1e-9)
    torch.testing.assert_close(found["log_sum_p2"], expected["log_sum_p2"], rtol=1e-11, atol=1e-9)
    for one, other in zip(gradients(found, by), gradients(expected, by), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def error(found: list[torch.Tensor], truth: list[torch.Tensor]) -> list[float]:
    return [((one.double() - other).norm() / other.norm()).item() for one, other in zip(found, truth, strict=True)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("learns", [(), ("weight", "bias")], ids=["frozen", "learns"])
@pytest.mark.parametrize("sure", [False, True], ids=["any tokens", "nearly certain tokens"])
def test_half_precision_is_as_exact_as_a_log_softmax_of_all_logits(
    dtype: torch.dtype, learns: tuple[str, ...], sure: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both against the same numbers in float64."""
    small_tiles(monkeypatch, 2**12, 64)
    half, target = given(200, 500, 64, dtype=dtype)
    if sure:
        half.hidden.data *= 4
        target = logits_of(half).argmax(1)
    head = LinearHead(half.head.weight.double(), half.head.bias.double(), torch.float64, half.head.after)
    exact = Through(half.hidden.detach().double().requires_grad_(), head)
    by, exact_by = learn(half, *learns), learn(exact, *learns)
    found, wanted = tile_values(half, target), {"logps": plain(exact, target)["logps"]}
    whole = {"logps": logits_of(half).float().log_softmax(-1).gather(1, target[:, None])[:, 0]}
    if sure:
        assert wanted["logps"].median() > -0.01
    truth = gradients(wanted, exact_by)
    ours, theirs = gradients(found, by), gradients(whole, by)
    assert found["logps"].dtype == torch.float32
    assert [one.dtype for one in ours] == [one.dtype for one in by]
    gap = [(one["logps"].double() - wanted["logps"]).norm() for one in (found, whole)]
    assert gap[0] <= 1.001 * gap[1]
    for one, other in zip(error(ours, truth), error(theirs, truth), strict=True):
        assert one <= 1.05 * other


def test_sums_over_tiles_in_half_precision_are_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """300 tiles that all add the same would stop to grow in bfloat16 at 256 of them."""
    small_tiles(monkeypatch, 2, 1)
    hidden = torch.ones(300, 1, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    own = Through(hidden, LinearHead(weight, None, torch.bfloat16, AfterHead()))
    tile_values(own, torch.zeros(300, dtype=torch.long))["logps"].sum().backward()
    assert weight.grad.tolist() == [[150.0], [-150.0]]

    small_tiles(monkeypatch, 1, 1)
    for learns in (False, True):
        hidden = torch.zeros(1, 1, dtype=torch.bfloat16, requires_grad=True)
        weight = torch.ones(401, 1, dtype=torch.bfloat16, requires_grad=learns)
        weight.data[0] = 0
        own = Through(hidden, LinearHead(weight, None, torch.bfloat16, AfterHead()))
        (gradient,) = torch.autograd.grad(tile_values(own, torch.zeros(1, dtype=torch.long))["logps"].sum(), hidden)
        assert gradient.item() == pytest.approx(-400 / 401, rel=2**-8)


class Largest(TorchDispatchMode):
    """The largest tensor that any operation makes, in numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        made = operation(*args, **(kwargs or {}))
        self.size = max([self.size, *(one.numel() for one in tree_leaves(made) if isinstance(one, torch.Tensor))])
        return made


@pytest.mark.parametrize("learns", [(), ("weight", "bias")], ids=["frozen", "learns"])
@pytest.mark.parametrize("statistics", [frozenset(), STATISTICS], ids=["logps", "all"])
def test_nothing_larger_than_a_tile_is_made(
    learns: tuple[str, ...], statistics: frozenset[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small_tiles(monkeypatch, 4096, 64)
    after = AfterHead(cap=3.0)
    own, target = given(320, 700, 4, after=after)
    reference, _ = given(320, 700, 4, after=after, seed=1)
    by = learn(own, *learns)
    with Largest() as largest:
        values = tile_values(own, target, statistics=statistics, reference=reference)
        gradients(values, by)
    assert largest.size == 4096
    with Largest() as largest:
        gradients(plain(own, target, reference), by)
    assert largest.size == 320 * 700


class Work(FlopCounterMode):
    """Multiplications and additions of matrix products, in-place ones too."""

    def __init__(self) -> None:
        def product(_: object, left: tuple, right: tuple, *, out_shape: object = None, **__: object) -> int:
            return 2 * left[0] * left[1] * right[1]

        super().__init__(display=False, custom_mapping={torch.ops.aten.addmm_: product})


def test_work_is_what_the_arithmetic_says(monkeypatch: pytest.MonkeyPatch) -> None:
    small_tiles(monkeypatch, 256, 8)
    product = 2 * 24 * 100 * 6
    kl = STATISTICS

    def work(learns: tuple[str, ...], statistics: frozenset[str] = frozenset()) -> float:
        own, target = given(24, 100, 6)
        reference, _ = given(24, 100, 6, seed=1)
        by = learn(own, *learns)
        with Work() as count:
            values = tile_values(own, target, statistics=statistics, reference=reference)
            if torch.is_grad_enabled():
                gradients(values, by)
        return count.get_total_flops() / product

    assert work(()) == work((), kl - {"kl"}) == 2
    assert work(("weight",)) == work(("weight", "bias")) == 4
    assert work(("bias",)) == 3
    assert work((), kl) == 5
    assert work(("weight",), kl) == 6
    with torch.no_grad():
        assert work(()) == work(("weight",)) == 1
        assert work((), kl) == 2


def test_only_what_learns_gets_a_gradient() -> None:
    own, target = given()
    tile_values(own, target)["logps"].sum().backward()
    assert own.hidden.grad is not None and own.head.weight.grad is None and own.head.bias.grad is None

    learn(own, "weight")
    hidden = Through(own.hidden.detach(), own.head)
    tile_values(hidden, target)["logps"].sum().backward()
    assert hidden.hidden.grad is None and own.head.weight.grad is not None and own.head.bias.grad is None

    with torch.no_grad():
        assert not tile_values(own, target)["logps"].requires_grad


@pytest.mark.parametrize("learns", [(), ("weight",)], ids=["frozen", "learns"])
def test_differentiating_twice_is_refused_and_going_back_twice_is_not(learns: tuple[str, ...]) -> None:
    own, target = given()
    by = learn(own, *learns)
    loss = tile_values(own, target)["logps"].square().sum()
    once = torch.autograd.grad(loss, by, retain_graph=True)
    torch.testing.assert_close(once, torch.autograd.grad(loss, by, retain_graph=True), rtol=0, atol=0)
    (first, *_) = torch.autograd.grad(loss, by, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_a_weight_that_changed_before_the_backward_pass_is_noticed() -> None:
    own, target = given()
    learn(own, "weight")
    loss = tile_values(own, target)["logps"].sum()
    own.head.weight.data.add_(1)
    own.head.weight.detach().add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("learns", [(), ("weight",)], ids=["frozen", "learns"])
def test_mixed_precision_is_in_the_products_alone(learns: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    small_tiles(monkeypatch, 2**10, 16)
    single, target = given(40, 100, 16, dtype=torch.float32)
    by = learn(single, *learns)
    mixed = Through(single.hidden, single.head._replace(dtype=torch.bfloat16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        whole = {"logps": logits_of(single).float().log_softmax(-1).gather(1, target[:, None])[:, 0]}
    found = tile_values(mixed, target)
    torch.testing.assert_close(found["logps"], whole["logps"], rtol=1e-5, atol=1e-5)
    for one, other in zip(gradients(found, by), gradients(whole, by), strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.02)
    # What is around the call does not change the products.
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = tile_values(single, target)
        gradient = gradients(again, by)
    expected = plain(single, target)
    torch.testing.assert_close(again["logps"], expected["logps"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, gradients({"logps": expected["logps"]}, by), rtol=1e-4, atol=1e-5)


def test_a_token_that_the_head_does_not_know_has_no_number() -> None:
    own, target = given()
    target[3] = 37
    with torch.no_grad():
        assert tile_values(own, target)["logps"].isnan().nonzero().tolist() == [[3]]


# ---- which heads go in tiles ---------------------------------------------------------------------------------------


def wrapped(model: nn.Module) -> nn.Module:
    return get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "lm_head"]))


def saved(model: nn.Module) -> nn.Module:
    return get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]))


def hooked(model: nn.Module) -> nn.Module:
    model.lm_head.register_forward_hook(lambda _, __, output: 2 * output)
    return model


def placed(model: nn.Module) -> nn.Module:
    add_hook_to_module(model.lm_head, AlignDevicesHook())
    return model


def parametrized(model: nn.Module) -> nn.Module:
    nn.utils.parametrizations.weight_norm(model.lm_head)
    return model


class Doubling(nn.Linear):
    """Another kind of layer, as quantized ones are."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(hidden)


def another(model: nn.Module) -> nn.Module:
    model.lm_head.__class__ = Doubling
    return model


def batch() -> PaddedRows:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 30, (3, 9), generator=generator)
    counts = torch.arange(9).expand(3, 9) >= torch.tensor([2, 4, 1])[:, None]
    return PaddedRows(input_ids=ids, attention_mask=torch.ones_like(ids), completion_mask=counts)


@pytest.mark.parametrize("change", [wrapped, saved, hooked, placed, parametrized, another], ids=lambda f: f.__name__)
def test_a_head_that_is_more_than_a_matrix_is_called_as_it_is(
    change: Callable[[nn.Module], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model, inputs = change(tiny.model(0, torch.float64)), batch()
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "modules_to_save" in name:
            parameter.data += 0.3 * torch.randn_like(parameter)
    monkeypatch.setattr(sys.modules["prefopt.scoring.score"], "CHUNK", 4 * 30)
    small_tiles(monkeypatch, 4 * 30, 2)
    rows = rows_of(model, inputs)
    assert rows.head is None
    assert rows.values is rows.hidden
    logits = model(**inputs.inputs).logits
    expected = logits.log_softmax(-1)[:, :-1].gather(2, inputs.input_ids[:, 1:, None])[..., 0]
    found = score(model, inputs)["logps"]
    torch.testing.assert_close(found, expected[inputs.completion_mask[:, 1:]], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "adapter"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "gradient checkpointing"])
def test_a_plain_head_goes_in_tiles(adapter: bool, checkpointing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, inputs = tiny.model(0, torch.float64), batch()
    if adapter:
        model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    used = [parameter for parameter in model.parameters() if parameter.requires_grad]
    plainly = score(model, inputs)["logps"]
    small_tiles(monkeypatch, 4 * 30, 2)
    rows = rows_of(model, inputs)
    assert rows.head.weight is model.get_output_embeddings().weight
    found = score(model, inputs)["logps"]
    torch.testing.assert_close(found, plainly, rtol=1e-11, atol=1e-11)
    weights = torch.linspace(-1, 1, len(found), dtype=torch.float64)
    one, other = (torch.autograd.grad(weights @ values, used) for values in (found, plainly))
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)


def test_the_precision_of_the_products_is_that_of_the_models_own_call(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = tiny.model(0), batch()
    forward = model.forward

    def mixed(*args: object, **options: object) -> CausalLMOutputWithPast:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return CausalLMOutputWithPast(logits=forward(*args, **options).logits.float())

    model.forward = mixed
    whole = score(model, inputs)["logps"]
    small_tiles(monkeypatch, 4 * 30, 2)
    assert rows_of(model, inputs).head.dtype == torch.bfloat16
    torch.testing.assert_close(score(model, inputs)["logps"], whole, rtol=0.01, atol=0.01)
    model.forward = forward
    assert rows_of(model, inputs).head.dtype == torch.float32


@pytest.mark.parametrize("size", [4 * 30, 10**6], ids=["tiles", "at once"])
def test_temperature_and_statistics_of_a_model(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, reference, inputs = tiny.model(0, torch.float64), tiny.model(1, torch.float64), batch()
    small_tiles(monkeypatch, size, 2)
    with torch.no_grad():
        own, other = (
            Through(rows.hidden, LinearHead(model.lm_head.weight, None, torch.float64, AfterHead()))
            for rows, model in ((rows_of(one, inputs), one) for one in (model, reference))
        )
        expected = plain(own, inputs.layout.target, other, 0.6)
    found = score(
        model,
        inputs,
        statistics=STATISTICS,
        reference=rows_of(reference, inputs),
        temperature=0.6,
    )
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-11, atol=1e-11, check_dtype=True)


def test_what_cannot_be_measured_is_said() -> None:
    model, inputs = tiny.model(0), batch()
    with pytest.raises(UsageError, match="'variance'"):
        score(model, inputs, statistics=frozenset({"variance"}))
    with pytest.raises(UsageError, match="'kl' needs"):
        score(model, inputs, statistics=frozenset({"kl"}))
