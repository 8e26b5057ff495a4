"""Counts the FLOPs of models and of training steps, and measures the FLOP/s of large matrix products."""

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

FLOPS_FORMULA = """FLOPs = 2 T L (4 D^2 + 2 D F) + 4 T^2 D L
  A multiplication and an addition count as two operations. T is the number of tokens, L the number of layers,
  D the hidden size and F the feed-forward size. The formula counts the linear layers and the attention of the
  encoder. For a MobileBERT with the bottleneck size B, FLOPs = 2 T x (number of weights in its linear layers)
  + 4 T^2 B L. The pooler, the heads, and operations other than matrix products (biases, LayerNorm, GELU,
  softmax, look-ups in tables) are not counted.
with D x D = FLOPs + 2 T D^2
  The column "with D x D" counts one more linear layer with D x D weights, for every token. The papers do not
  say how their FLOPs were counted. Most of the published figures are equal to this column after rounding."""


@functools.cache
def linear_elements(config: Config) -> int:
    """Returns the number of weights in the encoder's linear layers, without biases and without the pooler."""
    def elements(part: nn.Module) -> int:
        return sum(module.weight.numel() for module in part.modules() if isinstance(module, nn.Linear))

    # all Transformer layers have equal sizes, so only one Transformer layer is built and counted
    encoder = on_meta(build_encoder, replace(config, layers=1))
    return elements(encoder) + (config.layers - 1) * elements(encoder.layers)


def encoder_flops(config: Config, length: int) -> int:
    """Returns the FLOPs of the encoder's forward pass for a sequence of `length` tokens (`FLOPS_FORMULA`)."""
    return 2 * length * linear_elements(config) + 4 * length**2 * config.attention_size * config.layers


def useful_flops(teacher: Config, student: Config, lengths: np.ndarray, method: str = "distilbert") -> float:
    """Returns the FLOPs of a training step. Padding is not counted: `lengths` has the number of tokens of
    each sequence.

    The student's forward and backward passes are counted. If `method` is not "mlm", the teacher's forward
    pass is also counted. A backward pass counts as two forward passes. With the method "distilbert", the MLM
    heads of teacher and student are counted for every token. With "mlm", the student's MLM head is counted
    for 15 % of the tokens. With any other method, no head is counted. Losses are not counted.
    """
    share = {"distilbert": 1.0, "mlm": 0.15}.get(method, 0.0)

    def forward(c: Config) -> float:
        head = share * 2 * c.hidden_size * (c.hidden_size + c.vocab_size)
        return sum(encoder_flops(c, int(length)) + head * int(length) for length in lengths)
    return (forward(teacher) if method != "mlm" else 0.0) + 3 * forward(student)


def matrix_peak(runtime: Runtime) -> float:
    """Multiplies two large square matrices ten times, and returns the highest FLOP/s of the ten products."""
    on_gpu = runtime.device.type == "cuda"
    # The matrices are larger on a GPU than on a CPU. With small matrices, a GPU would spend more time on
    # starting the kernel than on the product.
    size = 8192 if on_gpu else 2048
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
