"""Losses over hidden states, as sums:
a step divides by the count of the whole step (all micro-batches, all ranks).

Losses over the vocabulary are in vocab_loss.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def at_least_fp32(x: Tensor) -> Tensor:
    """16-bit tensors in fp32, others as they are: losses are never summed in 16 bits."""
    return x if x.dtype == torch.float64 else x.float()


def cosine_sum(student: Tensor, teacher: Tensor) -> Tensor:
    """Sum over tokens of 1 - cos(h_s, h_t), both (N, D):
    L_cos of DistilBERT (Sanh et al. 2019, section 3).
    """
    return (1 - F.cosine_similarity(at_least_fp32(student), at_least_fp32(teacher), dim=-1)).sum()
