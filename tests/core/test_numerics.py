"""Shared numerics against mpmath where the naive formula loses its digits."""

import mpmath
import pytest
import torch

from prefopt.core.numerics import (
    divergence_terms,
    grouped_log_softmax,
    keyed_uniform,
    log1mexp,
    masked_logsumexp,
    sigmoid,
)

POINTS = [-1e-12, -1e-7, -1e-3, -0.69, -0.7, -5.0, -800.0]


@pytest.mark.parametrize("x", POINTS)
def test_log1mexp_and_its_gradient(x: float) -> None:
    given = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    value = log1mexp(given)
    value.backward()
    with mpmath.workdps(40):
        exact, slope = mpmath.log1p(-mpmath.exp(x)), -mpmath.exp(x) / (1 - mpmath.exp(x))
    assert value.item() == pytest.approx(float(exact), rel=1e-14, abs=0)
    assert given.grad.item() == pytest.approx(float(slope), rel=1e-12, abs=0)


def test_log1mexp_of_certainty_is_finite() -> None:
    given = torch.zeros((), dtype=torch.float64, requires_grad=True)
    value = log1mexp(given)
    value.backward()
    assert value.isfinite() and given.grad.isfinite()


def test_the_gradient_of_sigmoid_keeps_its_digits() -> None:
    x = torch.tensor(40.0, dtype=torch.float64, requires_grad=True)
    sigmoid(x).backward()
    assert x.grad.item() == pytest.approx(4.248354255291589e-18, rel=1e-14, abs=0)


def test_masked_values_have_no_part() -> None:
    values = torch.tensor([[1.0, 2.0, 99.0], [5000.0, 5001.0, 0.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    expected = [2 + float(mpmath.log1p(mpmath.exp(-1))), 5001 + float(mpmath.log1p(mpmath.exp(-1)))]
    assert masked_logsumexp(values, mask).tolist() == pytest.approx(expected, rel=1e-15)


def test_log_softmax_within_groups() -> None:
    values = torch.tensor([1.0, 2.0, 3.0, 7.0], dtype=torch.float64)
    group = torch.tensor([0, 1, 0, 2])
    found = grouped_log_softmax(values, group[:, None] == group)
    expected = torch.log_softmax(torch.tensor([1.0, 3.0], dtype=torch.float64), dim=0).tolist()
    assert found.tolist() == pytest.approx([expected[0], 0.0, expected[1], 0.0], rel=1e-14)


@pytest.mark.parametrize("gap", [1e-9, 1e-4, 0.49, 0.51, 3.0])
def test_terms_of_a_divergence_keep_their_digits(gap: float) -> None:
    log_p = torch.tensor(-1.3, dtype=torch.float64)
    found = divergence_terms(log_p, log_p - gap, torch.tensor(gap, dtype=torch.float64))
    with mpmath.workdps(40):
        p, x = mpmath.exp(mpmath.mpf(-1.3)), mpmath.mpf(gap)
        exact = p * x - p + p * mpmath.exp(-x)
    assert found.item() == pytest.approx(float(exact), rel=1e-14, abs=0)


def test_keyed_numbers_depend_on_their_keys_alone() -> None:
    ids = torch.arange(2000)
    numbers = keyed_uniform(ids, 3)
    assert torch.equal(numbers[5:9], keyed_uniform(ids[5:9], 3))
    assert not torch.equal(numbers, keyed_uniform(ids, 4))
    assert 0 < numbers.min() < 0.01 and 0.99 < numbers.max() < 1
    assert numbers.mean().item() == pytest.approx(0.5, abs=0.03)
    assert torch.corrcoef(torch.stack([numbers[:-1], numbers[1:]]))[0, 1].abs() < 0.1
