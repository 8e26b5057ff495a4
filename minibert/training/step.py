"""One optimiser step, in two halves: the same for every script, every method, any number of micro-batches and
ranks.

`accumulate` computes the gradients of this rank's micro-batches. `update` sums them over the ranks, clips,
and has the optimiser take its step.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from minibert.common.errors import UserError
from minibert.common.runtime import Runtime


class Sums(NamedTuple):
    """The sums over the micro-batches of one rank, detached and on the device."""

    loss: Tensor  # this rank's share of the loss of the whole step
    terms: dict[str, Tensor]  # the sum of each term, not yet divided by its count


def accumulate(model: nn.Module, loss_of: Callable, micro_batches: list, scaler: torch.amp.GradScaler,
               runtime: Runtime) -> Sums:
    """Forward and backward over the micro-batches, which may be none; the gradients add up in the model.

    `loss_of(micro)` gives a micro-batch's share of the loss of the whole step, and detached sums by name.
    """
    model.zero_grad()
    loss_sum = torch.zeros((), device=runtime.device)
    scaler.scale(loss_sum)  # makes the scaler's factor, also on a rank that has no sequence
    sums: dict[str, Tensor] = {}
    for micro in micro_batches:
        micro = micro.to(runtime.device)
        torch.manual_seed(micro.seed)  # of dropout: a resumed run draws what the whole one would have drawn
        with runtime.autocast():
            loss, terms = loss_of(micro)
        if loss.requires_grad:  # not so where theseus drew no layer of the student: the gradient is zero
            scaler.scale(loss).backward()
        loss_sum += loss.detach()
        for name, term in terms.items():
            sums[name] = sums.get(name, 0) + term
    return Sums(loss_sum, sums)


def update(model: nn.Module, optimizer: torch.optim.Optimizer, sums: Sums, counts: dict[str, int],
           scaler: torch.amp.GradScaler, runtime: Runtime, clip: float, stopping: bool = False
           ) -> tuple[dict, bool]:
    """Sums the gradients over the ranks, clips their norm to `clip`, and updates the model.

    `counts` is what each term is divided by: the count of the whole step. Returns the figures of the step,
    which are `loss`, the terms so divided, `grad_norm` (before clipping) and `skipped` (a loss or gradient
    that is not finite: no rank updates its model), and whether any rank is `stopping`. Waits for the device
    once.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    for p in parameters:
        if p.grad is None:  # on a rank that had no sequence
            p.grad = torch.zeros_like(p)
    names = sorted(counts)  # the same order on every rank, also on one that has no terms
    zero = torch.zeros((), device=runtime.device)
    figures = torch.stack([sums.loss, *(sums.terms.get(name, zero).float() for name in names),
                           torch.full_like(zero, stopping)])
    runtime.sum_over_ranks([p.grad for p in parameters] + [figures])
    scaler.unscale_(optimizer)
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])  # L2, of all gradients together
    norm, loss, *totals, stop = torch.cat([norm[None], figures]).tolist()  # the one wait for the device
    finite = math.isfinite(loss) and math.isfinite(norm)
    if finite:
        if norm > clip:
            torch._foreach_mul_([p.grad for p in parameters], clip / (norm + 1e-6))
        scaler.step(optimizer)
    scaler.update()
    terms = {name: total / counts[name] for name, total in zip(names, totals) if name in sums.terms}
    return {"loss": loss, **terms, "grad_norm": norm, "skipped": not finite}, stop > 0


def freeze_unread(model: nn.Module, loss_of: Callable, micro, runtime: Runtime) -> None:
    """Freezes the parameters that the loss of any micro-batch does not read; called once, before the first
    step.

    In MiniLM these are all parameters after the queries, keys and values of the last layer. They get no
    gradient, but weight decay would shrink them, and LAMB would scale even the smallest decay to the whole
    rate.
    """
    with runtime.autocast():
        loss, _ = loss_of(micro.to(runtime.device))
    parameters = [p for p in model.parameters() if p.requires_grad]
    for p, gradient in zip(parameters, torch.autograd.grad(loss, parameters, allow_unused=True)):
        p.requires_grad_(gradient is not None)


def consecutive_skips(before: int, figures: dict, scaler: torch.amp.GradScaler, step: int) -> int:
    """The number of consecutive skipped steps: `before` and this one. Raises `UserError` at the fifth.

    Under fp16 the loss scale is found by skipping: a skip counts once the scale can fall no further.
    """
    skipped = before + 1 if figures["skipped"] and scaler.get_scale() <= 1 else 0
    if skipped == 5:
        raise UserError(f"loss or gradient not finite in {skipped} consecutive steps (step {step}). Lower "
                        "--lr or use --precision fp32. The checkpoints are good: --resume continues from the "
                        "last one")
    return skipped
