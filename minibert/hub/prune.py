"""Makes a smaller model from the weights of a larger model, without training. The smaller model has the same
kind of head as the larger model. It must then be trained (`train.py --method mlm --student FOLDER`, or
`finetune.py`). This training takes much less time than training from random weights.
"""

import re
from dataclasses import replace

import torch
from torch import Tensor, nn

from minibert.common.errors import UserError
from minibert.data.tokenizer import Tokenizer
from minibert.model.config import MobileConfig
from minibert.model.encoder import Encoder
from minibert.model.heads import build_encoder, encoder_of


@torch.no_grad()
def keep_layers(model: nn.Module, layers: list[int]) -> nn.Module:
    """Returns a copy of the model that has only the layers whose numbers are in `layers`, in the order of
    `layers`. The first layer of the model has the number 0.
    """
    if not layers or not all(0 <= i < model.config.layers for i in layers):
        raise UserError(f"layers {layers} are not among the layers of the model "
                        f"(0 to {model.config.layers - 1})")
    whole = model.state_dict()
    weights = {name: tensor for name, tensor in whole.items() if not re.match(LAYER, name)}
    for i, source in enumerate(layers):
        for name, tensor in whole.items():
            layer = re.match(LAYER, name)
            if layer and int(layer[2]) == source:
                weights[f"{layer[1]}{i}{name[layer.end(2):]}"] = tensor
    return _like(model, weights, layers=len(layers))


LAYER = r"((?:encoder\.)?layers\.)(\d+)"


@torch.no_grad()
def keep_units(model: nn.Module, units: int) -> nn.Module:
    """Returns a copy of the model with only `units` feed-forward units in each layer.

    For each token, a unit adds the vector activation(w_in x + b) w_out to the hidden state. All units of a
    layer have the same input x, which comes from a LayerNorm. So the product of two norms, |w_in| |w_out|,
    estimates the effect of a unit. In each layer, the units with the largest products are kept.
    """
    if isinstance(model.config, MobileConfig):
        raise UserError("feed-forward units can be kept of a BERT or DistilBERT only, and this model is a "
                        "MobileBERT: keep fewer layers instead")
    if not 1 <= units <= model.config.intermediate_size:
        raise UserError(f"{units} feed-forward units cannot be kept of {model.config.intermediate_size}")
    weights = model.state_dict()
    for i, layer in enumerate(encoder_of(model).layers):
        size = layer.up.weight.norm(dim=1) * layer.down.weight.norm(dim=0)  # (F,) for F units
        kept = size.topk(units).indices.sort().values
        for name, rows in (("up.weight", 0), ("up.bias", 0), ("down.weight", 1)):
            name = f"{_prefix(model)}layers.{i}.{name}"
            weights[name] = weights[name].index_select(rows, kept)
    return _like(model, weights, intermediate_size=units)


@torch.no_grad()
def change_vocabulary(model: nn.Module, old: Tokenizer, new: Tokenizer) -> nn.Module:
    """Returns a copy of the model with the vocabulary of the tokenizer `new`. `old` is the tokenizer of the
    model.

    A token that is in both vocabularies keeps its word embedding. Any other token is new. The old tokenizer
    divides a new token into old tokens, and the new token gets the mean of their word embeddings. The MLM
    head of MobileBERT has additional weights for each token, which are computed in the same way.

    In an MLM head, the bias of a token is roughly the log of the token's frequency. A new token is rarer than
    each of the old tokens into which the old tokenizer divides it. So the smallest bias of these old tokens
    becomes the bias of the new token.
    """
    word, mlm = encoder_of(model).word.weight, getattr(model, "mlm", None)
    table = word if mlm is None else mlm.table(word)
    rows = torch.empty(new.vocab_size, table.shape[1])  # (V, D)
    biases = torch.empty(new.vocab_size)  # (V,)
    for i, piece in enumerate(new.vocabulary):
        ids = [old.piece_to_id(piece)]
        if ids[0] == old.unk_id and piece != old.names[1]:
            ids = old.pieces([piece.removeprefix("##")])[0] or ids
        rows[i] = table[ids].mean(0)
        if mlm is not None:
            biases[i] = mlm.bias[ids].min()
    width = model.config.embedding_size
    weights = {**model.state_dict(), f"{_prefix(model)}word.weight": rows[:, :width]}
    if mlm is not None:
        weights["mlm.bias"] = biases
        if mlm.extra is not None:
            weights["mlm.extra.weight"] = rows[:, width:].t()
    return _like(model, weights, vocab_size=new.vocab_size, pad_id=new.pad_id)


@torch.no_grad()
def keep_positions(model: nn.Module, positions: int) -> nn.Module:
    """Returns a copy of the model that has only the first `positions` positions."""
    if not 1 <= positions <= model.config.max_positions:
        raise UserError(f"{positions} positions cannot be kept of {model.config.max_positions}")
    name = f"{_prefix(model)}position.weight"
    weights = model.state_dict()
    return _like(model, {**weights, name: weights[name][:positions]}, max_positions=positions)


def _prefix(model: nn.Module) -> str:
    # returns the start of the names of the encoder's tensors in the model's state dict
    return "" if isinstance(model, Encoder) else "encoder."


def _like(model: nn.Module, weights: dict[str, Tensor], **changed) -> nn.Module:
    # returns a new model of the same class as `model`, with the tensors `weights`; `changed` replaces fields
    # of the config
    config = replace(model.config, **changed)
    other = (build_encoder(config, model.pooler is not None) if isinstance(model, Encoder)
             else type(model)(config))
    other.load_state_dict(weights)  # copies the values, so the two models share no tensor
    return other.train(model.training)
