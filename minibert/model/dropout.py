"""Dropout (Srivastava et al. 2014). On a CPU, `dropout` needs fewer random bits than torch's dropout."""

import torch
import torch.nn.functional as F
from torch import Tensor


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Returns `x` after dropout: each element is set to 0 with probability `p` (0 <= p < 1), and the other
    elements are divided by 1 - `p`. If `training` is false, returns `x` unchanged.

    On a CPU without torch.compile, 16 random bits are drawn for each element. So `p` is first rounded to a
    multiple of 2^-16: 0.1 becomes 0.100006.
    """
    if not training or p == 0:
        return x
    # torch's dropout is fast on a GPU (one kernel), and torch.compile can fuse it with other operations
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, p)
    # `dropped` is how many of the 2^16 possible random values set an element to 0. `min` keeps `dropped`
    # below 2^16, because the last line divides by 2^16 - `dropped`.
    dropped = min(round(p * 2**16), 2**16 - 1)
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-2**63, None)
    draws = words.view(torch.int16)[:x.numel()].view(x.shape)  # uniform integers from -2^15 to 2^15 - 1
    # With `out`, the comparison writes 0 or 1 in the dtype of `x`. Without `out`, it would return bools, and
    # their conversion to the dtype of `x` would take as long as the draw of the random bits.
    keep = torch.ge(draws, dropped - 2**15, out=torch.empty(x.shape, dtype=x.dtype))
    return x * (2**16 / (2**16 - dropped)) * keep
