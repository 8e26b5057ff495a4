"""One optimiser step: the same for every script, every method, any number of micro-batches and ranks."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from minibert.common.errors import UserError
from minibert.common.runtime import Runtime


def training_step(model: nn.Module, loss_of: Callable, micro_batches: list, counts: dict[str, int],
                  optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, runtime: Runtime, lr: float,
                  clip: float, stopping: bool = False, rates: list[float] | None = None) -> dict:
    """Forward and backward over all micro-batches, one sum over ranks, clip, update.

    `loss_of(micro)` gives a micro-batch's share of the step's loss and detached sums by name; `counts` what
    each sum is divided by: the count of the whole step. `rates`: what `lr` is multiplied with for each part
    of the model (optim.parameter_groups). A parameter that no loss reads keeps its value. Returns the terms
    so divided, `loss`, `grad_norm` (before clipping), `skipped` (a non-finite loss or gradient: no update
    on any rank) and `stopping` (true when any rank is to stop). The device is waited for once.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer.zero_grad()
    loss_sum = torch.zeros((), device=runtime.device)
    scaler.scale(loss_sum)  # makes its factor, also on a rank that has no sequence
    sums: dict[str, Tensor] = {}
    for micro in micro_batches:
        micro = micro.to(runtime.device)
        torch.manual_seed(micro.seed)
        with runtime.autocast():
            loss, terms = loss_of(micro)
        scaler.scale(loss).backward()
        loss_sum += loss.detach()
        for name, term in terms.items():
            sums[name] = sums.get(name, 0) + term

    # sum over the ranks, unscale, guard, clip, update
    names = sorted(counts)  # the same on every rank, also on one that had no sequence
    zero = torch.zeros((), device=runtime.device)
    flags = torch.tensor([stopping, *(p.grad is not None for p in parameters)], dtype=torch.float32)
    figures = torch.cat([torch.stack([loss_sum, *(sums.get(name, zero).float() for name in names)]),
                         flags.to(runtime.device)])
    for p in parameters:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    runtime.sum_over_ranks([p.grad for p in parameters] + [figures])
    scaler.unscale_(optimizer)
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])  # L2, of all together
    norm, loss, *rest = torch.cat([norm[None], figures]).tolist()  # the one wait for the device
    totals, stop, readers = rest[:len(names)], rest[len(names)], rest[len(names) + 1:]
    finite = math.isfinite(loss) and math.isfinite(norm)
    if finite:
        # What no rank's terms read stays as it is, in MiniLM all that follows q, k, v in the last layer:
        # weight decay would shrink it, and LAMB scale up even the smallest decay to the whole rate.
        for p, ranks in zip(parameters, readers):
            if not ranks:
                p.grad = None
        parameters = [p for p in parameters if p.grad is not None]
        if norm > clip:
            torch._foreach_mul_([p.grad for p in parameters], clip / (norm + 1e-6))
        for group in optimizer.param_groups:
            group["lr"] = lr if rates is None else lr * rates[group["part"]]
        scaler.step(optimizer)
    scaler.update()
    terms = {name: total / counts[name] for name, total in zip(names, totals) if name in sums}
    return {"loss": loss, **terms, "grad_norm": norm, "skipped": not finite, "stopping": stop > 0}


def skipped_running(before: int, row: dict, scaler: torch.amp.GradScaler, step: int) -> int:
    """How many steps running were skipped, this one and the `before` ones; `UserError` at the fifth.

    Under fp16 a skip is how the loss scale settles; it counts once the scale can fall no further.
    """
    skipped = before + 1 if row["skipped"] and scaler.get_scale() <= 1 else 0
    if skipped == 5:
        raise UserError(f"loss or gradient not finite in {skipped} steps running (step {step}); lower --lr, "
                        "or use --precision fp32; checkpoints are whole, --resume goes on from the last")
    return skipped
