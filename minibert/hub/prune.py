"""Cuts a smaller model out of a larger model, without training. The smaller model has fewer layers, a smaller
feed-forward size, fewer positions or another vocabulary.

The smaller model must then be trained (`train.py --method mlm --student FOLDER`). This takes much less time
than training from random weights, because the model keeps the attention that the larger model has learned.
The bundled teacher in weights/ was made in this way.
"""

from dataclasses import replace

import torch

from minibert.common.errors import UserError
from minibert.data.tokenizer import Tokenizer
from minibert.model.config import MobileConfig
from minibert.model.heads import MaskedLM


@torch.no_grad()
def keep_layers(model: MaskedLM, layers: list[int]) -> MaskedLM:
    """A copy of the model that has only these layers (numbered from 0), in this order."""
    if not layers or not all(0 <= i < model.config.layers for i in layers):
        raise UserError(f"layers {layers} are not among the {model.config.layers} of the model "
                        f"(0 to {model.config.layers - 1})")
    cut = _like(model, layers=len(layers))
    for layer, source in zip(cut.encoder.layers, layers):
        layer.load_state_dict(model.encoder.layers[source].state_dict())
    return cut


@torch.no_grad()
def keep_units(model: MaskedLM, units: int) -> MaskedLM:
    """A copy of the model that keeps only `units` of the F feed-forward units of each layer. The units with
    the largest |w_in| |w_out| are kept.

    A unit adds activation(w_in x + b) w_out to the state of its token. The input x is the same for all units
    and comes from a LayerNorm. So the product of the two norms measures the effect of a unit, and no text is
    needed.
    """
    if isinstance(model.config, MobileConfig):
        raise UserError("feed-forward units can be kept of a BERT or DistilBERT only, and this model is a "
                        "MobileBERT: keep fewer layers instead")
    if not 1 <= units <= model.config.intermediate_size:
        raise UserError(f"{units} feed-forward units cannot be kept of {model.config.intermediate_size}")
    cut = _like(model, intermediate_size=units)
    for ours, theirs in zip(cut.encoder.layers, model.encoder.layers):
        weights = theirs.state_dict()
        size = weights["up.weight"].norm(dim=1) * weights["down.weight"].norm(dim=0)  # (F,)
        kept = size.topk(units).indices.sort().values
        for name, rows in (("up.weight", 0), ("up.bias", 0), ("down.weight", 1)):
            weights[name] = weights[name].index_select(rows, kept)
        ours.load_state_dict(weights)
    return cut


@torch.no_grad()
def change_vocabulary(model: MaskedLM, old: Tokenizer, new: Tokenizer) -> MaskedLM:
    """A copy of the model with the vocabulary of another tokenizer.

    If both vocabularies have a piece, its row in the word table is copied. In MobileBERT, the columns that
    only the MLM head has are also copied. The old tokenizer divides any other piece into old pieces, and the
    new row is the mean of their rows. The new MLM bias is the smallest of their biases, because a bias is
    roughly the log of a frequency.
    """
    table, bias = model.mlm.table(model.encoder.word.weight), model.mlm.bias
    rows = torch.empty(new.vocab_size, table.shape[1])  # (V, D)
    biases = torch.empty(new.vocab_size)  # (V,)
    for i, piece in enumerate(new.vocabulary):
        ids = [old.piece_to_id(piece)]
        if ids[0] == old.unk_id and piece != old.names[1]:
            ids = old.pieces([piece.removeprefix("##")])[0] or ids
        rows[i], biases[i] = table[ids].mean(0), bias[ids].min()
    changed = MaskedLM(replace(model.config, vocab_size=new.vocab_size, pad_id=new.pad_id))
    width = model.config.embedding_size
    weights = {**model.state_dict(), "encoder.word.weight": rows[:, :width], "mlm.bias": biases}
    if changed.mlm.extra is not None:
        weights["mlm.extra.weight"] = rows[:, width:].t()
    changed.load_state_dict(weights)
    return changed.train(model.training)


@torch.no_grad()
def keep_positions(model: MaskedLM, positions: int) -> MaskedLM:
    """A copy of the model that has only the first `positions` positions."""
    if not 1 <= positions <= model.config.max_positions:
        raise UserError(f"{positions} positions cannot be kept of {model.config.max_positions}")
    cut = MaskedLM(replace(model.config, max_positions=positions)).train(model.training)
    name = "encoder.position.weight"
    cut.load_state_dict({**model.state_dict(), name: model.state_dict()[name][:positions]})
    return cut


def _like(model: MaskedLM, **changed) -> MaskedLM:
    # a model of another shape with all weights except those of the layers, which the caller must set
    other = MaskedLM(replace(model.config, **changed)).train(model.training)
    other.load_state_dict({name: tensor for name, tensor in model.state_dict().items()
                           if ".layers." not in name}, strict=False)
    return other
