"""Multi-head attention inside each sequence of a packed batch.

`attend_one` defines attention for one sequence: `softmax(Q K' / sqrt(E)) V`, where K' is the transposed K and
E the head size (Vaswani et al. 2017, eq. 1). `attend` computes attention for all sequences of a batch.
Without dropout, the result for a sequence differs from that of `attend_one` only by rounding.
"""

import math
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from minibert.common.processor import features
from minibert.model.batch import Batch


def attend_one(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Computes attention by its definition for one sequence of T tokens. `q`, `k`, `v` and the result are
    (T, H, E) for H heads of size E.
    """
    scores = torch.einsum("ihe,jhe->hij", q, k) / math.sqrt(q.shape[-1])  # (H, T, T)
    return torch.einsum("hij,jhe->ihe", scores.softmax(-1), v)  # (T, H, E)


def attend(q: Tensor, k: Tensor, v: Tensor, batch: Batch, dropout: float = 0.0) -> Tensor:
    """Computes attention inside each sequence of a batch of N tokens. `q`, `k`, `v` and the result are
    (N, H, E) for H heads of size E. `dropout` is the probability that an attention probability is set to 0.

    On a GPU, one call of torch's variable-length flash kernel computes the whole batch if `q` is in 16 bits,
    `dropout` is 0, and the kernel can be used (`_has_varlen`). In all other cases, neighbouring sequences of
    equal length form a group, and each group needs one call of `scaled_dot_product_attention`.
    """
    if torch.compiler.is_compiling():
        # Attention is not compiled, because torch would compile it again for each new set of sequence
        # lengths. `disable` is called here, because as a decorator it would import the compiler (1.7 s)
        # together with this module.
        return torch.compiler.disable(attend)(q, k, v, batch, dropout)
    half = q.dtype in (torch.float16, torch.bfloat16)
    if q.is_cuda and half and dropout == 0 and _has_varlen(q.device):
        return _attend_varlen(q, k, v, batch)
    if q.device.type == "cpu" and half and (q.requires_grad or not forward_in_half_pays()):
        # Attention is computed in fp32, which is faster here. On a CPU, the backward pass takes 2 to 10 times
        # as long in 16 bits as in fp32, and the forward pass is faster in 16 bits only with AMX.
        with torch.autocast("cpu", enabled=False):
            return attend(q.float(), k.float(), v.float(), batch, dropout).to(q.dtype)
    runs = runs_of_equal_length(batch.lengths.tolist())
    sizes = [count * length for count, length in runs]
    pieces = []
    # `split` is faster than slices, because the backward pass of each slice would fill a whole tensor
    # (N, H, E) with zeros.
    for (count, length), *qkv in zip(runs, q.split(sizes), k.split(sizes), v.split(sizes)):
        dense = (x.unflatten(0, (count, length)).transpose(1, 2) for x in qkv)  # (count, H, T, E), T = length
        piece = F.scaled_dot_product_attention(*dense, dropout_p=dropout)
        pieces.append(piece.transpose(1, 2).flatten(0, 1))  # (count * T, H, E)
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def forward_in_half_pays() -> bool:
    """Returns True if this CPU has AMX for bf16. With AMX, the forward pass of attention in bf16 takes 40 %
    of its time in fp32.
    """
    return "amx_bf16" in features()


def runs_of_equal_length(lengths: list[int]) -> list[tuple[int, int]]:
    """Returns a pair (number of sequences, length) for each group of neighbouring sequences of equal length.
    The lengths [5, 5, 3, 5] give [(2, 5), (1, 3), (1, 5)].
    """
    return [(len(list(run)), length) for length, run in groupby(lengths)]


def _has_varlen(device: torch.device) -> bool:
    """Returns True if the variable-length flash kernel can be used. The kernel needs an A100 or a newer GPU,
    and its argument `scale` needs torch 2.12 or newer.
    """
    return torch.cuda.get_device_capability(device) >= (8, 0) and torch.__version__ >= (2, 12)


def _attend_varlen(q: Tensor, k: Tensor, v: Tensor, batch: Batch) -> Tensor:
    # the import is in this function, because torch 2.6, the oldest supported version, has no such module
    from torch.nn.attention.varlen import varlen_attn

    size, longest = q.shape[-1], int(batch.lengths.max())
    # the kernel needs a head size that is a multiple of 8, so zeros are appended to each query, key and value
    pad = -size % 8
    if pad:
        q, k, v = (F.pad(x, (0, pad)) for x in (q, k, v))
    out = varlen_attn(q, k, v, batch.offsets, batch.offsets, longest, longest, scale=1 / math.sqrt(size))
    return out[..., :size]
