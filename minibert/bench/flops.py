"""Counts the multiplications and additions of models and steps, and measures the peak of this machine."""

import functools
import time
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from minibert.common.runtime import PRECISIONS, Runtime
from minibert.model.config import Config
from minibert.model.init import on_meta
from minibert.model.heads import build_encoder

FLOPS_FORMULA = """FLOPs = 2 T L (4 D^2 + 2 D F) + 4 T^2 D L, multiplications and additions each counted
  T tokens, L layers, D hidden size, F feed-forward size: linear layers and attention of the encoder; for a
  MobileBERT, 2 T x the elements of its linear layers + 4 T^2 B L, B its bottleneck size. Left out: pooler
  and heads, and what is no matrix product (biases, LayerNorm, GELU, softmax, look-ups).
with D x D = that and 2 T D^2, one more D x D layer over all tokens. How the papers counted is not known here;
which of the two rounds to a published figure is said below."""


@functools.cache
def linear_elements(config: Config) -> int:
    """The number of elements in the encoder's linear layers. A token is multiplied once with each element."""
    def elements(part: nn.Module) -> int:
        return sum(module.weight.numel() for module in part.modules() if isinstance(module, nn.Linear))

    encoder = on_meta(build_encoder, replace(config, layers=1))  # all layers are alike
    return elements(encoder) + (config.layers - 1) * elements(encoder.layers)


def encoder_flops(config: Config, length: int) -> int:
    """Multiplications plus additions of the encoder's matrix products over one sequence, by `FLOPS_FORMULA`.
    """
    return 2 * length * linear_elements(config) + 4 * length**2 * config.attention_size * config.layers


def extra_layer_flops(config: Config, length: int) -> int:
    """The FLOPs of a D x D layer over all tokens, the likely difference between the papers' FLOPs and
    `encoder_flops`.
    """
    return 2 * length * config.hidden_size**2


def useful_flops(teacher: Config, student: Config, lengths: np.ndarray, method: str = "distilbert") -> float:
    """The necessary multiplications and additions of a step: teacher forward, student forward and backward.

    A linear layer costs 2 x weights a token, attention 4 T D a token and layer; backward is twice forward.
    The vocabulary counts for every token of both models if a KL needs it, for 15 % of the student's tokens
    with mlm, and not at all if only encoders are compared. The comparison itself is not counted.
    """
    share = {"distilbert": 1.0, "mlm": 0.15}.get(method, 0.0)

    def forward(c: Config) -> float:
        head = share * 2 * c.hidden_size * (c.hidden_size + c.vocab_size)
        return sum(encoder_flops(c, int(length)) + head * int(length) for length in lengths)
    return (forward(teacher) if method != "mlm" else 0.0) + 3 * forward(student)


def matrix_peak(runtime: Runtime) -> float:
    """The FLOP/s of a large square matrix product on this machine, in the runtime's precision: the best of
    several.
    """
    on_gpu = runtime.device.type == "cuda"
    size = 8192 if on_gpu else 2048  # a GPU would wait longer for a small one than compute it
    a, b = (torch.randn(size, size, device=runtime.device, dtype=PRECISIONS[runtime.precision])
            for _ in range(2))
    best = float("inf")
    for _ in range(10):
        if on_gpu:
            torch.cuda.synchronize()
        begun = time.perf_counter()
        a @ b
        if on_gpu:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begun)
    return 2 * size**3 / best
