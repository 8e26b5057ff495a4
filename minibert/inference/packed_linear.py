"""Matrix products for inference: y = f(x W' + b), where W' is the transposed weight and f an activation.

Each class is a module that maps x (N, in) to y (N, out) for N tokens. A module is made from a weight (out,
in), a bias (out,) and the name of an activation (or None). All classes except `Plain` pack the weights once:
the weights are stored in the order that the matrix kernel needs. torch does not document the operators of
`torch.ops`, so only this file calls them.
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

# the largest number of tokens for which oneDNN's packed product in fp32 is faster than MKL's plain product
# on a CPU without AVX-512 (docs/inference.md)
FEW_TOKENS = 128
TINY = torch.finfo(torch.float32).tiny  # replaces a scale of 0, because 0 / 0 is NaN


class Plain(nn.Module):
    """Computes the matrix product and the activation with torch's usual functions, in the weight's precision.
    """

    name = "torch's linear"

    def __init__(self, weight: Tensor, bias: Tensor, activation: str | None = None):
        super().__init__()
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias, persistent=False)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (N, in) to y (N, out) for N tokens."""
        y = F.linear(x.to(self.weight.dtype), self.weight, self.bias)
        return activation(self.activation, y) if self.activation else y


class Packed(Plain):
    """Computes the matrix product and the activation with one kernel of oneDNN, in fp32 or bf16. In fp32 on
    processors without AVX-512, the module calls `Plain` for more than `FEW_TOKENS` tokens, because `Plain` is
    then faster.
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
        """Returns True if the module runs with weights of type `dtype`, with the same results as `Plain`."""
        x, weight, bias = (t.to(dtype) for t in
                           (torch.arange(3.0)[None], torch.arange(6.0).view(2, 3), torch.ones(2)))
        try:
            y = Packed(weight, bias, "gelu")(x)
        except (AttributeError, RuntimeError):
            return False
        return torch.allclose(y, Plain(weight, bias, "gelu")(x))

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (N, in) to y (N, out) for N tokens."""
        if self.weight is not None and len(x) > FEW_TOKENS:
            return super().forward(x)
        return torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), self.packed, self.bias,
                                                  *self.POST[self.activation])


class HalfWeights(nn.Module):
    """Computes products in fp32 from weights that are stored in fp16 (11 significant bits)."""

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
        """Returns True if the installed torch has FBGEMM for this processor."""
        return _has_fbgemm()

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (N, in) to y (N, out) for N tokens."""
        y = torch.ops.quantized.linear_dynamic_fp16(x.contiguous(), self.packed)
        return activation(self.activation, y) if self.activation else y


class Int8(nn.Module):
    """Computes matrix products of 8-bit integers. x and y are fp32.

    Weights are quantised once, with one scale for each row of the weight. Each token (row of x) is quantised
    with its own scale s = max |x| / 127, so the result for a token does not depend on other tokens. The
    kernels accept only one scale for all tokens. So each row of x is divided by its s, the kernel gets the
    scale 1, and the result is multiplied by s.
    """

    def __init__(self, weight: Tensor, bias: Tensor, activation: str | None = None):
        super().__init__()
        scales = (weight.abs().amax(1) / self.weight_range()).clamp(min=TINY)  # (out,)
        self.packed = self.pack(weight, scales)
        self.register_buffer("bias", bias, persistent=False)
        self.activation = activation

    @staticmethod
    def pack(weight: Tensor, scales: Tensor):
        """Quantises each row of `weight` to the integers round(row / scale), where `scales` has one scale for
        each row. Returns the integers together with the scales, packed for the kernel of the subclass.
        """
        raise NotImplementedError

    @staticmethod
    def product(x: Tensor, packed) -> Tensor:
        """Returns the product of round(x) and the transposed W, (N, out) in fp32 for N tokens. A row of W is
        a row of the packed integers, multiplied by the row's scale. x is (N, in), with values from -127 to
        127. The method may overwrite x.
        """
        raise NotImplementedError

    @classmethod
    @cache
    def runs(cls) -> bool:
        """Returns True if the installed torch has this class's int8 kernel for this processor."""
        try:
            return cls.weight_range() > 0
        except (AttributeError, RuntimeError):
            return False

    @classmethod
    @cache
    def weight_range(cls) -> int:
        """Returns the largest absolute value that a quantised weight may have on this processor: 127, or 63
        if a test product with weights of 127 overflows.

        A kernel multiplies each weight by x + 128, which is at most 255. Without the dot-product instructions
        (VNNI), the kernel adds two such products in 16 bits. With weights up to 63, the sum is at most
        2 x 255 x 63, which fits into 16 bits. With weights up to 127, the sum may overflow without an error.
        """
        x, weight = torch.full((1, 64), 127.0), torch.full((8, 64), 127.0)
        expected = x @ weight.T
        return 127 if torch.equal(cls.product(x, cls.pack(weight, torch.ones(8))), expected) else 63

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (N, in) to y (N, out) for N tokens."""
        s = x.abs().amax(-1, keepdim=True).clamp(min=TINY * 127) / 127  # (N, 1)
        y = torch.addcmul(self.bias, self.product(x / s, self.packed), s)
        return activation(self.activation, y) if self.activation else y


class FbgemmInt8(Int8):
    """Computes int8 products with FBGEMM, which uses AVX2, AVX-512 and VNNI, but not AMX."""

    name = "FBGEMM in int8"

    @staticmethod
    def pack(weight: Tensor, scales: Tensor):
        """Returns the quantised weight, packed for FBGEMM."""
        if not _has_fbgemm():
            raise RuntimeError("this torch has no FBGEMM")
        with _fbgemm(), warnings.catch_warnings():
            # torch warns that a later version will remove quantised tensors. The warning is hidden, because
            # FBGEMM needs a quantised tensor.
            warnings.filterwarnings("ignore", message=".*quantize_per_channel")
            zeros = torch.zeros(len(scales), dtype=torch.int64)
            quantised = torch.quantize_per_channel(weight, scales.double(), zeros, 0, torch.qint8)
            return torch.ops.quantized.linear_prepack(quantised, None)

    @staticmethod
    def product(x: Tensor, packed) -> Tensor:
        """Returns the product of round(x) and the packed weights."""
        return torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            x.contiguous(), 1.0, 128, packed)


class OneDnnInt8(Int8):
    """Computes int8 products with oneDNN, which can use AMX. x is stored in unsigned integers, where 128
    stands for 0. With AVX-512, oneDNN's kernel for unsigned integers is a thousand times faster than its
    kernel for signed integers.
    """

    name = "oneDNN in int8"

    @staticmethod
    def pack(weight: Tensor, scales: Tensor):
        """Returns a tuple (packed integers, scale of each row, zero point of each row)."""
        # Weights are multiplied by 1 / scale, because torch.quantize_per_channel also does this in
        # `FbgemmInt8`. A division by the scale would give other integers for some weights.
        integers = (weight * (1 / scales)[:, None]).round().clamp(-127, 127).to(torch.int8)
        return (torch.ops.onednn.qlinear_prepack(integers, None), scales,
                torch.zeros(len(scales), dtype=torch.int64))

    @staticmethod
    def product(x: Tensor, packed) -> Tensor:
        """Returns the product of round(x) and the packed weights."""
        # 128 is added before x is rounded, as in FBGEMM, so that both kernels multiply the same integers
        x = x.add_(128).round_().to(torch.uint8)
        return torch.ops.onednn.qlinear_pointwise(x, 1.0, 128, *packed, None, 1.0, 0, torch.float32,
                                                  "none", [], "")


@cache
def best_int8() -> type[Int8] | None:
    """Returns the class of the int8 kernel for this processor, or None if no int8 kernel runs. If only one of
    FBGEMM and oneDNN runs, this kernel is used. If both run on a processor with AMX, both are measured once,
    and the faster kernel is used. If both run without AMX, FBGEMM is used, because oneDNN is then not faster
    than FBGEMM (docs/inference.md).
    """
    kernels = [kernel for kernel in (FbgemmInt8, OneDnnInt8) if kernel.runs()]
    if len(kernels) == 2 and "amx_int8" in features():
        return min(kernels, key=_seconds)
    return kernels[0] if kernels else None


def _seconds(kernel: type[Int8], tokens: int = 64, width: int = 768) -> float:
    """Measures several products and returns the shortest time, in seconds."""
    product, x, taken = kernel(torch.ones(width, width), torch.zeros(width)), torch.ones(tokens, width), []
    for _ in range(6):  # more than one product, because the first is slow
        begun = time.perf_counter()
        product(x)
        taken.append(time.perf_counter() - begun)
    return min(taken)


def _has_fbgemm() -> bool:
    return "fbgemm" in torch.backends.quantized.supported_engines


@contextlib.contextmanager
def _fbgemm():
    """Lets torch pack weights for FBGEMM in a `with` block."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        yield
    finally:
        torch.backends.quantized.engine = before
