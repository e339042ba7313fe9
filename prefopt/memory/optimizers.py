"""What optimizers keep for the numbers that they train, and what a step of theirs takes besides."""

from collections.abc import Sequence

FULL = 4
"""Bytes of a state in float32."""
SMALL, BLOCK = 4096, 256
"""bitsandbytes keeps the states of smaller weights in 32 bit; in larger ones, so many numbers share a float32 scale."""

# States of a number, by optimizer; those of the second kind are in 8 bit.
_STATES = {
    "adam": 2,
    "adamw": 2,
    "adamw_torch": 2,
    "adamw_torch_fused": 2,
    "adamw_apex_fused": 2,
    "adamw_anyprecision": 2,
}
_STATES |= {"paged_adamw": 2, "paged_adamw_32bit": 2, "lion_32bit": 1, "paged_lion": 1, "paged_lion_32bit": 1}
_STATES |= {"lion": 1, "rmsprop": 1, "rmsprop_bnb": 1, "adagrad": 1, "sgd": 0, "ademamix": 3, "paged_ademamix_32bit": 3}
_IN_8_BIT = {"adamw_8bit": 2, "adamw_bnb_8bit": 2, "paged_adamw_8bit": 2, "lion_8bit": 1, "paged_lion_8bit": 1}
_IN_8_BIT |= {"rmsprop_bnb_8bit": 1, "ademamix_8bit": 3, "paged_ademamix_8bit": 3}
# torch's loops over lists of weights make a temporary list of all of them, where they run on a card.
_LISTS = ("adamw_torch", "rmsprop", "adagrad")


def known(name: str) -> bool:
    """Whether it is known what the optimizer keeps."""
    return name in _STATES or name in _IN_8_BIT or name == "adafactor"


def state_bytes(name: str, shapes: Sequence[tuple[int, ...]]) -> int:
    """Bytes of an optimizer's states; one that is not known counts as AdamW.

    Args:
        name: as in ``TrainingArguments.optim``.
        shapes: of the trained weights.
    """
    return sum(_state(name, shape) for shape in shapes)


def _state(name: str, shape: tuple[int, ...]) -> int:
    numbers = _numbers(shape)
    if name == "adafactor":
        return FULL * (numbers if len(shape) < 2 else numbers // shape[-1] + numbers // shape[-2])
    if name in _IN_8_BIT and numbers >= SMALL:
        return _IN_8_BIT[name] * (numbers + FULL * -(-numbers // BLOCK))
    return FULL * numbers * _IN_8_BIT.get(name, _STATES.get(name, 2))


def step_bytes(name: str, shapes: Sequence[tuple[int, ...]], device: str) -> int:
    """Bytes that a step takes for its time.

    Args:
        name, shapes: as in `state_bytes`.
        device: ``"cuda"`` or ``"cpu"``, where torch goes through weights one by one.
    """
    if name not in _LISTS or not shapes:
        return 0
    if device == "cuda":
        return FULL * sum(map(_numbers, shapes))
    # The square root of the second moment, and what it is divided by.
    return 2 * FULL * max(map(_numbers, shapes))


def _numbers(shape: tuple[int, ...]) -> int:
    numbers = 1
    for size in shape:
        numbers *= size
    return numbers
