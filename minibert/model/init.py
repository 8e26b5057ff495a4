"""The random weights of a new model, and building a model without random weights."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from minibert.model.encoder import Encoder


def truncated_normal_(weight: Tensor, std: float, generator: torch.Generator | None = None) -> None:
    """Fills a weight with random values from N(0, std), truncated at two sigma, as BERT does."""
    nn.init.trunc_normal_(weight, 0.0, std, -2 * std, 2 * std, generator=generator)


def init_weights(model: nn.Module, generator: torch.Generator | None = None) -> nn.Module:
    """Initialises in place as BERT did:
    weights from N(0, initializer_range) truncated at two sigma, biases 0, LayerNorm 1 and 0.

    The row of [PAD] in the word table is zero, as in the Hugging Face models. Returns the model.
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
                nn.init.zeros_(parameter)  # the MLM head's own bias over the vocabulary
    return model


class _Undrawn(TorchFunctionMode):
    """torch.nn.init leaves tensors as they are."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"]
        return function(*args, **(kwargs or {}))


def on_meta(build: Callable[..., nn.Module], *arguments, **more) -> nn.Module:
    """`build(*arguments, **more)` with shapes and without memory for its tensors.

    The first random weights of modules are skipped, since their tensors have no memory. Otherwise torch would
    import its compiler for a normal distribution, which takes more than a second.
    """
    with torch.device("meta"), _Undrawn():
        return build(*arguments, **more)
