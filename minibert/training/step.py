"""Computes one optimiser step in two functions, `accumulate` and `update`."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from minibert.common.errors import UserError
from minibert.common.runtime import Runtime


class Sums(NamedTuple):
    """The loss and the loss terms, summed over the micro-batches of one rank. All tensors are detached."""

    loss: Tensor  # the part of the step's loss that comes from this rank
    terms: dict[str, Tensor]  # the sum of each loss term, not divided by a number of tokens or sequences


def accumulate(model: nn.Module, loss_of: Callable, micro_batches: list, scaler: torch.amp.GradScaler,
               runtime: Runtime) -> Sums:
    """Runs the forward and backward pass of each micro-batch. The gradients of all micro-batches are summed
    in `model`. The list of micro-batches may be empty. `loss_of(micro)` returns two results: the part of the
    step's loss that comes from one micro-batch, and a dict with the detached sum of each loss term over the
    micro-batch.
    """
    model.zero_grad()
    loss_sum = torch.zeros((), device=runtime.device)
    scaler.scale(loss_sum)  # creates the loss scale, which `update` needs even if there is no micro-batch
    sums: dict[str, Tensor] = {}
    for micro in micro_batches:
        micro = micro.to(runtime.device)
        # seeds dropout, so that a resumed run draws the same numbers as a run without a stop
        torch.manual_seed(micro.seed)
        with runtime.autocast():
            loss, terms = loss_of(micro)
        if loss.requires_grad:  # false if the method theseus uses no layer of the student in this step
            scaler.scale(loss).backward()
        loss_sum += loss.detach()
        for name, term in terms.items():
            sums[name] = sums.get(name, 0) + term
    return Sums(loss_sum, sums)


def update(model: nn.Module, optimizer: torch.optim.Optimizer, sums: Sums, counts: dict[str, int],
           scaler: torch.amp.GradScaler, runtime: Runtime, clip: float, stopping: bool = False
           ) -> tuple[dict, bool]:
    """Sums the gradients over the ranks, clips their norm to at most `clip`, and updates the model. The sums
    need no division, because each micro-batch's loss was already divided by the counts of the whole step.

    Returns two results: a dict with figures about the step, and a bool that is True if `stopping` is true on
    any rank. The dict has the entries `loss`, `grad_norm` (before clipping) and `skipped`, and one entry for
    each loss term: its sum divided by its number in `counts`. All ranks skip the update if the loss or the
    gradient is not finite.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    for p in parameters:
        if p.grad is None:  # a rank without micro-batches adds zeros to the sum over ranks
            p.grad = torch.zeros_like(p)
    names = sorted(counts)  # all ranks need the same order, because they sum the terms in one tensor
    zero = torch.zeros((), device=runtime.device)
    figures = torch.stack([sums.loss, *(sums.terms.get(name, zero).float() for name in names),
                           torch.full_like(zero, stopping)])
    runtime.sum_over_ranks([p.grad for p in parameters] + [figures])
    scaler.unscale_(optimizer)
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
    # `tolist` waits for the device, so one call reads all figures
    norm, loss, *totals, stop = torch.cat([norm[None], figures]).tolist()
    finite = math.isfinite(loss) and math.isfinite(norm)
    if finite:
        if norm > clip:
            torch._foreach_mul_([p.grad for p in parameters], clip / (norm + 1e-6))
        scaler.step(optimizer)
    scaler.update()
    terms = {name: total / counts[name] for name, total in zip(names, totals) if name in sums.terms}
    return {"loss": loss, **terms, "grad_norm": norm, "skipped": not finite}, stop > 0


def freeze_unread(model: nn.Module, loss_of: Callable, micro, runtime: Runtime) -> None:
    """Freezes the parameters that get no gradient from the loss of the micro-batch `micro`. In MiniLM, for
    example, all parameters after the queries, keys and values of the last layer get no gradient. Without
    freezing, weight decay would shrink these parameters, and LAMB would shrink them fast.
    """
    with runtime.autocast():
        loss, _ = loss_of(micro.to(runtime.device))
    parameters = [p for p in model.parameters() if p.requires_grad]
    for p, gradient in zip(parameters, torch.autograd.grad(loss, parameters, allow_unused=True)):
        p.requires_grad_(gradient is not None)


def consecutive_skips(before: int, figures: dict, scaler: torch.amp.GradScaler, step: int) -> int:
    """Returns how many steps in a row have been skipped, the current step included. `before` is the number of
    skipped steps in a row before the current step. A skipped step counts only if the loss scale is at most 1.
    A larger loss scale occurs only in fp16, and there skipped steps are normal: each one lowers the loss
    scale. Raises `UserError` after five skipped steps in a row.
    """
    skipped = before + 1 if figures["skipped"] and scaler.get_scale() <= 1 else 0
    if skipped == 5:
        raise UserError(f"loss or gradient not finite in {skipped} consecutive steps (step {step}). Lower "
                        "--lr or use --precision fp32. The checkpoints are good: --resume continues from the "
                        "last one")
    return skipped
