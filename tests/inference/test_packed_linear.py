"""Products with packed weights: each against the product written out, and what it promises about its rows."""

import pytest
import torch
import torch.nn.functional as F

from minibert.common.errors import UserError
from minibert.inference import packed_linear
from minibert.inference.packed_linear import (FEW_TOKENS, FbgemmInt8, HalfWeights, OneDnnInt8, Packed, Plain,
                                              best_int8)


def where_it_runs(*kernels):
    return [pytest.param(kernel, marks=pytest.mark.skipif(not kernel.runs(), reason="no such kernel here"))
            for kernel in kernels]


INT8 = where_it_runs(FbgemmInt8, OneDnnInt8)
KERNELS = where_it_runs(Packed, HalfWeights, FbgemmInt8, OneDnnInt8)
ACTIVATIONS = {None: lambda y: y, "relu": F.relu, "gelu": F.gelu,
               "gelu_tanh": lambda y: F.gelu(y, approximate="tanh")}


def sample(rows, inputs=40, outputs=24):
    return torch.randn(rows, inputs), torch.randn(outputs, inputs) * 0.3, torch.randn(outputs)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("rows", [1, 7, FEW_TOKENS, FEW_TOKENS + 1])
@pytest.mark.parametrize("capability, copies", [("AVX2", 2), ("AVX512", 1)])
@pytest.mark.skipif(not Packed.runs(), reason="no oneDNN")
def test_packed_fp32_is_the_product(monkeypatch, rows, activation, capability, copies):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    x, weight, bias = sample(rows)
    expected = ACTIVATIONS[activation](x @ weight.T + bias)
    packed = Packed(weight, bias, activation)
    torch.testing.assert_close(packed(x), expected, rtol=1e-5, atol=1e-5)
    assert (packed.weight is not None) == (copies == 2)  # beside the packed one
    torch.testing.assert_close(Plain(weight, bias, activation)(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not HalfWeights.runs(), reason="no FBGEMM")
def test_half_weights_round_the_weights_and_nothing_else():
    x, weight, bias = sample(9)
    expected = F.gelu(x @ weight.half().float().T + bias)
    torch.testing.assert_close(HalfWeights(weight, bias, "gelu")(x), expected, rtol=1e-5, atol=1e-5)
    assert (expected - F.gelu(x @ weight.T + bias)).abs().max() > 1e-5  # the rounding shows
    with pytest.raises(UserError, match="too large"):
        HalfWeights(weight * 1e6, bias)


@pytest.mark.skipif(not Packed.runs(torch.bfloat16), reason="no oneDNN in bf16")
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("rows", [1, 7, FEW_TOKENS + 1])
def test_packed_bf16_is_the_product_of_rounded_numbers(rows, activation):
    x, weight, bias = (t.bfloat16() for t in sample(rows))
    expected = ACTIVATIONS[activation](x.float() @ weight.float().T + bias.float())
    found = Packed(weight, bias, activation)(x.float())
    assert found.dtype == torch.bfloat16  # rounded once, at the end: half a unit in the last of 8 bits
    torch.testing.assert_close(found.float(), expected, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("Int8", INT8)
def test_int8_is_the_product_of_rounded_numbers(Int8, activation):
    x, weight, bias = sample(9)
    most = Int8.weight_range()
    s_x = x.abs().amax(1, keepdim=True) / 127  # one scale a token
    s_w = weight.abs().amax(1) / most  # one scale a row
    integers = (x / s_x).round() @ (weight / s_w[:, None]).round().T  # exact in fp32 at this size
    expected = ACTIVATIONS[activation](integers * s_x * s_w + bias)
    torch.testing.assert_close(Int8(weight, bias, activation)(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not FbgemmInt8.runs() or not OneDnnInt8.runs(), reason="not both run here")
@pytest.mark.parametrize("rows", [1, 7, 200])
def test_the_kernels_of_int8_give_the_same_bits(rows):
    x, weight, bias = sample(rows, 384, 96)  # so the choice between them changes no result
    if FbgemmInt8.weight_range() == OneDnnInt8.weight_range():
        assert torch.equal(FbgemmInt8(weight, bias, "gelu")(x * 3), OneDnnInt8(weight, bias, "gelu")(x * 3))


@pytest.mark.skipif(not FbgemmInt8.runs() or not OneDnnInt8.runs(), reason="not both run here")
def test_which_kernel_of_int8_is_decided_by_the_processor(monkeypatch):
    choose = best_int8.__wrapped__
    monkeypatch.setattr(packed_linear, "features", lambda: {"avx512_vnni"})
    assert choose() is FbgemmInt8
    monkeypatch.setattr(packed_linear, "features", lambda: {"amx_int8"})
    for first, second in ((FbgemmInt8, OneDnnInt8), (OneDnnInt8, FbgemmInt8)):
        monkeypatch.setattr(packed_linear, "_seconds", {first: 1.0, second: 2.0}.get)
        assert choose() is first
    monkeypatch.setattr(FbgemmInt8, "runs", lambda: False)
    assert choose() is OneDnnInt8
    monkeypatch.setattr(OneDnnInt8, "runs", lambda: False)
    assert choose() is None


@pytest.mark.parametrize("Int8", INT8)
def test_int8_sums_do_not_saturate(Int8):
    # the largest numbers that there are, all of one sign: pairs of products in 16 bits come closest to full
    x, weight = torch.full((3, 768), 5.0), torch.full((16, 768), 2.0)
    torch.testing.assert_close(Int8(weight, torch.zeros(16))(x), x @ weight.T, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_row_does_not_see_the_others(kernel, dtype):
    x, weight, bias = sample(6)
    if dtype == torch.bfloat16:
        if kernel is not Packed or not Packed.runs(dtype):
            pytest.skip("not a kernel of bf16")
        weight, bias = weight.bfloat16(), bias.bfloat16()
    product = kernel(weight, bias, "gelu")
    wild = x.clone()
    wild[3] *= 1e4
    assert torch.equal(product(wild)[[0, 1, 2, 4, 5]], product(x)[[0, 1, 2, 4, 5]])


@pytest.mark.parametrize("Int8", INT8)
def test_int8_of_zeros_is_the_bias(Int8):
    _, weight, bias = sample(1)
    x = torch.zeros(2, weight.shape[1])
    assert torch.equal(Int8(weight, bias)(x), bias.expand(2, -1))
    assert torch.equal(Int8(weight * 0, bias)(x + 1), bias.expand(2, -1))


def test_the_users_engine_stays():
    before = torch.backends.quantized.engine
    if FbgemmInt8.runs():
        FbgemmInt8(torch.ones(8, 8), torch.ones(8))
    assert torch.backends.quantized.engine == before
