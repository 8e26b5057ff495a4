"""Matrix products for inference, y = f(x W' + b). The weights are packed once.

The project uses torch's private operators in this file only. Each class is a module that maps x (N, in) to y
(N, out). A module is made from a weight (out, in), a bias (out,) and the name of an activation or None. The
modules have no gradient. Row i of y depends only on row i of x. The method `runs` of a class tests if its
operators can be used: it returns False if this torch has no such operators for this processor. For `Packed`
it also tests if the results are correct.
"""

import contextlib
import time
import warnings
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minibert.common.errors import UserError
from minibert.common.processor import features
from minibert.model.encoder import activation

# In fp32 with AVX2, oneDNN's packed product is faster up to this number of tokens. For more tokens MKL's
# plain product is faster. With AVX-512 oneDNN's packed product is always faster on AMD processors, because
# MKL does not use AVX-512 there (docs/inference.md).
FEW_TOKENS = 128
TINY = torch.finfo(torch.float32).tiny  # the smallest scale, so that nothing is divided by 0


class Plain(nn.Module):
    """torch's usual product and activation, in the precision of the weight. y has the same precision.

    This class defines what the other classes must compute. `Plain` is used if `Packed` does not run.
    """

    name = "torch's linear"

    def __init__(self, weight: Tensor, bias: Tensor, activation: str | None = None):
        super().__init__()
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias, persistent=False)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (N, in) to y (N, out)."""
        y = F.linear(x.to(self.weight.dtype), self.weight, self.bias)
        return activation(self.activation, y) if self.activation else y


class Packed(Plain):
    """oneDNN's product in fp32 or bf16. oneDNN reorders the weight, and its kernel computes the activation.

    In fp32 without AVX-512 the module stores the weight twice, packed and plain, because the plain product is
    faster for many tokens.
    """

    name = "oneDNN on packed weights"
    POST = {None: ("none", [], ""), "relu": ("relu", [], ""), "gelu": ("gelu", [], "none"),
            "gelu_tanh": ("gelu", [], "tanh")}

    def __init__(self, weight: Tensor, bias: Tensor, activation: str | None = None):
        super().__init__(weight, bias, activation)
        self.dtype = weight.dtype
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, FEW_TOKENS)
        if self.dtype == torch.bfloat16 or torch.backends.cpu.get_cpu_capability() == "AVX512":
            self.weight = None

    @staticmethod
    def runs(dtype: torch.dtype = torch.float32) -> bool:
        """Returns True if the operators run with weights of this precision and give the results of `Plain`.
        """
        x, weight, bias = (t.to(dtype) for t in
                           (torch.arange(3.0)[None], torch.arange(6.0).view(2, 3), torch.ones(2)))
        try:
            y = Packed(weight, bias, "gelu")(x)
        except (AttributeError, RuntimeError):
            return False
        return torch.allclose(y, Plain(weight, bias, "gelu")(x))

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (N, in) to y (N, out)."""
        if self.weight is not None and len(x) > FEW_TOKENS:
            return super().forward(x)
        return torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), self.packed, self.bias,
                                                  *self.POST[self.activation])


class HalfWeights(nn.Module):
    """Products in fp32 with weights stored in fp16. FBGEMM converts the weights to fp32 when it reads them.

    FBGEMM reads half the bytes of fp32 weights, and its kernel is fast for few rows. Only the weights are
    rounded, to 11 significant bits.
    """

    name = "FBGEMM on weights in fp16"

    def __init__(self, weight: Tensor, bias: Tensor, activation: str | None = None):
        super().__init__()
        if not weight.abs().max() <= torch.finfo(torch.float16).max:
            raise UserError("a weight is too large for fp16; take fp32 or int8")
        with _fbgemm():
            self.packed = torch.ops.quantized.linear_prepack_fp16(weight, bias)
        self.activation = activation

    @staticmethod
    def runs() -> bool:
        """Returns True if this torch has the operators for this processor."""
        return _has_fbgemm()

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (N, in) to y (N, out)."""
        y = torch.ops.quantized.linear_dynamic_fp16(x.contiguous(), self.packed)
        return activation(self.activation, y) if self.activation else y


class Int8(nn.Module):
    """Products of 8-bit integers with sums in 32 bits. x and y are fp32. Each subclass has its own kernel.

    Weights are quantised once, with one scale for each row of W. Each token of x is quantised with its own
    scale, s = max |x| / 127, so tokens that are packed together cannot influence each other. The kernels
    accept only one scale for all tokens. So they get x / s and the scale 1, and their result is multiplied by
    s. Sums of integers are exact, so all subclasses give the same numbers.
    """

    def __init__(self, weight: Tensor, bias: Tensor, activation: str | None = None):
        super().__init__()
        scales = (weight.abs().amax(1) / self.weight_range()).clamp(min=TINY)  # (out,)
        self.packed = self.pack(weight, scales)
        self.register_buffer("bias", bias, persistent=False)
        self.activation = activation

    @staticmethod
    def pack(weight: Tensor, scales: Tensor):
        """Returns round(W / scale), packed for the kernel of the subclass. Each row of W has its own scale.
        """
        raise NotImplementedError

    @staticmethod
    def product(x: Tensor, packed) -> Tensor:
        """Returns round(x) W' (N, out) in fp32 for x (N, in) with |x| <= 127. It may overwrite x."""
        raise NotImplementedError

    @classmethod
    @cache
    def runs(cls) -> bool:
        """Returns True if this torch has the operators for this processor."""
        try:
            return cls.weight_range() > 0
        except (AttributeError, RuntimeError):
            return False

    @classmethod
    @cache
    def weight_range(cls) -> int:
        """The largest absolute value of a quantised weight: 127, or 63 if the kernel of this processor would
        overflow with 127.

        Without the dot-product instructions (VNNI) a kernel adds two products of 8-bit numbers in 16 bits. 16
        bits can hold 2 x 255 x 63, but not 2 x 255 x 127. In an overflow the kernel uses the largest 16-bit
        number and reports no error. This method computes a test product to find out if the kernel overflows.
        """
        x, weight = torch.full((1, 64), 127.0), torch.full((8, 64), 127.0)
        expected = x @ weight.T
        return 127 if torch.equal(cls.product(x, cls.pack(weight, torch.ones(8))), expected) else 63

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (N, in) to y (N, out)."""
        s = x.abs().amax(-1, keepdim=True).clamp(min=TINY * 127) / 127  # (N, 1)
        y = torch.addcmul(self.bias, self.product(x / s, self.packed), s)
        return activation(self.activation, y) if self.activation else y


class FbgemmInt8(Int8):
    """Int8 products of FBGEMM, which uses AVX2, AVX-512 and VNNI, but not AMX."""

    name = "FBGEMM in int8"

    @staticmethod
    def pack(weight: Tensor, scales: Tensor):
        """Returns the quantised weight, packed for FBGEMM."""
        if not _has_fbgemm():
            raise RuntimeError("this torch has no FBGEMM")
        with _fbgemm(), warnings.catch_warnings():
            # torch warns that it will remove its quantised tensors; FBGEMM cannot be used without them
            warnings.filterwarnings("ignore", message=".*quantize_per_channel")
            zeros = torch.zeros(len(scales), dtype=torch.int64)
            quantised = torch.quantize_per_channel(weight, scales.double(), zeros, 0, torch.qint8)
            return torch.ops.quantized.linear_prepack(quantised, None)

    @staticmethod
    def product(x: Tensor, packed) -> Tensor:
        """Returns round(x) W'. The kernel rounds x to unsigned integers, and the integer 128 means 0."""
        return torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            x.contiguous(), 1.0, 128, packed)


class OneDnnInt8(Int8):
    """Int8 products of oneDNN, which also uses AMX. The integers of x are unsigned, and 128 means 0.

    warning: with signed integers and AVX-512, oneDNN uses a kernel that is a thousand times slower.
    """

    name = "oneDNN in int8"

    @staticmethod
    def pack(weight: Tensor, scales: Tensor):
        """Returns the packed integers of the weight, their scales and their zero points."""
        # Multiplying by 1 / scale gives the same integers as torch.quantize_per_channel in `FbgemmInt8`.
        integers = (weight * (1 / scales)[:, None]).round().clamp(-127, 127).to(torch.int8)
        return (torch.ops.onednn.qlinear_prepack(integers, None), scales,
                torch.zeros(len(scales), dtype=torch.int64))

    @staticmethod
    def product(x: Tensor, packed) -> Tensor:
        """Returns round(x) W'. This method rounds x to integers, because the kernel does not round."""
        x = x.add_(128).round_().to(torch.uint8)  # FBGEMM also adds 128 before it rounds
        return torch.ops.onednn.qlinear_pointwise(x, 1.0, 128, *packed, None, 1.0, 0, torch.float32,
                                                  "none", [], "")


@cache
def best_int8() -> type[Int8] | None:
    """The int8 kernel for this processor, or None if no int8 kernel runs.

    FBGEMM and oneDNN give the same numbers. Without AMX, FBGEMM is used if it runs, because oneDNN is not
    faster there (docs/inference.md). With AMX this function measures both once, in some milliseconds, and
    returns the faster one.
    """
    kernels = [kernel for kernel in (FbgemmInt8, OneDnnInt8) if kernel.runs()]
    if len(kernels) == 2 and "amx_int8" in features():
        return min(kernels, key=_seconds)
    return kernels[0] if kernels else None


def _seconds(kernel: type[Int8], tokens: int = 64, width: int = 768) -> float:
    """The seconds of one product with this kernel: the shortest of several products."""
    product, x, taken = kernel(torch.ones(width, width), torch.zeros(width)), torch.ones(tokens, width), []
    for _ in range(6):  # the first product is slow, because it also prepares the kernel
        begun = time.perf_counter()
        product(x)
        taken.append(time.perf_counter() - begun)
    return min(taken)


def _has_fbgemm() -> bool:
    return "fbgemm" in torch.backends.quantized.supported_engines


@contextlib.contextmanager
def _fbgemm():
    """In this block torch packs weights for FBGEMM, even if the user has chosen another engine."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        yield
    finally:
        torch.backends.quantized.engine = before
