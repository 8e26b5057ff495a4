"""AdamW as the papers set it, the learning rate as a function of the step, and clipping."""

import math

import torch
from torch import Tensor, nn


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up over `warmup` steps, then linear decay to 0 after step `steps`;
    a pure function of the step (from 0).
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (steps - step) / max(1, steps - warmup)


def adamw(model: nn.Module, betas: tuple[float, float], eps: float, weight_decay: float) -> torch.optim.AdamW:
    """Fused AdamW over every trainable parameter once; biases and LayerNorms do not decay.

    note: Google's BERT has no bias correction in its Adam; torch's has, which only changes the first steps.
    """
    decay, no_decay, seen = [], [], set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and parameter not in seen:  # a tied table has two names
                seen.add(parameter)
                plain = isinstance(module, nn.LayerNorm) or name == "bias"
                (no_decay if plain else decay).append(parameter)
    assert len(decay) + len(no_decay) == len([p for p in model.parameters() if p.requires_grad])
    groups = [{"params": decay, "weight_decay": weight_decay}, {"params": no_decay, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=eps, fused=True)


def gradient_norm(parameters: list[Tensor]) -> Tensor:
    """The global L2 norm of all gradients, in fp32, as a tensor (no synchronisation)."""
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def warmup_steps(proportion: float, steps: int) -> int:
    """Steps of warm-up for a share of all steps, rounded up."""
    return math.ceil(proportion * steps)
