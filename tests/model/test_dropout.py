"""Dropout: its rate, its scale, its gradient, and that elements are dropped independently."""

import math

import pytest
import torch

from minibert.model.dropout import dropout


def kept(shape, p: float, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return dropout(torch.ones(shape), p, training=True) != 0


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 0.003])
def test_the_share_of_dropped_elements_is_p_in_every_place_of_a_draw(p):
    """Four elements share a draw of 64 bits: each of the four is dropped with probability p."""
    mask = kept((250_000, 4), p)
    for place in range(4):
        assert abs((~mask[:, place]).float().mean().item() - p) < 5 * math.sqrt(p * (1 - p) / 250_000)


def test_elements_are_dropped_independently():
    """Neighbours, also inside a draw, and two calls: no correlation beyond 5 sigma of chance."""
    first, second = kept(1_000_000, 0.3).double(), kept(1_000_000, 0.3, seed=1).double()
    pairs = [(first[:-lag], first[lag:]) for lag in (1, 2, 3, 4, 384)] + [(first, second)]
    for a, b in pairs:
        assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1]) < 5e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_what_is_kept_is_scaled_and_the_gradient_is_that_of_the_same_mask(dtype):
    x = torch.linspace(1, 2, 1001).to(dtype).requires_grad_()  # not a multiple of four
    torch.manual_seed(0)
    y = dropout(x, 0.25, training=True)  # 0.25 is a multiple of 2^-16: the scale is 4 / 3
    y.sum().backward()
    mask = y != 0
    assert 0 < mask.sum() < 1001 and y.dtype == dtype
    expected = torch.where(mask, x * (4 / 3), 0)
    assert torch.equal(y, expected)
    torch.testing.assert_close(x.grad, torch.where(mask, torch.tensor(4 / 3, dtype=dtype), 0))


def test_the_expectation_is_the_input():
    torch.manual_seed(0)
    mean = dropout(torch.full((4_000_000,), 3.0), 0.1, training=True).double().mean().item()
    assert abs(mean - 3) < 5 * 3 * math.sqrt(0.1 / 0.9 / 4_000_000)


def test_no_dropout_in_evaluation_or_at_zero():
    x = torch.randn(7, 5)
    assert dropout(x, 0.5, training=False) is x and dropout(x, 0.0, training=True) is x


@pytest.mark.parametrize("p", [1e-6, 1 - 1e-9])
def test_the_ends_are_finite(p):
    """A share below half of 2^-16 drops nothing; one next to 1 keeps one element of 65,536."""
    y = dropout(torch.ones(100_000), p, training=True)
    assert y.isfinite().all() and (y != 0).float().mean() == pytest.approx(1 - p, abs=1e-3)


def test_the_seed_decides():
    assert torch.equal(kept(999, 0.5), kept(999, 0.5)) and not torch.equal(kept(999, 0.5), kept(999, 0.5, 1))


def test_an_empty_tensor_stays_empty():
    assert dropout(torch.ones(0, 8), 0.5, training=True).shape == (0, 8)
