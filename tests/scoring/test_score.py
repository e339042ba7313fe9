"""Log-probabilities and statistics against a plain forward, with the head in one piece and in chunks."""

import dataclasses
import sys
from collections.abc import Callable

import pytest
import tiny
import torch
from parity import InFloat64
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    Cohere2Config,
    Cohere2ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaForCausalLM,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from prefopt.core.micro_batch import MicroBatch, PaddedRows
from prefopt.models import make_reference
from prefopt.models.load import ModelSettings
from prefopt.objectives import get_objective
from prefopt.scoring import rows_of, score, share_prompts, tiles
from prefopt.scoring.scorer import Scorer

# The package exports a function of the same name.
scoring = sys.modules["prefopt.scoring.score"]
BOTH = frozenset({"kl", "log_sum_p2"})
SIZES = {
    "vocab_size": 41,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    # Softcaps and scales must matter.
    "initializer_range": 0.9,
}
FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "llama": lambda: tiny.model(0),
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(**SIZES, final_logit_softcapping=3.0, attn_implementation="eager")
    ),
    "cohere2": lambda: Cohere2ForCausalLM(Cohere2Config(**SIZES, logit_scale=0.25)),
    "granite": lambda: GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=5.0)),
}


def make(family: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = FAMILIES[family]().double().eval()
    if seed:
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def batch(seed: int = 0) -> dict[str, torch.Tensor]:
    """Four rows of 6 to 12 tokens, padded on the right, the second with a hole in what counts."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 30, (4, 12), generator=generator)
    lengths, starts = torch.tensor([12, 9, 6, 11]), torch.tensor([4, 2, 5, 3])
    place = torch.arange(12)
    attention = place < lengths[:, None]
    counts = attention & (place >= starts[:, None])
    counts[1, 5] = False
    return PaddedRows(input_ids=ids * attention, attention_mask=attention.long(), completion_mask=counts)


def plain(model: nn.Module, reference: nn.Module, rows: PaddedRows) -> dict[str, torch.Tensor]:
    """The definitions, from all logits of both models."""
    inputs = rows.inputs
    logps = model(**inputs).logits.log_softmax(-1)[:, :-1][rows.completion_mask[:, 1:]]
    with torch.no_grad():
        ref = reference(**inputs).logits.log_softmax(-1)[:, :-1][rows.completion_mask[:, 1:]]
    target = rows.input_ids[:, 1:][rows.completion_mask[:, 1:]]
    return {
        "logps": logps.gather(1, target[:, None])[:, 0],
        "kl": (ref.exp() * (ref - logps)).sum(1),
        "log_sum_p2": (2 * logps).logsumexp(1).detach(),
    }


def gradients(model: nn.Module, values: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    weights = torch.linspace(0.5, 1.5, len(values["logps"]), dtype=torch.float64)
    loss = (weights * values["logps"]).sum() + (weights.flip(0) * values["kl"]).sum()
    used = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found = torch.autograd.grad(loss, used, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(used, found, strict=True)]


def in_chunks(monkeypatch: pytest.MonkeyPatch, model: nn.Module, rows: int) -> None:
    monkeypatch.setattr(scoring, "CHUNK", rows * model.config.vocab_size)
    monkeypatch.setattr(tiles, "TILE", rows * model.config.vocab_size)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rows", [1, 7, 10**6], ids=["row by row", "chunks of 7", "at once"])
def test_values_and_gradients_are_those_of_a_plain_forward(
    family: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, reference, inputs = make(family), make(family, 1), batch()
    in_chunks(monkeypatch, model, rows)
    with InFloat64(), torch.no_grad():
        kept = rows_of(reference, inputs)
    assert (kept.values.shape[1] == model.config.hidden_size) == (rows < 10**6)
    with InFloat64():
        found = score(model, inputs, statistics=BOTH, reference=kept)
        expected = plain(model, reference, inputs)
    assert found.keys() == expected.keys()
    assert expected["kl"].min() > 1e-3
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-12)
    assert not found["log_sum_p2"].requires_grad
    for one, other in zip(gradients(model, found), gradients(model, expected), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


class Counter:
    """Counts the rows that a head sees, call by call."""

    def __init__(self, head: nn.Module) -> None:
        self.calls: list[int] = []
        head.register_forward_hook(lambda _, args, out: self.calls.append(out.shape[:-1].numel()))


def test_only_completion_rows_reach_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = make("llama"), batch()
    share_prompts(model, on=False)
    seen = Counter(model.lm_head)
    count = len(inputs.layout.target)
    assert count == int(inputs.completion_mask.sum()) == 23
    score(model, inputs)
    assert seen.calls == [count]

    seen.calls.clear()
    in_chunks(monkeypatch, model, 7)
    values = score(model, inputs)["logps"]
    # One row goes through the model's own forward, to see what it does after its head.
    assert seen.calls == [1, 7, 7, 7, 2]
    values.sum().backward()
    assert seen.calls == [1, 7, 7, 7, 2, 2, 7, 7, 7]
    seen.calls.clear()
    with torch.no_grad():
        score(model, inputs)
    assert seen.calls == [1, 7, 7, 7, 2]


def test_no_graph_holds_logits_between_the_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What autograd keeps for the backward pass: hidden rows, never [rows, vocabulary]."""
    model, reference, inputs = make("llama"), make("llama", 1), batch()
    vocabulary = model.config.vocab_size
    sizes: list[tuple] = []

    def kept(rows: int) -> int:
        in_chunks(monkeypatch, model, rows)
        sizes.clear()
        with torch.no_grad():
            given = rows_of(reference, inputs)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(tuple(t.shape)) or t, lambda t: t):
            score(model, inputs, statistics=BOTH, reference=given)
        # The head's own weight is kept too, and takes no memory.
        weight = (model.config.hidden_size, vocabulary)
        return sum(shape[-1] == vocabulary and shape != weight and shape[:-1] not in ((), (1,)) for shape in sizes)

    assert kept(10**6) > 0
    assert kept(7) == 0


class Unhooked(LlamaForCausalLM):
    """Multiplies by the head's weight instead of calling the head."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: object) -> CausalLMOutputWithPast:
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return CausalLMOutputWithPast(logits=nn.functional.linear(hidden, self.lm_head.weight))


class Unheard(LlamaForCausalLM):
    """Does something of its own after its head."""

    def forward(self, *args: object, **options: object) -> CausalLMOutputWithPast:
        output = super().forward(*args, **options)
        return CausalLMOutputWithPast(logits=output.logits**3 / 9)


class Headless(LlamaForCausalLM):
    """Does not say which module its head is."""

    def get_output_embeddings(self) -> None:
        return None


@pytest.mark.parametrize("kind", [Unhooked, Unheard, Headless])
@pytest.mark.parametrize("rows", [7, 10**6])
def test_what_cannot_be_known_of_a_head_is_left_to_the_model(
    kind: type, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, reference = (kind(tiny.model(seed).config).double() for seed in (0, 0))
    for one, seed in ((model, 0), (reference, 1)):
        one.load_state_dict(tiny.model(seed, torch.float64).state_dict())
    inputs = batch()
    in_chunks(monkeypatch, model, rows)
    for _ in range(2):
        found = score(model, inputs, statistics=BOTH, reference=rows_of(reference, inputs))
        for name, value in plain(model, reference, inputs).items():
            torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-12)


class Wrapper(nn.Module):
    """Holds a model as data parallelism does."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.calls = 0

    def forward(self, *args: object, **options: object) -> object:
        self.calls += 1
        return self.module(*args, **options)


@pytest.mark.parametrize("rows", [7, 10**6])
def test_wrappers_are_called_and_not_gone_round(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = make("gemma2"), batch()
    wrapped = Wrapper(model)
    in_chunks(monkeypatch, model, rows)
    # The first time, rows that share prompts are compared with rows by themselves.
    score(wrapped, inputs)
    wrapped.calls = 0
    found = score(wrapped, inputs)["logps"]
    assert wrapped.calls == 1
    torch.testing.assert_close(found, plain(model, model, inputs)["logps"], rtol=1e-12, atol=1e-12)
    assert not model.lm_head._forward_pre_hooks
    assert not model.lm_head._forward_hooks


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_mixed_precision_reaches_the_chunks(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Around ``forward`` alone, as accelerate puts it there; its outputs become float32."""
    model, inputs = make(family).float(), batch()
    forward = model.forward

    def mixed(*args: object, **options: object) -> object:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = forward(*args, **options)
        return CausalLMOutputWithPast(logits=output.logits.float())

    model.forward = mixed
    whole = score(model, inputs)["logps"]
    seen: list[torch.dtype] = []
    model.lm_head.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    in_chunks(monkeypatch, model, 7)
    chunks = score(model, inputs)["logps"]
    chunks.sum().backward()
    assert set(seen) == {torch.bfloat16}
    assert len(seen) == 9
    torch.testing.assert_close(chunks, whole, rtol=0.02, atol=0.02)


def test_a_batch_without_completion_tokens_has_no_values() -> None:
    inputs = batch()
    inputs = dataclasses.replace(inputs, completion_mask=torch.zeros_like(inputs.completion_mask))
    assert score(make("llama"), inputs)["logps"].shape == (0,)


@pytest.mark.parametrize("targets", [["q_proj"], ["q_proj", "lm_head"]], ids=["body", "head too"])
@pytest.mark.parametrize("arrived", [False, True], ids=["adapter off", "copy of an adapter"])
def test_tdpo_with_adapters_has_the_reference_of_its_own_head(
    targets: list[str], arrived: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adapter on the head must not leak into the reference, whose chunks are made while it is active."""
    torch.manual_seed(0)
    policy = get_peft_model(make("llama"), LoraConfig(r=4, target_modules=targets, init_lora_weights=not arrived))
    reference = make_reference(policy, None, arrived_with_adapter=arrived, settings=ModelSettings(adapter="lora"))
    inputs = batch()
    with reference.activated(policy) as model, torch.no_grad():
        before = model(**inputs.inputs).logits
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn_like(parameter)
            assert "lora_" in name
    expected = plain(policy, lambda **_: CausalLMOutputWithPast(logits=before), inputs)
    in_chunks(monkeypatch, policy, 7)
    scorer = Scorer(get_objective("tdpo1"), reference)
    known = scorer.score_reference(policy, MicroBatch(rows=inputs, labels={"ids": torch.arange(len(inputs))}))
    found = scorer.completions(policy, inputs, known.ref_logps).tokens
    assert expected["kl"].min() > 1e-3
    torch.testing.assert_close(found.kl[found.mask], expected["kl"], rtol=1e-12, atol=1e-12)
    one = torch.autograd.grad(found.kl.sum(), [p for p in policy.parameters() if p.requires_grad])
    other = torch.autograd.grad(expected["kl"].sum(), [p for p in policy.parameters() if p.requires_grad])
    assert len(inputs.layout.target) == int(found.mask.sum())
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
