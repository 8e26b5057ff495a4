"""Multi-head attention inside each sequence of a packed batch:
the definition, and the fast ways to compute it.

`softmax(Q K' / sqrt(E)) V` of one sequence (Vaswani et al. 2017, eq. 1) is `attend_one`. Everything else in
this file computes the same numbers faster. tests/model/test_attention.py compares each branch with it,
forward and backward. This is the only file that reads the borders of sequences, and attention never crosses
one.
"""

import math
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from minibert.common.processor import features
from minibert.model.batch import Batch


def attend_one(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The definition of attention for one sequence; q, k, v and the result are (T, H, E)."""
    scores = torch.einsum("ihe,jhe->hij", q, k) / math.sqrt(q.shape[-1])  # (H, T, T)
    return torch.einsum("hij,jhe->ihe", scores.softmax(-1), v)  # (T, H, E)


def attend(q: Tensor, k: Tensor, v: Tensor, batch: Batch, dropout: float = 0.0) -> Tensor:
    """Attention inside each sequence; q, k, v and the result are (N, H, E),
    `dropout` that of the probabilities.

    Neighbours of equal length share one dense call, so a batch sorted by length has few of them.
    CUDA in half precision takes the variable-length flash kernel where there is one; it has no
    dropout of the probabilities. A CPU computes it in fp32, whatever the precision around it, except forward
    passes without a gradient where `forward_in_half_pays`.
    """
    if torch.compiler.is_compiling():
        # Sequence lengths are data. Hidden from the compiler, they cause no new compilation for a new batch.
    # This is not a decorator, because a decorator would import the compiler (1.7 s) at every start.
        return torch.compiler.disable(attend)(q, k, v, batch, dropout)
    half = q.dtype in (torch.float16, torch.bfloat16)
    if q.is_cuda and half and dropout == 0 and _has_varlen(q.device):
        return _attend_varlen(q, k, v, batch)
    if q.device.type == "cpu" and half and (q.requires_grad or not forward_in_half_pays()):
        # In 16 bits torch's backward for CPUs takes two to ten times as long as in fp32.
        with torch.autocast("cpu", enabled=False):
            return attend(q.float(), k.float(), v.float(), batch, dropout).to(q.dtype)
    runs = runs_of_equal_length(batch.lengths.tolist())
    sizes = [count * length for count, length in runs]
    pieces = []
    # split, not slices: its backward is one concatenation instead of a zero-filled (N, H, E) for every piece
    for (count, length), *qkv in zip(runs, q.split(sizes), k.split(sizes), v.split(sizes)):
        dense = (x.unflatten(0, (count, length)).transpose(1, 2) for x in qkv)  # (count, H, T, E)
        piece = F.scaled_dot_product_attention(*dense, dropout_p=dropout)
        pieces.append(piece.transpose(1, 2).flatten(0, 1))  # (count * T, H, E)
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def forward_in_half_pays() -> bool:
    """Whether this CPU computes attention faster in bf16: with AMX in 40 % of the time, else no faster."""
    return "amx_bf16" in features()


def runs_of_equal_length(lengths: list[int]) -> list[tuple[int, int]]:
    """[5, 5, 3, 5] -> [(2, 5), (1, 3), (1, 5)]: the number of neighbours with each length."""
    return [(len(list(run)), length) for length, run in groupby(lengths)]


def _has_varlen(device: torch.device) -> bool:
    """The kernel needs an A100 or newer (T4 and V100 take the dense calls),
    and a torch that lets us set its scale.
    """
    return torch.cuda.get_device_capability(device) >= (8, 0) and torch.__version__ >= (2, 12)


def _attend_varlen(q: Tensor, k: Tensor, v: Tensor, batch: Batch) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn  # CUDA only

    size, longest = q.shape[-1], int(batch.lengths.max())
    # the kernel wants head sizes in multiples of 8; zeros change neither scores nor the cut result
    pad = -size % 8
    if pad:
        q, k, v = (F.pad(x, (0, pad)) for x in (q, k, v))
    out = varlen_attn(q, k, v, batch.offsets, batch.offsets, longest, longest, scale=1 / math.sqrt(size))
    return out[..., :size]
