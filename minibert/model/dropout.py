"""Dropout (Srivastava et al. 2014) with cheap random bits on a CPU."""

import torch
import torch.nn.functional as F
from torch import Tensor


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Zeroes each element with probability `p`, in [0, 1), and scales the others by 1 / (1 - p).

    On other devices this is torch's dropout. On a CPU torch may draw 32 random bits for each element, one by
    one. Here 16 bits decide, and one draw of 64 bits serves four elements. So `p` is rounded to a multiple of
    2^-16 (0.1 to 0.100006). The scale uses the rounded `p`, so the expectation of the result is `x`.
    """
    if not training or p == 0:
        return x
    if x.device.type != "cpu" or torch.compiler.is_compiling():  # a compiler fuses torch's own
        return F.dropout(x, p)
    dropped = min(round(p * 2**16), 2**16 - 1)  # of the 2^16 values of 16 bits
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-2**63, None)
    draws = words.view(torch.int16)[:x.numel()].view(x.shape)  # uniform from -2^15 to 2^15 - 1
    # straight into x's type, 0 or 1: multiplying by a bool, or converting one, would cost as much as the draw
    keep = torch.ge(draws, dropped - 2**15, out=torch.empty(x.shape, dtype=x.dtype))
    return x * (2**16 / (2**16 - dropped)) * keep
