"""Tiny models of many architectures: do their log-probs and gradients stay the same when completions share a prompt, or
go through the model in several passes?

The weights are drawn wide, with standard deviation 0.3. At the usual 0.02 a wrong mask moves log-probs by 2e-4 only,
and could hide.
"""

import argparse
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from prefopt.core.micro_batch import PaddedRows
from prefopt.scoring.flat import Flat, Span, buckets_of
from prefopt.scoring.passes import Pass, in_order, parts_of, pass_of
from prefopt.scoring.sharing import arranged, flat_arguments, why_not_shared

STD = 0.3
SEEN = 1e-3
"""Nats by which a wrong mask or a wrong position must show at least."""

_SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_WINDOW = {"sliding_window": 6}
_MIXED = {**_WINDOW, "layer_types": ["sliding_attention", "full_attention"], "head_dim": 8}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 8}),
    "mistral": ("mistral", {"sliding_window": None, "head_dim": 8}),
    "mistral, window": ("mistral", {**_WINDOW, "head_dim": 8}),
    "gemma": ("gemma", {"head_dim": 8}),
    "gemma 2": ("gemma2", {**_WINDOW, "head_dim": 8}),
    "gemma 3": ("gemma3_text", _MIXED),
    "phi": ("phi", {}),
    "phi 3": ("phi3", _WINDOW),
    "gpt2": ("gpt2", {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 128}),
    "gpt-neox": ("gpt_neox", {}),
    "gpt-neo": ("gpt_neo", {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "num_heads": 4}),
    "opt": ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "bloom": ("bloom", {"n_head": 4, "n_layer": 2}),
    "falcon": ("falcon", {}),
    "olmo 2": ("olmo2", {}),
    "cohere 2": ("cohere2", _MIXED),
    "granite": ("granite", {"logits_scaling": 2.0}),
    "starcoder2": ("starcoder2", _WINDOW),
    "stablelm": ("stablelm", {}),
    "smollm3": ("smollm3", {}),
    "glm4": ("glm4", {"head_dim": 8}),
    "exaone4": ("exaone4", _WINDOW),
    "mixtral": ("mixtral", {"num_local_experts": 4, "head_dim": 8}),
    "qwen3-moe": ("qwen3_moe", _EXPERTS),
    "gpt-oss": ("gpt_oss", {**_WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}),
    "deepseek v3": (
        "deepseek_v3",
        {
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "first_k_dense_replace": 1,
            "n_group": 1,
            "topk_group": 1,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "num_key_value_heads": 4,
        },
    ),
    "jamba": ("jamba", {"mamba_d_state": 8, "num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1}),
    "falcon-h1": ("falcon_h1", {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8}),
    "lfm2": ("lfm2", {"layer_types": ["conv", "full_attention"]}),
    "bamba": ("bamba", {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "attn_layer_indices": [1]}),
}
"""By name: transformers' model type and what its config has besides `_SIZES`."""

TOLERANCE = 1e-9


@dataclass(frozen=True)
class Parity:
    """One architecture, in float64, against forward passes of one row each.

    Attributes:
        name: of the architecture.
        why_padded: why its completions do not share their prompt; empty where they do.
        logps: the largest difference of a log-prob, in nats, over the layouts that it is allowed.
        gradient: the largest difference of a gradient, over the largest entry of its tensor.
        controls: the smallest effect of what would be wrong, in nats: passes that are not put back in order and, where
            prompts are shared, a wrong mask and wrong positions.
    """

    name: str
    why_padded: str
    logps: float
    gradient: float
    controls: float

    @property
    def holds(self) -> bool:
        """Whether nothing changed, and whether it would have shown."""
        return max(self.logps, self.gradient) <= TOLERANCE and self.controls > SEEN


def parity(name: str) -> Parity:
    """Compare all layouts that an architecture is allowed with single rows.

    Args:
        name: one of `ARCHITECTURES`.
    """
    model, batch = tiny_model(name), _batch()
    layout = batch.layout
    with InFloat64():
        every = torch.arange(len(layout.target))
        padded = [Pass(batch.inputs, layout.predictor, every)]
        several = _in_passes(batch)
        shared = arranged(model, batch, _of_pass)
        flat = Flat.of(batch)
        wrong = [[one._replace(tokens=torch.arange(len(one.tokens))) for one in several]]
        if not why_not_shared(model):
            wrong += [[Pass(flat_arguments(one), one.predictor, every)] for one in (_leaking(flat), _shifted(flat))]
        logps, gradients = _measured(model, lambda: _alone(model, batch))
        layouts = padded, several, shared
        found = [_measured(model, lambda one=one: _logps(model, one, layout.target)) for one in layouts]
        with torch.no_grad():
            effects = [(_logps(model, one, layout.target) - logps).abs().max().item() for one in wrong]
    return Parity(
        name=name,
        why_padded=why_not_shared(model),
        logps=max((own - logps).abs().max().item() for own, _ in found),
        gradient=max(_relative(own, gradients) for _, own in found),
        controls=min(effects),
    )


class InFloat64(TorchFunctionMode):
    """Code that asks for float32 gets float64: norms and softmaxes of models that are in float64 already."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is Tensor.float:
            func = Tensor.double
        args = tuple(torch.float64 if one is torch.float32 else one for one in args)
        return func(*args, **{k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()})


def tiny_model(name: str) -> nn.Module:
    """A model of this architecture in float64, with wide random weights."""
    kind, options = ARCHITECTURES[name]
    config = CONFIG_MAPPING[kind](**{**_SIZES, **options})
    # Grouped products of experts do not exist in float64.
    model = AutoModelForCausalLM.from_config(config, experts_implementation="eager").double().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight_name, weight in model.named_parameters():
            scale = weight.ndim == 1 and "norm" in weight_name and weight_name.endswith("weight")
            weight.copy_(STD * torch.randn(weight.shape, generator=generator, dtype=weight.dtype) + float(scale))
    return model


def _batch() -> PaddedRows:
    """Prompts with one to three completions, of several lengths down to one token, in no order."""
    generator = torch.Generator().manual_seed(3)

    def tokens(count: int) -> Tensor:
        return torch.randint(3, _SIZES["vocab_size"], (count,), generator=generator)

    rows = []
    for prompt, completions in ((20, (7, 1, 12)), (5, (9,)), (13, (3, 3)), (1, (4, 2))):
        shared = tokens(prompt)
        rows += [(prompt, torch.cat([shared, tokens(length)])) for length in completions]
    rows = [rows[i] for i in torch.randperm(len(rows), generator=generator).tolist()]
    shape = len(rows), max(len(ids) for _, ids in rows)
    input_ids, attention_mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    completion_mask = torch.zeros(shape, dtype=torch.bool)
    for row, (prompt, ids) in enumerate(rows):
        input_ids[row, : len(ids)] = ids
        attention_mask[row, : len(ids)] = 1
        completion_mask[row, prompt : len(ids)] = True
    return PaddedRows(input_ids=input_ids, attention_mask=attention_mask, completion_mask=completion_mask)


def _in_passes(batch: PaddedRows) -> list[Pass]:
    """As many passes as there are lengths, whatever they cost."""
    parts = parts_of(batch, torch.arange(len(batch)), call=0)
    return [pass_of(part, batch) for part in parts]


def _logps(model: nn.Module, passes: list[Pass], target: Tensor) -> Float[Tensor, " k"]:
    values = [_of_pass(model, one, target[one.tokens]) for one in passes]
    return in_order(values, [one.tokens for one in passes])


def _of_pass(model: nn.Module, one: Pass, target: Tensor) -> Float[Tensor, " k"]:
    logits = model(**one.inputs, use_cache=False).logits.flatten(0, 1)[one.index]
    return logits.log_softmax(dim=-1).gather(-1, target[:, None]).squeeze(-1)


def _alone(model: nn.Module, batch: PaddedRows) -> Float[Tensor, " k"]:
    """Every row by itself: no padding, no mask but the causal one."""
    layout, passes = batch.layout, []
    for row in range(len(batch)):
        own = (layout.row == row).nonzero().squeeze(1)
        ids = batch.input_ids[row : row + 1, : int(batch.attention_mask[row].sum())]
        passes.append(Pass({"input_ids": ids}, layout.predictor[own] - row * batch.width, own))
    return _logps(model, passes, layout.target)


def _measured(model: nn.Module, logps: Callable[[], Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-probs, and the gradients of a weighted sum of them."""
    model.zero_grad()
    values = logps()
    weights = torch.randn(values.shape, generator=torch.Generator().manual_seed(4), dtype=values.dtype)
    (weights * values).sum().backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    return values.detach(), gradients


def _relative(own: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    if own.keys() != expected.keys():
        return float("inf")
    # Some gradients are 0 but for rounding, as that of a key's bias: the softmax does not see it.
    least = 1e-6 * max(value.abs().max().item() for value in expected.values())
    return max(
        (own[name] - value).abs().max().item() / max(value.abs().max().item(), least)
        for name, value in expected.items()
    )


def _leaking(flat: Flat) -> Flat:
    """A wrong mask: every position sees all that stand before it, other prompts and completions too."""
    size = flat.input_ids.shape[1]
    spans = [Span((0, size), (0, 0))]
    buckets, back = buckets_of(spans, size)
    return replace(flat, spans=spans, buckets=buckets, back=torch.from_numpy(back), masks={})


def _shifted(flat: Flat) -> Flat:
    """Wrong positions: a second completion's begin after the first one's end."""
    return replace(flat, position_ids=torch.arange(flat.input_ids.shape[1])[None], masks={})


def table(found: list[Parity]) -> str:
    """The page of `docs/architectures.md`."""
    made_by = (
        "Made by `python tests/parity.py --write docs/architectures.md` with transformers "
        f"{transformers.__version__} and torch {torch.__version__.partition('+')[0]}."
    )
    what = (
        "Tiny models with wide random weights (standard deviation 0.3), in float64. Log-probs and gradients of every "
        "layout that a model is allowed (rows padded to the longest, in one forward pass and in one for each length; "
        "where it says *shared*, also one flat sequence in which the prompt stands once) against forward passes of one "
        f"row each. They must agree to {TOLERANCE:g}; what would be wrong (*control*: passes that are not put back in "
        f"order, and of a flat sequence a wrong mask and wrong positions) must show by more than {SEEN:g} nats."
    )
    always = (
        "Every run makes the same comparison with its own model before it uses the flat sequence, and again when rows "
        "become longer (`prefopt/scoring/sharing.py`). Where prompts are not shared, rows go through the model sorted "
        "by length, in several passes where that costs less (`prefopt/scoring/passes.py`)."
    )
    lines = ["# Architectures whose completions share their prompt", ""]
    for paragraph in (made_by, what, always):
        lines += [*textwrap.wrap(paragraph, 120), ""]
    lines += [
        "| architecture | completions | log-probs, nats | gradient, relative | control, nats |",
        "| --- | --- | --- | --- | --- |",
    ]
    for one in found:
        layout = f"padded: {one.why_padded}" if one.why_padded else "shared"
        mark = "" if one.holds else " **fails**"
        lines.append(f"| {one.name}{mark} | {layout} | {one.logps:.0e} | {one.gradient:.0e} | {one.controls:.2g} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Compare every architecture, and print the table or write it."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--write", type=Path, help="file to write the table to")
    chosen = parser.parse_args()
    found = [parity(name) for name in ARCHITECTURES]
    if chosen.write is None:
        print(table(found))
    else:
        chosen.write.write_text(table(found))
    if not all(one.holds for one in found):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
