"""Every way to compute attention equals the written-out definition,
forward and backward, and keeps sequences apart.
"""

import math
from dataclasses import replace

import pytest
import torch

from minibert.model.attention import _attend_varlen, _has_varlen, runs_of_equal_length, attend, attend_one
from minibert.model.batch import pack
from minibert.model.encoder import Encoder
from minibert.model.init import init_weights

LENGTHS = {
    "one sequence": [7],
    "all equal: one dense call": [5, 5, 5],
    "runs": [5, 5, 3, 3, 3, 5],
    "all different": [2, 9, 4],
    "of one token": [1, 1, 6, 1],
}


def batch_of(lengths):
    return pack([[0] * n for n in lengths])


def random_qkv(lengths, heads=3, size=8, dtype=torch.float64, device="cpu"):
    return [torch.randn(sum(lengths), heads, size, dtype=dtype, device=device, requires_grad=True)
            for _ in range(3)]


def attend_by_definition(q, k, v, lengths):
    """`attend_one` for one sequence after the other."""
    return torch.cat([attend_one(*qkv) for qkv in zip(q.split(lengths), k.split(lengths), v.split(lengths))])


def out_and_gradients(function, qkv):
    """The result, and the gradients of a weighted sum of it,
    so that no element's gradient is the same by symmetry.
    """
    out = function(*qkv)
    weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).to(out).view_as(out)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), qkv)]


def test_attend_one_is_the_formula():
    T, H, E = 4, 2, 3
    q, k, v = (torch.randn(T, H, E, dtype=torch.float64) for _ in range(3))
    out = attend_one(q, k, v)
    for head in range(H):
        for i in range(T):
            scores = [sum(q[i, head, e] * k[j, head, e] for e in range(E)) / math.sqrt(E) for j in range(T)]
            total = sum(math.exp(s) for s in scores)
            expected = sum(math.exp(s) / total * v[j, head] for j, s in enumerate(scores))
            torch.testing.assert_close(out[i, head], expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("size", [8, 26, 64])  # 26: TinyBERT-4's head size, a multiple of nothing
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)],
                         ids=["fp64", "fp32"])
def test_attend_equals_definition(lengths, size, dtype, tolerance):
    qkv = random_qkv(lengths, size=size, dtype=dtype)
    expected = out_and_gradients(lambda *x: attend_by_definition(*x, lengths), qkv)
    actual = out_and_gradients(lambda *x: attend(*x, batch_of(lengths)), qkv)
    for name, a, e in zip(("out", "dq", "dk", "dv"), actual, expected):
        torch.testing.assert_close(a, e, rtol=tolerance, atol=tolerance,
                                   msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("autocast", [False, True])
def test_16_bits_on_a_cpu_are_rounded_once(autocast):
    # the arithmetic is fp32's, forward and backward; only the result and the gradients have 16 bits
    lengths = [2, 9, 9, 4]
    qkv = random_qkv(lengths, dtype=torch.bfloat16)
    exact = [x.detach().float().requires_grad_() for x in qkv]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        actual = out_and_gradients(lambda *x: attend(*x, batch_of(lengths)), qkv)
    expected = out_and_gradients(lambda *x: attend(*x, batch_of(lengths)).bfloat16(), exact)
    for a, e in zip(actual, expected):
        assert torch.equal(a, e.bfloat16())


def test_runs_of_equal_length():
    assert runs_of_equal_length([5, 5, 3, 5]) == [(2, 5), (1, 3), (1, 5)]
    assert runs_of_equal_length([4]) == [(1, 4)]
    assert runs_of_equal_length([2, 2, 2]) == [(3, 2)]


def test_neighbours_of_equal_length_share_a_call(monkeypatch):
    shapes, dense = [], torch.nn.functional.scaled_dot_product_attention

    def counted(q, k, v, **options):
        shapes.append(tuple(q.shape))
        return dense(q, k, v, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    attend(*random_qkv([5, 5, 3, 5]), batch_of([5, 5, 3, 5]))
    assert shapes == [(2, 3, 5, 8), (1, 3, 3, 8), (1, 3, 5, 8)]


@pytest.mark.parametrize("lengths", [[5, 5, 5], [2, 9, 4]], ids=["equal", "mixed"])
def test_attention_never_crosses_a_border(lengths):
    qkv = random_qkv(lengths)
    before = attend(*qkv, batch_of(lengths))
    middle = slice(lengths[0], lengths[0] + lengths[1])
    for x in qkv:
        x.data[middle] = torch.randn_like(x.data[middle])
    changed = (attend(*qkv, batch_of(lengths)) != before).flatten(1).any(1)
    assert changed[middle].all()
    assert changed.sum() == lengths[1]  # and the others to the bit


def test_gradient_stays_in_the_sequence():
    lengths = [3, 4, 3]
    q, k, v = random_qkv(lengths)
    attend(q, k, v, batch_of(lengths))[3:7].sum().backward()
    for x in (k, v):
        assert x.grad[:3].count_nonzero() == 0 and x.grad[7:].count_nonzero() == 0
        assert x.grad[3:7].flatten(1).any(1).all()


def test_dropout_is_of_the_probabilities():
    # in a sequence of one token the only probability is 1: dropped, or divided by 1 - p
    p, lengths = 0.25, [1] * 4000
    q, k, v = (x.detach() for x in random_qkv(lengths, heads=2))
    kept = attend(q, k, v, batch_of(lengths), dropout=p) * (1 - p) / v
    drawn = kept.round()
    torch.testing.assert_close(kept, drawn, rtol=0, atol=1e-12)
    assert torch.equal(drawn, drawn[..., :1].expand_as(drawn))  # one draw for all of a value vector
    assert abs(drawn.mean() - (1 - p)) < 4 * math.sqrt(p * (1 - p) / 8000)

    # equal scores, values 1: the sum of the kept probabilities, with mean 1 and variance p / ((1 - p) T)
    lengths = [20] * 100 + [10] * 100
    q, k, v = torch.zeros(3000, 2, 4), torch.zeros(3000, 2, 4), torch.ones(3000, 2, 4)
    sums = attend(q, k, v, batch_of(lengths), dropout=p)[..., 0]
    for part, T in ((sums[:2000], 20), (sums[2000:], 10)):
        variance = p / (1 - p) / T
        assert abs(part.mean() - 1) < 4 * math.sqrt(variance / part.numel())
        assert abs(part.var() / variance - 1) < 0.1
    assert torch.equal(attend(q, k, v, batch_of(lengths)), attend(q, k, v, batch_of(lengths)))


def test_varlen_branch_pads_heads_and_keeps_the_scale(monkeypatch):
    # Our lines around the CUDA kernel, with the definition in the kernel's place.
    varlen = pytest.importorskip("torch.nn.attention.varlen", reason="torch before 2.10 has none")

    def kernel(q, k, v, offsets_q, offsets_k, longest_q, longest_k, *, scale):
        assert q.shape[-1] % 8 == 0 and offsets_q.dtype == torch.int32 and longest_q == longest_k == 9
        factor = scale * math.sqrt(q.shape[-1])  # the definition would divide by the root of the padded size
        return attend_by_definition(q * factor, k, v, offsets_q.diff().tolist())

    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    lengths = [2, 9, 4, 1]
    for size in (8, 26):
        qkv = random_qkv(lengths, size=size)
        expected = out_and_gradients(lambda *x: attend_by_definition(*x, lengths), qkv)
        actual = out_and_gradients(lambda *x: _attend_varlen(*x, batch_of(lengths)), qkv)
        for a, e in zip(actual, expected):
            torch.testing.assert_close(a, e, rtol=0, atol=1e-12)


@pytest.mark.parametrize("capability, version, expected", [
    ((7, 0), "2.13.0", False), ((7, 5), "2.13.0", False),  # V100, T4
    ((8, 0), "2.13.0+cu130", True), ((9, 0), "2.12.0", True), ((12, 0), "3.0.0", True),
    ((8, 0), "2.6.0", False), ((8, 0), "2.11.1", False),
])
def test_varlen_only_where_it_runs(monkeypatch, capability, version, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch, "__version__", type(torch.__version__)(version))
    assert _has_varlen(torch.device("cuda")) == expected


@pytest.mark.gpu
@pytest.mark.parametrize("lengths", [[5, 5, 5], [2, 90, 4, 1]], ids=["equal", "mixed"])
@pytest.mark.parametrize("size", [26, 32, 64])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float16, 4e-3), (torch.bfloat16, 3e-2)],
                         ids=["fp16", "bf16"])
def test_varlen_kernel_equals_definition(lengths, size, dtype, tolerance):
    # tolerance: a few units in the last place of the half precision,
    # against the definition in fp64 of the same inputs
    qkv = random_qkv(lengths, size=size, dtype=dtype, device="cuda")
    exact = [x.detach().double().requires_grad_() for x in qkv]
    expected = out_and_gradients(lambda *x: attend_by_definition(*x, lengths), exact)
    actual = out_and_gradients(lambda *x: attend(*x, batch_of(lengths).to("cuda")), qkv)
    for a, e in zip(actual, expected):
        torch.testing.assert_close(a.double(), e, rtol=tolerance, atol=tolerance)


@pytest.mark.slow
def test_new_lengths_do_not_compile_anew(tiny_config, random_batch):
    model = init_weights(Encoder(replace(tiny_config, layers=3))).eval()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend)
    # torch learns that N varies, and takes S = 1 for a case of its own
    for lengths in ([5, 4], [3, 9, 2], [7]):
        compiled(random_batch(lengths))
    learnt = len(graphs)
    # embeddings, and a layer before and after attention, three times each; not more for more layers
    assert 0 < learnt <= 9
    for lengths in ([8, 8, 8], [2], [4, 4, 7, 11, 12], [31, 1], [6, 6], [1, 2, 3, 4, 5]):
        batch = random_batch(lengths)
        torch.testing.assert_close(compiled(batch), model(batch), rtol=1e-5, atol=1e-5)
    assert len(graphs) == learnt
    torch._dynamo.reset()
