"""Matrix products for inference, y = f(x W' + b), with weights packed once.

All that this project uses of torch's private operators stands in this file. Each class is a module made from
a weight (out, in), a bias (out,) and the name of an activation or None, that maps x (N, in) to y (N, out).
None of them has a gradient. Every row of y depends on the same row of x alone.
"""

import contextlib
import warnings
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minibert.common.errors import UserError
from minibert.model.encoder import activation

# With AVX2, oneDNN's packed product is the faster one up to so many tokens, beyond that MKL's plain one
# is; with AVX-512 oneDNN's is for any number (docs/inference.md): on AMD, MKL makes no use of it.
FEW_TOKENS = 128


class Plain(nn.Module):
    """The product and the activation as torch has them, in the weight's precision; y has that precision, too.

    The definition of the others, and what runs where they do not.
    """

    def __init__(self, weight: Tensor, bias: Tensor, activation: str | None = None):
        super().__init__()
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias, persistent=False)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """(N, in) -> (N, out)."""
        y = F.linear(x.to(self.weight.dtype), self.weight, self.bias)
        return activation(self.activation, y) if self.activation else y


class Packed(Plain):
    """fp32: the weight in the order in which oneDNN's kernel reads it, the activation inside.

    Without AVX-512 it holds the weight twice, since there the plain product is faster for many tokens.
    """

    POST = {None: ("none", [], ""), "relu": ("relu", [], ""), "gelu": ("gelu", [], "none"),
            "gelu_tanh": ("gelu", [], "tanh")}

    def __init__(self, weight: Tensor, bias: Tensor, activation: str | None = None):
        super().__init__(weight, bias, activation)
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, FEW_TOKENS)
        if torch.backends.cpu.get_cpu_capability() == "AVX512":
            self.weight = None

    @staticmethod
    def runs() -> bool:
        """Whether this torch has the operators and they compute what `Plain` does."""
        x, weight, bias = torch.arange(3.0)[None], torch.arange(6.0).view(2, 3), torch.ones(2)
        try:
            y = Packed(weight, bias, "gelu")(x)
        except (AttributeError, RuntimeError):
            return False
        return torch.allclose(y, Plain(weight, bias, "gelu")(x))

    def forward(self, x: Tensor) -> Tensor:
        """(N, in) -> (N, out)."""
        if self.weight is not None and len(x) > FEW_TOKENS:
            return super().forward(x)
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, *self.POST[self.activation])


class HalfWeights(nn.Module):
    """fp32 products with weights stored in fp16: FBGEMM widens them on the way into the registers.

    Half the bytes to fetch, and a kernel that is good at few rows. The only rounding is that of the weights,
    to 11 bits.
    """

    def __init__(self, weight: Tensor, bias: Tensor, activation: str | None = None):
        super().__init__()
        if not weight.abs().max() <= torch.finfo(torch.float16).max:
            raise UserError("a weight is too large for fp16; take fp32 or int8")
        with _fbgemm():
            self.packed = torch.ops.quantized.linear_prepack_fp16(weight, bias)
        self.activation = activation

    @staticmethod
    def runs() -> bool:
        """Whether this torch has the operators for this processor."""
        return _has_fbgemm()

    def forward(self, x: Tensor) -> Tensor:
        """(N, in) -> (N, out)."""
        y = torch.ops.quantized.linear_dynamic_fp16(x.contiguous(), self.packed)
        return activation(self.activation, y) if self.activation else y


class Int8(nn.Module):
    """Products of 8-bit integers, summed in 32 bits, by FBGEMM; x and y are fp32.

    Weights are quantised once, with one scale for each row of W. Each token of x is quantised when it comes,
    with a scale of its own: s = max |x| / 127, so that tokens packed together cannot influence each other.
    The kernel takes one scale for all; it is given x / s and the scale 1, and its result is multiplied by s.
    """

    def __init__(self, weight: Tensor, bias: Tensor, activation: str | None = None):
        super().__init__()
        scales = (weight.abs().amax(1) / weight_range()).clamp(min=torch.finfo(torch.float32).tiny)
        self.packed = _pack_int8(weight, scales)
        self.register_buffer("bias", bias, persistent=False)
        self.activation = activation

    @staticmethod
    def runs() -> bool:
        """Whether this torch has the operators for this processor."""
        try:
            return _has_fbgemm() and weight_range() > 0
        except (AttributeError, RuntimeError):
            return False

    def forward(self, x: Tensor) -> Tensor:
        """(N, in) -> (N, out)."""
        s = x.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny * 127) / 127  # (N, 1)
        y = torch.addcmul(self.bias, _int8_product(x / s, self.packed), s)
        return activation(self.activation, y) if self.activation else y


def _pack_int8(weight: Tensor, scales: Tensor):
    """round(W / scale), packed; one scale for each row of W."""
    with _fbgemm(), warnings.catch_warnings():
        # torch has announced that its quantised tensors will go; FBGEMM is reached through them alone
        warnings.filterwarnings("ignore", message=".*quantize_per_channel")
        zeros = torch.zeros(len(scales), dtype=torch.int64)
        quantised = torch.quantize_per_channel(weight, scales.double(), zeros, 0, torch.qint8)
        return torch.ops.quantized.linear_prepack(quantised, None)


def _int8_product(x: Tensor, packed) -> Tensor:
    """round(x) W' for |x| <= 127, in fp32; the kernel takes unsigned numbers, so 128 stands for 0."""
    return torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(x.contiguous(), 1.0, 128, packed)


@cache
def weight_range() -> int:
    """The largest |integer| of a quantised weight: 127, or 63 where the kernel needs room.

    Without the dot-product instructions (VNNI) it adds two products of 8 bits in 16 bits, which holds
    2 x 255 x 63 but not 2 x 255 x 127 and then silently gives the largest number. Found by trying.
    """
    x, weight = torch.full((1, 64), 127.0), torch.full((8, 64), 127.0)
    found = _int8_product(x, _pack_int8(weight, torch.ones(8)))
    return 127 if torch.equal(found, x @ weight.T) else 63


def _has_fbgemm() -> bool:
    return "fbgemm" in torch.backends.quantized.supported_engines


@contextlib.contextmanager
def _fbgemm():
    """Inside, torch packs weights for FBGEMM, whatever engine the user has chosen."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        yield
    finally:
        torch.backends.quantized.engine = before
