"""Out of memory in the middle of a run: micro-batches are halved, and everything comes out as without."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
import tiny
import torch
from helpers import trainer
from torch import nn

import prefopt
from prefopt.core.errors import OutOfMemory
from prefopt.data import collate, prepare_dataset
from prefopt.training import splitting


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(splitting, "say", said.append)
    return said


def tight(tokens: int, *, when: str = "forward") -> nn.Module:
    """A model that runs out of memory with more tokens than that at once: on the way up, or half way down."""
    model = tiny.model(dtype=torch.float64)

    def fail(many: bool) -> None:
        if many and torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory.")

    def look(_: nn.Module, args: tuple, output: torch.Tensor) -> None:
        many = args[0].numel() > tokens
        if when == "forward":
            fail(many and torch.is_grad_enabled())
        elif output.requires_grad:
            output.register_hook(lambda gradient: _raise() if many else None)

    # In the backward pass, when all layers but the embeddings have their gradients.
    model.model.embed_tokens.register_forward_hook(look)
    return model


def _raise() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory.")


def run(name: str, model: nn.Module, rows: Any, **options: Any) -> prefopt.Trainer:
    args = {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "max_steps": 3,
        "learning_rate": 1e-2,
        "optim": "sgd",
    }
    reference = tiny.model(1, torch.float64) if prefopt.get_algorithm(name).needs_reference else None
    made = trainer(name, rows, model=model, reference=reference, args=args, share_prompts=False, **options)
    made.train()
    return made


ROWS: dict[str, Callable[[int], list[dict]]] = {"dpo": tiny.pairs, "kto": tiny.labelled, "rrhf": tiny.ranked}
# So many tokens fit: one example of a kind, not four of them.
FITS = {"dpo": 60, "kto": 60, "rrhf": 100}


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("when", ["forward", "backward"])
def test_a_run_that_runs_out_of_memory_ends_with_the_same_weights(name: str, when: str, lines: list[str]) -> None:
    whole = run(name, tiny.model(dtype=torch.float64), ROWS[name](12))
    parts = run(name, tight(FITS[name], when=when), ROWS[name](12))
    for one, other in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-12)
    # 4, then 2 at once; each halving is told once.
    assert lines
    assert len(lines) == len(set(lines)) <= 2
    assert "out of memory with 4 examples at once; from here on 2 at once" in lines[0]
    for key, value in whole.state.log_history[0].items():
        assert parts.state.log_history[0][key] == pytest.approx(value, rel=1e-9, abs=1e-9), key


def test_gradients_of_earlier_micro_batches_are_kept(lines: list[str]) -> None:
    """Without setting aside what a broken backward pass had added, they would count twice."""
    weight = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    other = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    batch = collate(prepare_dataset(tiny.pairs(4), "pairs", tiny.tokenizer()).examples)
    values = torch.arange(4.0, dtype=torch.float64) + 1

    def work(some: Any, start: int, end: int) -> None:
        # The first weight has its gradient when memory runs out.
        (weight * values[start:end].sum()).sum().backward()
        if end - start > 1:
            _raise()
        (other * values[start:end].sum()).sum().backward()

    for _ in range(2):
        splitting.MicroBatchSplitter("test").each(batch, work, [weight, other])
    assert weight.grad.tolist() == other.grad.tolist() == [20.0] * 3
    assert len(lines) == 4


def test_what_cannot_be_divided_is_refused_with_remedies(lines: list[str]) -> None:
    with pytest.raises(OutOfMemory, match=r"1 example of up to .* tokens.*prefopt plan") as caught:
        run("dpo", tight(5), tiny.pairs(8))
    assert "\n" not in str(caught.value)
    with pytest.raises(OutOfMemory, match=r"cannot be divided because aot_paired compares its examples"):
        trainer("aot_paired", tiny.pairs(8), model=tight(5), reference=tiny.model(1), share_prompts=False).train()


def test_other_errors_are_left_alone(lines: list[str]) -> None:
    batch = collate(prepare_dataset(tiny.pairs(4), "pairs", tiny.tokenizer()).examples)

    def work(*_: Any) -> None:
        raise RuntimeError("sizes do not match")

    with pytest.raises(RuntimeError, match="sizes do not match"):
        splitting.MicroBatchSplitter("test").each(batch, work)
    said = RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried")
    assert splitting.ran_out_of_memory(said)
    assert splitting.ran_out_of_memory(torch.AcceleratorError("CUDA error: out of memory"))
    assert not lines


@contextmanager
def scoring_fails_above(model: nn.Module, rows: int) -> Iterator[None]:
    def look(_: nn.Module, args: tuple, __: torch.Tensor) -> None:
        if len(args[0]) > rows and not torch.is_grad_enabled():
            _raise()

    handle = model.model.embed_tokens.register_forward_hook(look)
    yield
    handle.remove()


@pytest.mark.parametrize("name", ["dpo", "kto", "rrhf"])
def test_evaluation_and_reference_are_scored_in_portions_too(name: str, lines: list[str]) -> None:
    model = tiny.model(dtype=torch.float64)
    options = {"share_prompts": False, "args": {"per_device_eval_batch_size": 6}}
    if prefopt.get_algorithm(name).needs_reference:
        options["reference"] = tiny.model(1, torch.float64)
    made = trainer(name, None, model=model, eval_dataset=ROWS[name](6), **options)
    whole = made.evaluate()
    with scoring_fails_above(options.get("reference", model), 4), scoring_fails_above(model, 4):
        parts = made.evaluate()
    assert any(re.search("scoring: out of memory with 6 examples", line) for line in lines)
    for key in (key for key in whole if "runtime" not in key and "second" not in key):
        assert parts[key] == pytest.approx(whole[key], rel=1e-9, abs=1e-12), key


@pytest.mark.parametrize("kind", ["pairs", "labelled", "ranked"])
def test_a_part_is_what_its_examples_make_by_themselves(kind: str) -> None:
    make = {"pairs": tiny.pairs, "labelled": tiny.labelled, "ranked": tiny.ranked}[kind]
    dataset = prepare_dataset(make(7), kind, tiny.tokenizer(), mismatched=kind == "labelled", seed=0)
    count = sum(int(each.mask(k).sum()) for each in dataset.examples for k in range(len(each.completions)))
    numbers = iter(range(count + 1))
    logps = [
        torch.tensor([float(next(numbers)) for k in range(len(each.completions)) for _ in range(each.mask(k).sum())])
        for each in dataset.examples
    ]
    partners = [dataset[i].mismatched for i in range(7)]
    other = [torch.full((int(one[1].sum()),), float(i)).numpy() for i, one in enumerate(partners) if one]
    known = dataset.with_reference([one.numpy() for one in logps], other or None)
    examples = [known[i] for i in range(7)]
    whole = known.collate(examples)
    assert whole.num_examples == 7
    parts = []
    for start, end in ((0, 3), (3, 4), (4, 7)):
        some = whole.part(start, end)
        expected = known.collate(examples[start:end])
        same(some, expected)
        assert torch.equal(whole.ref_logps[whole.tokens_of(start, end)], expected.ref_logps)
        parts.append((start, end, some))
    bare = dataset.collate([dataset[i] for i in range(7)])
    assert bare.ref_logps is None
    same(bare.with_reference_of(parts), whole)


def same(one: Any, other: Any) -> None:
    if is_dataclass(one):
        one, other = ({each.name: getattr(some, each.name) for each in fields(some)} for some in (one, other))
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            same(one[key], other[key])
    else:
        assert (one is other is None) or torch.equal(one, other)
