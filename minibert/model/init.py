"""Gives a new model random weights, or builds a model on the meta device, where tensors need no memory."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from minibert.model.encoder import Encoder


def truncated_normal_(weight: Tensor, std: float, generator: torch.Generator | None = None) -> None:
    """Fills a weight with normal random numbers of mean 0 and standard deviation `std`. As in BERT, all
    numbers are from -2 `std` to 2 `std`.
    """
    nn.init.trunc_normal_(weight, 0.0, std, -2 * std, 2 * std, generator=generator)


def init_weights(model: nn.Module, generator: torch.Generator | None = None) -> nn.Module:
    """Gives a model random weights in place, as in BERT, and returns the model. The weights of linear layers
    and embeddings are drawn with `truncated_normal_`, with `initializer_range` as the standard deviation.
    Biases are 0, and the weights of a LayerNorm are 1. The word embedding of [PAD] is zero, as in the Hugging
    Face models.
    """
    std = next(module.config.initializer_range for module in model.modules() if hasattr(module, "config"))
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, (nn.Linear, nn.Embedding)):
            truncated_normal_(module.weight, std, generator)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in model.modules():
        if isinstance(module, Encoder):
            with torch.no_grad():
                module.word.weight[module.config.pad_id].zero_()
        for name, parameter in module.named_parameters(recurse=False):
            if name == "bias" and not isinstance(module, (nn.Linear, nn.LayerNorm)):
                # the bias of the MLM head belongs to no linear layer, so the loop above does not set it to 0
                nn.init.zeros_(parameter)
    return model


class _Undrawn(TorchFunctionMode):
    """While this mode is active, the functions of torch.nn.init do nothing."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"]
        return function(*args, **(kwargs or {}))


def on_meta(build: Callable[..., nn.Module], *arguments, **more) -> nn.Module:
    """Returns `build(*arguments, **more)` on the meta device: a module whose tensors have shapes but no
    memory. No random weights are drawn, because torch would import its compiler to draw normal random numbers
    for the meta device. This import is slow.
    """
    with torch.device("meta"), _Undrawn():
        return build(*arguments, **more)
