"""Computes one vector for each text from the hidden states of its tokens (Reimers and Gurevych 2019,
"Sentence-BERT"). The argument `last` of the functions has the encoder's last hidden states (N, D) of the
N tokens of S sequences.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minibert.common.errors import UserError
from minibert.model.batch import Batch
from minibert.model.config import Config


class Normalize(nn.Module):
    """Divides each vector by its Euclidean length."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns x / |x| for each of S vectors x of width D, (S, D)."""
        return F.normalize(x, dim=-1)


@dataclass(frozen=True)
class SentencePooling:
    """Computes the vector of each text. The fields are the settings."""

    modes: tuple[str, ...] = ("mean",)  # keys of POOLING; the pooled vectors of all modes are concatenated
    # these modules map the pooled vector to the sentence vector
    layers: nn.Sequential = field(default_factory=lambda: nn.Sequential(Normalize()))
    # the largest number of tokens of a text that are read; None: the model's number of positions
    max_length: int | None = None
    lowercase: bool = False
    prompt: str = ""  # put before each text
    width: int | None = None  # only the first `width` elements of a vector are kept; None: all
    refused: str | None = None  # the reason why vectors cannot be computed; None: they can

    def __call__(self, last: Tensor, batch: Batch) -> Tensor:
        """Returns the vectors of S sequences in fp32, (S, W). W is the width that `vector_width` returns."""
        pooled = torch.cat([POOLING[mode](last.float(), batch) for mode in self.modes], -1)
        return self.layers.to(last.device)(pooled)[:, :self.width]

    def vector_width(self, config: Config) -> int:
        """Returns the width of the sentence vectors of a model with this `config`."""
        linear = [layer.out_features for layer in self.layers if isinstance(layer, nn.Linear)]
        width = linear[-1] if linear else len(self.modes) * config.hidden_size
        return min(width, self.width or width)


def pooling_of(model: nn.Module) -> SentencePooling:
    """Returns `model.sentences`, if the model has this attribute and it is not None. Otherwise, returns the
    default `SentencePooling`. Raises `UserError` if minibert does not support the model's pooling.
    """
    pooling = getattr(model, "sentences", None) or SentencePooling()
    if pooling.refused:
        raise UserError(f"no vectors can be made with this model: {pooling.refused}")
    return pooling


def first(last: Tensor, batch: Batch) -> Tensor:
    """Returns the hidden state of [CLS] in each of S sequences, (S, D)."""
    return last[batch.first_tokens]


def final(last: Tensor, batch: Batch) -> Tensor:
    """Returns the hidden state of the last token of each of S sequences, (S, D)."""
    return last[batch.offsets[1:].long() - 1]


def maximum(last: Tensor, batch: Batch) -> Tensor:
    """Returns, for each of S sequences, the largest value of each hidden unit over the tokens, (S, D)."""
    return torch.segment_reduce(last, "max", lengths=batch.lengths.to(last.device))


def weighted_sum(last: Tensor, batch: Batch, weights: Tensor) -> Tensor:
    """Returns the weighted sum of the hidden states of each of S sequences, (S, D). `weights` (N,) has the
    weight of each of the N tokens.
    """
    lengths = batch.lengths.to(last.device)
    sequence = torch.arange(len(lengths), device=last.device).repeat_interleave(
        lengths, output_size=len(last))  # (N,); without `output_size`, torch would wait for the GPU
    return last.new_zeros(len(lengths), last.shape[1]).index_add_(0, sequence, last * weights[:, None])


def mean(last: Tensor, batch: Batch, power: float = 1.0) -> Tensor:
    """Returns one vector for each of S sequences, (S, D): the sum of the hidden states of its T tokens,
    divided by T^`power`.
    """
    lengths = batch.lengths.to(last.device)[:, None]  # (S, 1)
    return weighted_sum(last, batch, torch.ones_like(last[:, 0])) / lengths ** power


def weighted_mean(last: Tensor, batch: Batch) -> Tensor:
    """Returns the weighted mean of the hidden states of each of S sequences, (S, D). The weight of a token is
    its position in the sequence, counted from 1.
    """
    weights = (batch.positions + 1).float()  # (N,)
    total = weighted_sum(weights[:, None], batch, torch.ones_like(weights))  # (S, 1)
    return weighted_sum(last, batch, weights) / total


POOLING = {"cls": first, "max": maximum, "mean": mean,
           "mean_sqrt_len_tokens": lambda last, batch: mean(last, batch, 0.5),
           "weightedmean": weighted_mean, "lasttoken": final}
