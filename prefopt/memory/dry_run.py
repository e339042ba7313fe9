"""Passes of a model without memory: what each of them would hold, measured on tensors that only have a shape.

A training pass saves what the model's own operations save, whatever the architecture: no formula of it is written down
here. All layers of a period are alike, so two depths are run, and the rest is a straight line.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from peft import LoraConfig
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from transformers import PretrainedConfig

from prefopt.memory.recorder import Recorder
from prefopt.memory.sampling import sampled
from prefopt.memory.segments import Segments
from prefopt.memory.skeleton import build, layers_of, materialise, period_of, weight_bytes
from prefopt.models.adapters import adapter_off, is_adapter_model
from prefopt.scoring.attention import FlatAttention
from prefopt.scoring.flat import Flat
from prefopt.scoring.head import LinearHead, after_head, vocabulary_of
from prefopt.scoring.score import CHUNK, Rows, values_of
from prefopt.scoring.sharing import why_not_shared
from prefopt.scoring.tiles import TILE
from prefopt.training.arguments import CHECKPOINTING

_TILES, _TILE_ROWS = 4, 2048
"""How many tiles along the vocabulary are gone through, and how many rows a tile has at the most."""
_CHECKPOINTING = {True: f"{CHECKPOINTING}_enable", False: f"{CHECKPOINTING}_disable"}


@dataclass(frozen=True)
class Pass:
    """What a training pass holds at the most in each of its parts, in bytes, beside the weights.

    Attributes:
        forward: through the layers.
        head: forward and backward through the vocabulary head.
        last: backward through the last layers, where all activations and few gradients are there.
        first: backward through the first layers, where few activations and all gradients are there.
        kept: activations when the forward pass through the layers is done.
    """

    forward: int
    head: int
    last: int
    first: int
    kept: int

    @property
    def peak(self) -> int:
        return max(self.forward, self.head, self.last, self.first)


class DryRun:
    """A model as shapes, through which passes are run.

    Args:
        config, lora, quantized, dtype, rewards: as in `prefopt.memory.skeleton.build`.
        mixed: the dtype of mixed precision, or None.
        share_prompts: whether completions may share their prompt.
    """

    def __init__(
        self,
        config: PretrainedConfig,
        *,
        lora: LoraConfig | None,
        quantized: bool,
        dtype: torch.dtype,
        mixed: torch.dtype | None,
        rewards: bool = False,
        share_prompts: bool = True,
    ) -> None:
        self.model = build(config, lora=lora, quantized=quantized, dtype=dtype, rewards=rewards)
        self.mixed, self.rewards = mixed, rewards
        parts = weight_bytes(self.model)
        self.parts, self.adapter_bytes = parts, parts["adapter"]
        self.base_bytes = parts["embeddings"] + parts["head"] + parts["layers"]
        trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        output = None if rewards else self._base.get_output_embeddings()
        tied = output is not None and output.weight is self._base.get_input_embeddings().weight
        apart = set() if output is None or tied else set(map(id, output.parameters()))
        self.trained = [tuple(weight.shape) for weight in trained]
        self.trained_below_head = [tuple(weight.shape) for weight in trained if id(weight) not in apart]
        self.trained_bytes = sum(weight.numel() * weight.element_size() for weight in trained)
        self.vocabulary = vocabulary_of(self.model)
        self.hidden = self._base.get_input_embeddings().embedding_dim
        self._parent, self._name = layers_of(self.model)
        self._layers = getattr(self._parent, self._name)
        self.depth, self._period = len(self._layers), period_of(self.model)
        low, high = 2 * self._period, 3 * self._period
        self._depths = (low, high) if high < self.depth else (self.depth,)
        self._cut(self._depths[-1])
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        materialise(self.model, self._mode)
        self.shares = share_prompts and not rewards and not why_not_shared(self.model)
        self._flats: dict[Segments, Flat | None] = {}
        self._seen: dict[Any, tuple[int, ...]] = {}

    @property
    def _base(self) -> nn.Module:
        return self.model.get_base_model() if is_adapter_model(self.model) else self.model

    def tokens(self, segments: Segments) -> int:
        """Tokens that the layers see, with padding."""
        flat = self._flat(segments)
        return flat.input_ids.numel() if flat is not None else segments.padded[0] * segments.padded[1]

    def adapter_like(self, lora: LoraConfig) -> int:
        """Bytes that another adapter with these settings has on this base, in the proportion of their ranks."""
        own = next(iter(self.model.peft_config.values()))
        return self.adapter_bytes * lora.r // own.r

    # ---- passes ------------------------------------------------------------------------------------------------------

    def training(
        self,
        segments: Segments,
        *,
        checkpointing: bool,
        gradients: bool,
        statistics: frozenset[str] = frozenset(),
        values: bool = False,
    ) -> Pass:
        """Forward and backward of a micro-batch.

        Args:
            segments: its tokens.
            checkpointing: whether layers are run again in the backward pass.
            gradients: whether they are there from a micro-batch before, and count elsewhere.
            statistics: that the objective reads, beside log-probabilities.
            values: through a critic's head instead of the vocabulary's.
        """

        def measure() -> tuple[int, ...]:
            return self._training(segments, checkpointing, gradients, _Head(statistics, values))

        key = "training", segments, checkpointing, gradients, statistics, values
        return Pass(*self._over_depth(key, measure))

    def scoring(self, segments: Segments, *, adapter: bool = True, frozen: bool = False, values: bool = False) -> int:
        """A forward pass without gradient; its peak in bytes.

        Args:
            segments: the tokens.
            adapter: whether it is on.
            frozen: whether the weights are never trained; mixed precision keeps copies of those that are.
            values: as in `training`.
        """

        def measure() -> tuple[int, ...]:
            with ExitStack() as stack:
                stack.enter_context(torch.no_grad())
                if is_adapter_model(self.model) and not adapter:
                    stack.enter_context(adapter_off(self.model))
                recorder = stack.enter_context(self._recording())
                stack.enter_context(self._autocast())
                stack.enter_context(self._untrained(frozen))
                self.model.eval()
                self._through_head(self._body(segments), segments, _Head(frozenset(), values))
            return (recorder.peak,)

        return self._over_depth(("scoring", segments, adapter, frozen, values), measure)[0]

    def sampling(self, prompts: int, n: int, prompt: int, new: int) -> tuple[int, int]:
        """Generation of ``n`` completions of ``new`` tokens for each of some prompts of ``prompt`` tokens at once.

        Returns:
            Bytes of keys and values at the end, and of all that there is at the most.
        """

        def measure() -> tuple[int, ...]:
            self.model.eval()
            with torch.no_grad(), self._recording() as recorder, self._autocast():
                return sampled(self._base, recorder, prompts, n, prompt, new)

        first, cache, last = self._over_depth(("sampling", prompts, n, prompt, new), measure)
        # Of what the next token is drawn from: a copy, two of its log-probabilities, and their quotient by temperature.
        return cache, max(first, last + 4 * 4 * prompts * n * self.vocabulary)

    # ---- how they are run --------------------------------------------------------------------------------------------

    def _training(self, segments: Segments, checkpointing: bool, gradients: bool, head: "_Head") -> tuple[int, ...]:
        model = self.model.train()
        toggle = getattr(model, _CHECKPOINTING[checkpointing])
        toggle(*([{"use_reentrant": False}] if checkpointing else []))
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        with self._mode:
            for weight in trained:
                weight.grad = torch.empty_like(weight) if gradients else None
        grads = [weight.grad for weight in trained if weight.grad is not None]
        with self._recording(grads) as recorder, self._marks(recorder) as mark:
            with self._autocast():
                hidden = self._body(segments)
                kept = recorder.live
                mark("forward")
                if hidden.requires_grad:
                    hidden.register_hook(lambda _: mark("head"))
                score = self._through_head(hidden, segments, head)
            score.backward()
            mark("first")
        for weight in trained:
            weight.grad = None
        return (*(mark.peaks[part] for part in ("forward", "head", "last", "first")), kept)

    @contextmanager
    def _marks(self, recorder: Recorder) -> Iterator["_Marks"]:
        """Mark where the backward pass leaves the last period of layers, and where it comes to the first one."""
        layers, period, marks = self._current, self._period, _Marks(recorder)

        def at(number: int, part: str) -> Any:
            def hook(*args: Any) -> None:
                _hidden(args[-1]).register_hook(lambda _: marks(part))

            return layers[number].register_forward_hook(hook)

        # One after the other where they are the same place: what was marked once is not marked again.
        handles = [at(len(layers) - 1 - period, "last"), at(period - 1, "between")] if len(layers) > period else []
        try:
            yield marks
        finally:
            for handle in handles:
                handle.remove()

    def _body(self, segments: Segments) -> Tensor:
        """Hidden states before the head; of a reward model its scores."""
        base = self._base
        inputs = self._inputs(segments)
        if self.rewards:
            return base(**inputs, use_cache=False).logits
        return base.base_model(**inputs, use_cache=False).last_hidden_state

    def _inputs(self, segments: Segments) -> dict[str, Any]:
        """The arguments that `prefopt.scoring` gives to a model, or those of a padded micro-batch."""
        flat = self._flat(segments)
        if flat is None:
            ids = torch.zeros(segments.padded, dtype=torch.long)
            return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        shapes = self._shapes(flat)
        nothing = torch.zeros(1, 1, 1, 1)
        ids, positions = shapes.input_ids, shapes.position_ids
        return {"input_ids": ids, "position_ids": positions, "attention_mask": nothing, "flat": FlatAttention(shapes)}

    def _flat(self, segments: Segments) -> Flat | None:
        if segments not in self._flats:
            with unset_fake_temporarily():
                self._flats[segments] = segments.flat() if self.shares else None
        return self._flats[segments]

    def _shapes(self, flat: Flat) -> Flat:
        """The same without numbers."""

        def shape(values: Tensor) -> Tensor:
            return torch.zeros(values.shape, dtype=values.dtype)

        buckets = [
            replace(one, queries=shape(one.queries), keys=shape(one.keys), before=shape(one.before))
            for one in flat.buckets
        ]
        names = "input_ids", "position_ids", "predictor", "back"
        return replace(flat, **{name: shape(getattr(flat, name)) for name in names}, buckets=buckets, masks={})

    def _through_head(self, hidden: Tensor, segments: Segments, head: "_Head") -> Tensor:
        """The sum of the values that the objective differentiates."""
        if self.rewards:
            return hidden.sum()
        base = self._base
        output, after = base.get_output_embeddings(), after_head(base)
        target = torch.zeros(segments.targets, dtype=torch.long)
        rows = hidden.flatten(0, 1).index_select(0, target)
        if head.values:
            return (rows.to(torch.float32) @ torch.empty(self.hidden, 1)).sum()
        linear = type(output) is nn.Linear

        def to_logits(some: Tensor) -> Tensor:
            logits = after(output(some))
            return logits.to(torch.promote_types(logits.dtype, torch.float32))

        if len(target) <= max(1, (TILE if linear else CHUNK) // self.vocabulary):
            made = Rows(to_logits(rows), lambda logits: logits, len(target))
        else:
            # A few tiles hold as much as all of them, and the gradient is made whole by the slice.
            few = slice(_TILES * max(1, TILE // min(len(target), _TILE_ROWS)))
            bias = None if output.bias is None else output.bias[few]
            matrix = LinearHead(output.weight[few], bias, self.mixed or output.weight.dtype, after)
            made = Rows(rows, to_logits, max(1, CHUNK // self.vocabulary), rows, matrix if linear else None)
        reference = made._replace(values=made.values.detach()) if "kl" in head.statistics else None
        values = values_of(made, target, statistics=head.statistics, reference=reference)
        return values["kl" if "kl" in head.statistics else "logps"].sum()

    # ---- tools -------------------------------------------------------------------------------------------------------

    @contextmanager
    def _recording(self, known: list[Tensor] | None = None) -> Iterator[Recorder]:
        tensors = [*self.model.parameters(), *self.model.buffers(), *(known or [])]
        with warnings.catch_warnings(), self._mode, Recorder(tensors) as recorder:
            warnings.simplefilter("ignore")
            yield recorder

    @contextmanager
    def _autocast(self) -> Iterator[None]:
        if self.mixed is None:
            yield
            return
        before = torch.is_autocast_enabled("cuda")
        # Tensors without numbers are on the CPU here; some layers ask about a card's mixed precision.
        torch.set_autocast_enabled("cuda", True)
        try:
            with torch.autocast("cpu", dtype=self.mixed):
                yield
        finally:
            torch.set_autocast_enabled("cuda", before)

    @contextmanager
    def _untrained(self, frozen: bool) -> Iterator[None]:
        """Nothing requires a gradient, where weights are frozen."""
        trained = [weight for weight in self.model.parameters() if weight.requires_grad] if frozen else []
        for weight in trained:
            weight.requires_grad_(False)
        try:
            yield
        finally:
            for weight in trained:
                weight.requires_grad_(True)

    def _cut(self, depth: int) -> None:
        self._current = self._layers[:depth]
        setattr(self._parent, self._name, self._current)

    def _over_depth(self, key: Any, measure: Callable[[], tuple[int, ...]]) -> tuple[int, ...]:
        """Bytes of the whole model, from those of its first layers."""
        if key in self._seen:
            return self._seen[key]
        found = []
        for depth in self._depths:
            self._cut(depth)
            found.append(measure())
        if len(found) == 2:
            low, high = self._depths
            share = (self.depth - low) / (high - low)
            found.append(tuple(round(a + share * (b - a)) for a, b in zip(*found, strict=True)))
        self._seen[key] = found[-1]
        return found[-1]


class _Head(NamedTuple):
    """What reads the hidden states: the vocabulary's head with statistics of the objective, or a critic's."""

    statistics: frozenset[str]
    values: bool


class _Marks:
    """The peaks of the parts of a pass, each from the mark before it."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.peaks: dict[str, int] = {}

    def __call__(self, part: str) -> None:
        if part not in self.peaks:
            self.peaks[part] = self.recorder.peak
            self.recorder.restart()


def _hidden(output: Any) -> Tensor:
    """The hidden states in what a layer returns."""
    return output[0] if isinstance(output, tuple) else output
