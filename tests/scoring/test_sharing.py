"""Prompts that completions share: every architecture against rows by themselves, and what is done where they differ."""

from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from parity import ARCHITECTURES, parity
from torch import nn
from torch._subclasses import FakeTensorMode
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from prefopt.core.micro_batch import PaddedRows
from prefopt.scoring import attention, score, share_prompts, sharing, why_not_shared
from prefopt.scoring.flat import Flat, Span

PADDED = {"gpt-neo", "bloom", "falcon", "stablelm", "jamba", "falcon-h1", "lfm2", "bamba"}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_log_probs_and_gradients_are_those_of_rows_by_themselves(name: str) -> None:
    found = parity(name)
    assert found.holds, found
    assert bool(found.why_padded) == (name in PADDED)


def batch(lengths: dict[int, tuple[int, ...]], seed: int = 0) -> PaddedRows:
    """Prompts of these lengths, each with completions of these lengths, one after the other."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for prompt, completions in lengths.items():
        shared = torch.randint(3, 30, (prompt,), generator=generator)
        rows += [
            (prompt, torch.cat([shared, torch.randint(3, 30, (length,), generator=generator)]))
            for length in completions
        ]
    width = max(len(ids) for _, ids in rows)
    ids = torch.stack([torch.nn.functional.pad(row, (0, width - len(row))) for _, row in rows])
    attention_mask = torch.stack([torch.arange(width) < len(row) for _, row in rows])
    counts = torch.stack([(torch.arange(width) >= prompt) for prompt, _ in rows]) & attention_mask
    return PaddedRows(input_ids=ids, attention_mask=attention_mask.long(), completion_mask=counts)


def test_a_prompt_stands_once_and_a_last_token_is_left_out() -> None:
    rows = batch({5: (3, 2), 4: (1,)})
    flat = Flat.of(rows)
    first, second, third = rows.input_ids
    expected = [*first[:7].tolist(), second[5].item(), *third[:4].tolist()]
    assert flat.input_ids[0].tolist() == expected
    assert flat.position_ids[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 5, 0, 1, 2, 3]
    # The first token of both completions is predicted at the last prompt position.
    assert flat.predictor.tolist() == [4, 5, 6, 4, 7, 11]
    assert flat.spans == [Span((0, 7), (0, 0)), Span((7, 1), (0, 5)), Span((8, 4), (0, 0))]


def test_rows_that_share_a_prompt_need_not_stand_together() -> None:
    rows = batch({6: (3, 5), 4: (2, 4)})
    order = torch.tensor([2, 0, 3, 1])
    mixed = rows.map(lambda values: values[order])
    flat = Flat.of(mixed)
    assert flat.input_ids.shape[1] == Flat.of(rows).input_ids.shape[1] == 6 + 2 + 4 + 4 + 1 + 3
    model = tiny.model(0, torch.float64)
    one, other = score(model, rows)["logps"], score(model, mixed)["logps"]
    torch.testing.assert_close(torch.cat([one.split([3, 5, 2, 4])[i] for i in order]), other)


def test_rows_without_a_token_that_counts_are_left_out() -> None:
    rows = batch({6: (3, 5), 4: (2,)})
    rows.completion_mask[1] = False
    flat = Flat.of(rows)
    assert flat.input_ids.shape[1] == 6 + 2 + 4 + 1


@pytest.mark.parametrize("floor", [0, 2**16], ids=["a call for each", "together"])
def test_buckets_do_not_change_what_is_seen(floor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefopt.scoring.flat.FLOOR", floor)
    rows = batch({7: (3, 9, 2, 4), 5: (1,), 12: (6, 6, 2)})
    flat = Flat.of(rows)
    assert (len(flat.buckets) > 4) == (floor == 0)
    model = tiny.model(0, torch.float64)
    found = score(model, rows)["logps"]
    share_prompts(model, on=False)
    torch.testing.assert_close(found, score(model, rows)["logps"])


def calls_of(model: nn.Module) -> list[int]:
    """How many positions each forward pass has."""
    seen: list[int] = []
    model.model.embed_tokens.register_forward_hook(lambda _, args, out: seen.append(out.shape[0] * out.shape[1]))
    return seen


def test_the_first_batch_and_longer_rows_are_compared() -> None:
    model = tiny.model(0)
    seen = calls_of(model)
    short, long = batch({6: (3, 5)}), batch({20: (3, 5)})
    score(model, short)
    # Together; the two rows by themselves; together again, with a gradient.
    assert [seen[0], sorted(seen[1:3]), seen[3]] == [12, [9, 11], 12]
    seen.clear()
    score(model, short)
    assert seen == [12]
    seen.clear()
    score(model, long)
    assert [seen[0], sorted(seen[1:3]), seen[3]] == [26, [23, 25], 26]


class Wrapper(nn.Module):
    """A wrapper for data parallelism: every forward pass through it waits for the other processes."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.passes = 0

    def forward(self, **inputs: Any) -> Any:
        self.passes += 1
        return self.module(**inputs)


def test_comparisons_leave_out_the_wrapper_of_data_parallelism() -> None:
    # The rows of this process may be longer than those of another one, which then compares nothing.
    model = Wrapper(tiny.model())
    inside = calls_of(model.module)
    score(model, batch({6: (3, 2)}))
    assert (model.passes, len(inside) > 1) == (1, True)
    score(model, batch({20: (6, 5)}))
    assert model.passes == 2


def test_a_model_that_differs_is_scored_row_by_row_from_then_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    whole = sharing.flat_arguments

    def wrong(flat: Flat) -> dict:
        return whole(replace(flat, position_ids=torch.arange(flat.input_ids.shape[1])[None]))

    monkeypatch.setattr(sharing, "flat_arguments", wrong)
    model, rows = tiny.model(0), batch({9: (8, 7, 9)})
    for weight in model.parameters():
        weight.data += 0.3 * torch.randn_like(weight)
    found = score(model, rows)["logps"]
    assert "log-probs would differ" in why_not_shared(model)
    said = capsys.readouterr().err
    assert said.count("prompts are not shared between completions of this llama model") == 1
    score(model, rows)
    assert "not shared" not in capsys.readouterr().err
    share_prompts(model, on=False)
    torch.testing.assert_close(found, score(model, rows)["logps"])


def test_what_cannot_be_shared_stays_padded() -> None:
    model, rows = tiny.model(0), batch({20: (9,), 21: (8,)})
    score(model, rows)
    seen = calls_of(model)
    score(model, rows)
    assert seen == [58]


class Closed(LlamaForCausalLM):
    """Takes what it knows, as code that comes with a model may."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, use_cache: bool = False) -> object:
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)


def test_a_model_that_takes_no_further_arguments_stays_padded() -> None:
    plain, rows = tiny.model(0), batch({9: (8, 7, 9)})
    model = Closed(plain.config)
    model.load_state_dict(plain.state_dict())
    expected = score(plain, rows)["logps"]
    torch.testing.assert_close(score(model, rows)["logps"], expected)
    assert why_not_shared(model) == "its forward pass takes no such arguments"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_half_precision_is_compared_with_its_own_noise(dtype: torch.dtype) -> None:
    model, rows = tiny.model(0, dtype), batch({9: (8, 7, 9)})
    for weight in model.parameters():
        weight.data += 0.1 * torch.randn_like(weight)
    score(model, rows)
    assert not why_not_shared(model)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_model_behaves_as_before_elsewhere(implementation: str, tmp_path: object) -> None:
    model = tiny.model(0)
    model.set_attn_implementation(implementation)
    rows = batch({6: (3, 5)})
    inputs = rows.inputs
    before, config = model(**inputs).logits, model.config.to_dict()
    made = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    score(model, rows)
    assert model.config._attn_implementation == attention.PREFIX + implementation
    assert torch.equal(model(**inputs).logits, before)
    assert torch.equal(model.generate(**inputs, max_new_tokens=5, do_sample=False), made)
    assert model.config.to_dict() == config
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert not again.config._attn_implementation.startswith(attention.PREFIX)


def test_checkpointed_layers_see_the_same_in_the_backward_pass() -> None:
    rows, gradients = batch({9: (8, 7, 9), 4: (3, 6)}), []
    for checkpointing in (False, True):
        model = tiny.model(0, torch.float64).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        score(model, rows)["logps"].square().sum().backward()
        assert not why_not_shared(model)
        gradients.append([weight.grad for weight in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def ragged_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_ends: torch.Tensor,
    key_ends: torch.Tensor,
    longest_query: int,
    longest_key: int,
    *,
    scale: float | None,
    window_size: tuple[int, int],
    enable_gqa: bool = False,
) -> torch.Tensor:
    """What torch documents of ``varlen_attn``, one sequence at a time: the last query stands at the last key."""
    assert longest_query == query_ends.diff().max()
    assert longest_key == key_ends.diff().max()
    outputs = []
    for i in range(len(query_ends) - 1):
        q = query[query_ends[i] : query_ends[i + 1]].transpose(0, 1)
        k, v = (states[key_ends[i] : key_ends[i + 1]].transpose(0, 1) for states in (key, value))
        ahead = torch.arange(k.shape[1]) - torch.arange(q.shape[1])[:, None] - (k.shape[1] - q.shape[1])
        seen = (ahead <= window_size[1]) & ((window_size[0] == -1) | (ahead >= -window_size[0]))
        options = {"attn_mask": seen, "scale": scale, "enable_gqa": enable_gqa}
        outputs.append(nn.functional.scaled_dot_product_attention(q[None], k[None], v[None], **options)[0])
    return torch.cat([out.transpose(0, 1) for out in outputs])


@pytest.mark.parametrize("grouped", [True, False], ids=["grouped heads", "older torch"])
@pytest.mark.parametrize("name", ["llama", "mistral, window", "gpt2"])
def test_a_kernel_for_ragged_sequences_is_given_the_same(
    name: str, grouped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path of CUDA in half precision, with the kernel written out."""
    monkeypatch.setattr(attention, "_GROUPED", grouped)
    monkeypatch.setattr(attention, "_has_kernel", lambda *_: True)
    monkeypatch.setattr(attention, "varlen_attn", ragged_attention)
    found = parity(name)
    assert found.holds, found


@pytest.mark.parametrize(
    ("taken", "changed"),
    [
        (True, {}),
        (True, {"dtype": torch.float16, "size": 256, "card": (9, 0)}),
        (False, {"device": "cpu"}),
        (False, {"card": (7, 5)}),
        (False, {"dtype": torch.float32}),
        (False, {"size": 264}),
        (False, {"size": 60}),
        (False, {"of_values": 128}),
    ],
    ids=["usual", "at its bounds", "no card", "old card", "float32", "wide heads", "odd heads", "wider values"],
)
def test_the_kernel_is_asked_for_what_it_can_do(
    taken: bool, changed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"device": "cuda", "card": (8, 0), "dtype": torch.bfloat16, "size": 64} | changed
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: given["card"])
    with FakeTensorMode():  # states of a card that this machine need not have
        made = {"dtype": given["dtype"], "device": given["device"]}
        query = torch.empty(1, 4, 10, given["size"], **made)
        value = torch.empty(1, 2, 10, given.get("of_values", given["size"]), **made)
    assert attention._has_kernel(query, value) == taken


@pytest.mark.parametrize("lengths", [{12: (6, 6, 6)}, {12: (6, 2, 9), 4: (3,)}], ids=["of one length", "of many"])
def test_noise_of_half_precision_is_that_of_the_same_tokens(
    lengths: dict[int, tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A padded row of its own would hide everything: its noise is what the flat sequence is allowed."""
    measured: list[float] = []
    rms = sharing._rms
    monkeypatch.setattr(sharing, "_rms", lambda gaps: measured.append(rms(gaps)) or measured[-1])
    rows, model = batch(lengths), tiny.model(0, torch.bfloat16)
    seen: list[int] = []
    model.register_forward_pre_hook(lambda _, __, given: seen.append(given["input_ids"].shape[1]), with_kwargs=True)
    score(model, rows)
    assert not why_not_shared(model) and len(measured) == 2 and max(measured) < 0.1
    assert rows.input_ids.shape[1] + 1 in seen, "rows of one length would be without padding"
