"""A step to try losses on, what a loss gives for steps cut in any way, and how large its tensors get."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from minibert.feed import Step, cut


def data(micro_tokens: int, ranks: int = 1) -> list[Step]:
    """Nine sequences of very unequal length, masks crowded into the short ones; one Step per rank."""
    rng = np.random.default_rng(1)
    lengths = np.array([3, 30, 4, 17, 3, 25, 2, 9, 30])
    ids = rng.integers(5, 60, lengths.sum())
    selected = rng.random(len(ids)) < np.repeat(np.where(lengths < 10, 0.7, 0.05), lengths)
    inputs = np.where(selected, 4, ids)
    return [Step(cut(ids, lengths, inputs, selected, micro_tokens, (0,), rank, ranks), len(ids),
                 int(selected.sum()), len(lengths)) for rank in range(ranks)]


def gradients(loss_of: Callable, student: nn.Module, steps: list[Step]) -> tuple[dict[str, Tensor], Tensor]:
    """The loss and its terms, summed over micro-batches and ranks, and the gradient of all weights in one;
    `loss_of(step, micro)`.
    """
    student.zero_grad()
    totals = {}
    for step in steps:
        for micro in step.micro_batches:
            loss, sums = loss_of(step, micro)
            loss.backward()
            for name, value in {"loss": loss.detach(), **sums}.items():
                totals[name] = totals.get(name, 0) + value
    return totals, torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])


class LargestTensor(torch.utils._python_dispatch.TorchDispatchMode):
    """Inside, `elements` is the size of the largest tensor that any operation made."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(t, Tensor):
                self.elements = max(self.elements, t.numel())
        return out
