"""Makes one vector for a text from the vectors of its tokens, as sentence encoders do.

Reimers and Gurevych 2019, "Sentence-BERT"; the names are those of sentence-transformers.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minibert.common.errors import UserError
from minibert.model.batch import Batch
from minibert.model.config import Config


class Normalize(nn.Module):
    """(S, D) -> the same vectors with length 1."""

    def forward(self, x: Tensor) -> Tensor:
        """(S, D) -> (S, D)."""
        return F.normalize(x, dim=-1)


@dataclass(frozen=True)
class SentencePooling:
    """How one vector is made from a text. The default is the mean of its tokens, with length 1."""

    modes: tuple[str, ...] = ("mean",)  # of POOLING, concatenated
    layers: nn.Sequential = field(default_factory=lambda: nn.Sequential(Normalize()))  # what comes after
    max_length: int | None = None  # tokens of a text that are read; None: as many as the model has positions
    lowercase: bool = False  # before the tokenizer, which may be cased
    prompt: str = ""  # the text before each text
    width: int | None = None  # number of the vector's elements that are kept; None: all
    refused: str | None = None  # the error message if no vector can be made

    def __call__(self, last: Tensor, batch: Batch) -> Tensor:
        """Last hidden states (N, D) -> vectors of the sequences (S, D'), fp32."""
        pooled = torch.cat([POOLING[mode](last.float(), batch) for mode in self.modes], -1)
        return self.layers.to(last.device)(pooled)[:, :self.width]

    def vector_width(self, config: Config) -> int:
        """How many numbers a vector of a model of this `config` has."""
        linear = [layer.out_features for layer in self.layers if isinstance(layer, nn.Linear)]
        width = linear[-1] if linear else len(self.modes) * config.hidden_size
        return min(width, self.width or width)


def pooling_of(model: nn.Module) -> SentencePooling:
    """How a model makes a vector of a text: as the files of sentence-transformers beside it say, else the
    default. `UserError` where the files ask for what is not known here.
    """
    pooling = getattr(model, "sentences", None) or SentencePooling()
    if pooling.refused:
        raise UserError(f"no vectors can be made with this model: {pooling.refused}")
    return pooling


def first(last: Tensor, batch: Batch) -> Tensor:
    """(N, D) -> (S, D), the state of [CLS]."""
    return last[batch.first_tokens]


def final(last: Tensor, batch: Batch) -> Tensor:
    """(N, D) -> (S, D), the state of the last token."""
    return last[batch.offsets[1:].long() - 1]


def maximum(last: Tensor, batch: Batch) -> Tensor:
    """(N, D) -> (S, D), the largest value of each unit."""
    return torch.segment_reduce(last, "max", lengths=batch.lengths.to(last.device))


def weighted_sum(last: Tensor, batch: Batch, weights: Tensor) -> Tensor:
    """(N, D), (N,) -> (S, D)."""
    lengths = batch.lengths.to(last.device)
    sequence = torch.arange(len(lengths), device=last.device).repeat_interleave(
        lengths, output_size=len(last))  # (N,); with output_size, or a GPU would be asked for the sum
    return last.new_zeros(len(lengths), last.shape[1]).index_add_(0, sequence, last * weights[:, None])


def mean(last: Tensor, batch: Batch, power: float = 1.0) -> Tensor:
    """(N, D) -> (S, D): the sum over the tokens divided by their number, or by a power of it."""
    lengths = batch.lengths.to(last.device)[:, None]  # (S, 1)
    return weighted_sum(last, batch, torch.ones_like(last[:, 0])) / lengths ** power


def weighted_mean(last: Tensor, batch: Batch) -> Tensor:
    """(N, D) -> (S, D): the first token counts once, the second twice, and so on."""
    weights = (batch.positions + 1).float()  # (N,)
    total = weighted_sum(weights[:, None], batch, torch.ones_like(weights))  # (S, 1)
    return weighted_sum(last, batch, weights) / total


POOLING = {"cls": first, "max": maximum, "mean": mean,
           "mean_sqrt_len_tokens": lambda last, batch: mean(last, batch, 0.5),
           "weightedmean": weighted_mean, "lasttoken": final}
