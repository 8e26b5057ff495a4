"""A smaller model cut out of a larger one without training:
fewer layers, a narrower feed-forward, another vocabulary.

The result needs training (`train.py --method mlm --student FOLDER`), but much less than random weights,
because it keeps the learned attention. The bundled teacher in weights/ started like this.
"""

from dataclasses import replace

import torch

from minibert.common.errors import UserError
from minibert.data.tokenizer import Tokenizer
from minibert.model.config import MobileConfig
from minibert.model.heads import MaskedLM


@torch.no_grad()
def keep_layers(model: MaskedLM, layers: list[int]) -> MaskedLM:
    """The model with only these of its layers (from 0), in this order."""
    if not layers or not all(0 <= i < model.config.layers for i in layers):
        raise UserError(f"layers {layers} are not among the {model.config.layers} of the model "
                        f"(0 to {model.config.layers - 1})")
    cut = _like(model, layers=len(layers))
    for layer, source in zip(cut.encoder.layers, layers):
        layer.load_state_dict(model.encoder.layers[source].state_dict())
    return cut


@torch.no_grad()
def keep_units(model: MaskedLM, units: int) -> MaskedLM:
    """The model with only `units` of each layer's F feed-forward units:
    those with the largest |w_in| |w_out|.

    A unit adds activation(w_in x + b) w_out to its token. Its input has the same scale for all units, because
    it comes from a LayerNorm. So the product of the two norms measures the effect of a unit, without any
    text.
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
    """The model with the vocabulary of another tokenizer.

    The row of a piece that both vocabularies have is copied, in MobileBERT with the head's own columns. Any
    other piece starts as the mean of the rows of its pieces in the old tokenizer. Its bias, the log of a
    frequency, starts as the smallest of theirs.
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
    """The model with only its first `positions` positions."""
    if not 1 <= positions <= model.config.max_positions:
        raise UserError(f"{positions} positions cannot be kept of {model.config.max_positions}")
    cut = MaskedLM(replace(model.config, max_positions=positions)).train(model.training)
    name = "encoder.position.weight"
    cut.load_state_dict({**model.state_dict(), name: model.state_dict()[name][:positions]})
    return cut


def _like(model: MaskedLM, **changed) -> MaskedLM:
    # a model of another shape with all weights but those of the layers, which the caller fills in
    other = MaskedLM(replace(model.config, **changed)).train(model.training)
    other.load_state_dict({name: tensor for name, tensor in model.state_dict().items()
                           if ".layers." not in name}, strict=False)
    return other
