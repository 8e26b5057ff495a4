"""Makes the optimisers AdamW and LAMB, and computes the learning rate of each step."""

import math
from collections.abc import Callable

import torch
from torch import nn


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Returns the learning rate at a step (counted from 0). The rate rises linearly to `peak` in the first
    `warmup` steps, and then falls linearly. The rate would be 0 at step `steps`, one step after the last.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (steps - step) / max(1, steps - warmup)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float,
                      factors: list[float] | None = None) -> None:
    """Sets the learning rate of the next update to `lr`. With `factors`, the rate of each part of the model
    is `lr` times the part's factor.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr if factors is None else lr * factors[group["part"]]


def parameter_groups(model: nn.Module, weight_decay: float,
                     part_of: Callable[[str], int] | None = None) -> list[dict]:
    """Divides all trainable parameters into groups, and returns the list of groups for a torch optimiser. All
    parameters of a group belong to one part of the model, and `group["part"]` is the number of this part.
    Biases and LayerNorms have their own groups, without weight decay. `part_of` maps the name of a parameter
    to the number of its part (None: the whole model is part 0).
    """
    groups, seen = {}, set()
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            # a parameter with two names is added once, because torch's optimisers refuse it in two groups
            if parameter.requires_grad and parameter not in seen:
                seen.add(parameter)
                plain = isinstance(module, nn.LayerNorm) or name == "bias"
                part = part_of(f"{prefix}.{name}") if part_of else 0
                groups.setdefault((part, plain), []).append(parameter)
    assert len(seen) == len([p for p in model.parameters() if p.requires_grad])
    return [{"params": groups[part, plain], "part": part, "weight_decay": 0.0 if plain else weight_decay,
             "adapt": not plain} for part, plain in sorted(groups)]


def adamw(model: nn.Module, betas: tuple[float, float], eps: float, weight_decay: float,
          part_of: Callable[[str], int] | None = None) -> torch.optim.AdamW:
    """Returns torch's fused AdamW with the groups of `parameter_groups`. Unlike the Adam in Google's BERT
    code, AdamW has bias correction.
    """
    return torch.optim.AdamW(parameter_groups(model, weight_decay, part_of), lr=0.0, betas=betas, eps=eps,
                             fused=True)


def lamb(model: nn.Module, betas: tuple[float, float], eps: float, weight_decay: float,
         part_of: Callable[[str], int] | None = None) -> "Lamb":
    """Returns `Lamb` with the groups of `parameter_groups`."""
    return Lamb(parameter_groups(model, weight_decay, part_of), betas, eps)


class Lamb(torch.optim.Optimizer):
    """The optimiser LAMB for large batches (You et al. 2020, algorithm 2), as in MobileBERT's
    lamb_optimizer.py. For a parameter tensor w with the gradient g:

        m = b1 m + (1 - b1) g,  v = b2 v + (1 - b2) g^2,  u = m / (sqrt(v) + eps) + weight_decay w
        w = w - lr |w| / |u| u

    |w| and |u| are norms over one parameter tensor. The ratio |w| / |u| is 1 if |w| or |u| is 0, and always 1
    for biases and LayerNorms. The paper applies bias correction to m and v, but MobileBERT's code and `Lamb`
    do not.
    """

    def __init__(self, params, betas: tuple[float, float], eps: float):
        super().__init__(params, dict(lr=0.0, betas=betas, eps=eps, weight_decay=0.0, adapt=True))

    @torch.no_grad()
    def step(self) -> None:
        """Updates every parameter that has a gradient."""
        for group in self.param_groups:
            weights = [w for w in group["params"] if w.grad is not None]
            if not weights:
                continue
            for w in weights:
                if not self.state[w]:
                    self.state[w] = {"exp_avg": torch.zeros_like(w), "exp_avg_sq": torch.zeros_like(w)}
            gradients = [w.grad for w in weights]
            m, v = ([self.state[w][name] for w in weights] for name in ("exp_avg", "exp_avg_sq"))
            b1, b2 = group["betas"]
            torch._foreach_lerp_(m, gradients, 1 - b1)
            torch._foreach_mul_(v, b2)
            torch._foreach_addcmul_(v, gradients, gradients, 1 - b2)
            roots = torch._foreach_sqrt(v)
            torch._foreach_add_(roots, group["eps"])
            u = torch._foreach_div(m, roots)
            if group["weight_decay"]:
                torch._foreach_add_(u, weights, alpha=group["weight_decay"])
            if group["adapt"]:
                w_norms, u_norms = (torch.stack(torch._foreach_norm(x)) for x in (weights, u))
                ratios = torch.where((w_norms > 0) & (u_norms > 0), w_norms / u_norms, 1.0)
                torch._foreach_mul_(u, list(ratios.unbind()))
            torch._foreach_add_(weights, u, alpha=-group["lr"])


def warmup_steps(proportion: float, steps: int) -> int:
    """Returns the number of warm-up steps: the share `proportion` of all steps, rounded up."""
    return math.ceil(proportion * steps)


OPTIMIZERS = {"adamw": adamw, "lamb": lamb}
