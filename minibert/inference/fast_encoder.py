"""Makes a fast copy of a trained model for inference.

    model = minibert.fast(minibert.load(folder), "int8")
    minibert.predict(model, tokenizer, texts)

The fast copy has a `FastLayer` in place of each layer. On a CPU, the weights of the layers are packed (stored
in the order that the matrix kernel needs) if torch has a kernel for packed weights. Embeddings and output
heads are in fp32. On CUDA, attention has the precision `mode` (the argument of `fast`). On a CPU, attention
is in bf16 if `mode` is "bf16" and the CPU has AMX, otherwise in fp32.
"""

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from minibert.common.errors import UserError
from minibert.common.runtime import PRECISIONS, native_bf16
from minibert.inference.packed_linear import HalfWeights, Packed, Plain, best_int8
from minibert.model.attention import attend, forward_in_half_pays
from minibert.model.batch import Batch
from minibert.model.encoder import Layer
from minibert.model.heads import encoder_of

MODES = ("fp32", "fp16", "bf16", "int8")


class FastLayer(nn.Module):
    """A copy of a `Layer` for inference. One matrix product computes the queries, keys and values together.
    `product(weight, bias, activation)` returns a module that computes one matrix product and the activation.
    """

    def __init__(self, layer: Layer, product):
        super().__init__()
        self.config = layer.config
        three = (layer.query, layer.key, layer.value)
        self.qkv = product(torch.cat([x.weight for x in three]), torch.cat([x.bias for x in three]))
        self.out = product(layer.out.weight, layer.out.bias)
        self.up = product(layer.up.weight, layer.up.bias, layer.config.activation)
        self.down = product(layer.down.weight, layer.down.bias)
        self.attention_norm, self.output_norm = layer.attention_norm, layer.output_norm

    def forward(self, x: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Takes the hidden states of N tokens, (N, D) for hidden size D. Returns the layer's output (N, D)
        and the layer's queries, keys and values, each (N, H, E) for H heads of size E.
        """
        c = self.config
        q, k, v = self.qkv(x).unflatten(-1, (3, c.heads, c.head_size)).unbind(1)  # (N, H, E) each
        x = self.attention_norm(x + self.out(attend(q, k, v, batch).flatten(-2)))
        return self.output_norm(x + self.down(self.up(x))), q, k, v

    def train(self, mode: bool = True) -> nn.Module:
        """Raises `UserError` if `mode` is true, because a fast layer cannot be trained."""
        if mode:
            raise UserError("a fast model is for inference only; train the model that it was made from")
        return super().train(mode)

    def _save_to_state_dict(self, *args) -> None:
        raise UserError("a fast model cannot be saved; save the model that it was made from")


@torch.no_grad()
def fast(model: nn.Module, mode: str = "fp32") -> nn.Module:
    """Returns a copy of `model` for inference. The copy takes the same arguments as `model`, and shares the
    tensors of embeddings, norms and heads with `model`. The copy cannot be trained or saved. Its attribute
    `kernels` is a text with the names of the kernels.

    `mode` is the precision of the encoder's matrix products:

    - "fp32"
    - "bf16", only on hardware with native bf16
    - "fp16": on CUDA, weights and arithmetic are in fp16; on an x86 CPU, only the stored weights are in fp16
    - "int8", only on x86 CPUs

    Raises `UserError` if the model is no BERT or DistilBERT, or if the device does not support the mode.
    """
    model = getattr(model, "_orig_mod", model)  # the model inside the wrapper of torch.compile
    product, kernels = kernels_of(mode, next(model.parameters()).device)
    foreign = next((layer for layer in encoder_of(model).layers if not isinstance(layer, Layer)), None)
    if foreign is not None:
        raise UserError("a fast copy can be made of a BERT or DistilBERT only, and this model has layers of "
                        f"the class {type(foreign).__name__}")
    # `deepcopy` takes the parameters from this dict, so the copy shares the tensors of `model`
    shared = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    made = copy.deepcopy(model, shared).eval()
    encoder = encoder_of(made)
    encoder.layers = nn.ModuleList(FastLayer(layer, product) for layer in encoder.layers)
    made.kernels = kernels
    return made


def kernels_of(mode: str, device: torch.device) -> tuple[Callable[..., nn.Module], str]:
    """Chooses the kernels for a mode and a device. Returns the argument `product` of `FastLayer`, and a text
    that names the kernels. Raises `UserError` if the device does not support the mode.
    """
    if mode not in MODES:
        raise UserError(f"mode {mode!r} is not known: {', '.join(MODES)}")
    on_cpu, attention = device.type == "cpu", "fp32"
    if mode == "bf16" and not native_bf16(device):
        raise UserError("bf16 is not native here: this processor would emulate it, slower than fp32; take "
                        "fp32, fp16 or int8")
    if mode in ("fp32", "bf16") or not on_cpu and mode == "fp16":
        dtype = PRECISIONS[mode]
        kernel = Packed if on_cpu and Packed.runs(dtype) else Plain
        product = kernel if mode == "fp32" else partial(rounded, kernel, dtype)
        attention = mode if not on_cpu or (mode == "bf16" and forward_in_half_pays()) else "fp32"
    else:
        kernel = product = None if not on_cpu else best_int8() if mode == "int8" else (
            HalfWeights if HalfWeights.runs() else None)
    if kernel is None:
        raise UserError(f"mode {mode} does not run on {'this processor' if on_cpu else device.type}: "
                        "torch has its kernels for x86 processors only; take fp32 or bf16")
    return product, f"{mode}: {kernel.name}; attention in {attention}"


def rounded(kernel: type[Plain], dtype: torch.dtype, weight: Tensor, bias: Tensor,
            activation: str | None = None) -> Plain:
    """Makes a module for a matrix product in 16 bits. `rounded` converts the weights once. Autocast would
    convert the weights in every forward pass.
    """
    return kernel(weight.to(dtype), bias.to(dtype), activation)
