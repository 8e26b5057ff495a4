"""The encoder of BERT (Devlin et al. 2018) and DistilBERT (Sanh et al. 2019), over packed batches.

The encoder is a post-LN transformer: a block computes y = LN(x + attention(x)), and then LN(y +
feed-forward(y)). config.py lists the letters of the shapes.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minibert.common.errors import UserError
from minibert.model.attention import attend
from minibert.model.batch import Batch
from minibert.model.config import Config
from minibert.model.dropout import dropout


class Trace(NamedTuple):
    """The hidden states, queries, keys and values of N tokens, for distillation. `hiddens[0]` is the
    embedding output. L is the number of layers that were computed. Each layer has H heads of size E.
    """

    hiddens: tuple[Tensor, ...]  # L + 1 tensors (N, D)
    queries: tuple[Tensor, ...]  # L tensors (N, H, E), without the factor 1 / sqrt(E)
    keys: tuple[Tensor, ...]  # L tensors (N, H, E)
    values: tuple[Tensor, ...]  # L tensors (N, H, E)


def activation(name: str, x: Tensor) -> Tensor:
    """Applies the function `name`: "gelu" (GELU with erf), "gelu_tanh" (GELU with tanh) or "relu" (ReLU)."""
    if name == "relu":
        return F.relu(x)
    # a model needs the kind of GELU that it was trained with, because the two kinds differ by up to 5e-4
    return F.gelu(x, approximate="tanh" if name == "gelu_tanh" else "none")


class Layer(nn.Module):
    """A block of the transformer: attention, then the feed-forward network."""

    def __init__(self, config: Config):
        super().__init__()
        D, F_ = config.hidden_size, config.intermediate_size
        self.config = config
        # `query`, `key` and `value` each compute all H heads in one matrix product; a head has E of D outputs
        self.query, self.key, self.value, self.out = (nn.Linear(D, D) for _ in range(4))
        self.attention_norm = nn.LayerNorm(D, config.norm_eps)
        self.up, self.down = nn.Linear(D, F_), nn.Linear(F_, D)
        self.output_norm = nn.LayerNorm(D, config.norm_eps)

    def forward(self, x: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Takes hidden states (N, D) of N tokens. Returns four tensors: the block's output (N, D), and its
        queries, keys and values, each (N, H, E) for H heads of size E.
        """
        c = self.config
        q, k, v = (project(x).unflatten(-1, (c.heads, c.head_size))  # (N, H, E)
                   for project in (self.query, self.key, self.value))
        # Attention is the only operation that mixes tokens (Vaswani et al. 2017, section 3.2).
        context = attend(q, k, v, batch, c.attention_dropout if self.training else 0.0)
        attended = self.out(context.flatten(-2))  # (N, D)
        if c.architecture == "bert":
            attended = dropout(attended, c.dropout, self.training)
        x = self.attention_norm(x + attended)
        hidden = activation(c.activation, self.up(x))  # (N, F)
        return self.output_norm(x + dropout(self.down(hidden), c.dropout, self.training)), q, k, v


class Encoder(nn.Module):
    """The embeddings and the L layers of a BERT or DistilBERT, and a pooler if `pooler` is true."""

    def __init__(self, config: Config, pooler: bool = False):
        super().__init__()
        D = config.hidden_size
        self.config = config
        self.word = nn.Embedding(config.vocab_size, D)
        self.position = nn.Embedding(config.max_positions, D)
        self.segment = nn.Embedding(config.segments, D) if config.segments else None
        self.norm = nn.LayerNorm(D, config.norm_eps)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.pooler = nn.Linear(D, D) if pooler else None

    def embed(self, batch: Batch) -> Tensor:
        """Adds the word, position and token-type vectors of N tokens, applies LayerNorm and dropout, and
        returns the embedding output (N, D). A model with `segments=0` has no token-type vectors. Without
        torch.compile, raises `UserError` if a sequence has more tokens than the model has positions.
        """
        # `lengths` is on the CPU, so the check does not wait for a GPU
        if not torch.compiler.is_compiling() and int(batch.lengths.max()) > self.config.max_positions:
            raise UserError(f"a sequence of {int(batch.lengths.max())} tokens is longer than the model's "
                            f"{self.config.max_positions} positions: cut it, or encode with max_length")
        x = self.words(batch)  # (N, D)
        if self.segment is not None:
            x = x + self.segment(batch.segments)
        x = self.norm(x + self.position(batch.positions))
        return dropout(x, self.config.dropout, self.training)

    def words(self, batch: Batch) -> Tensor:
        """Returns the word embedding of each of N tokens, (N, D)."""
        return self.word(batch.ids)

    def forward(self, batch: Batch) -> Tensor:
        """Returns the last hidden states of N tokens, (N, D)."""
        x = self.embed(batch)
        for layer in self.layers:
            x = layer(x, batch)[0]
        return x

    def trace(self, batch: Batch, layers: int | None = None) -> Trace:
        """Returns the `Trace` of the first `layers` layers (None: of all layers)."""
        hiddens, qkv = [self.embed(batch)], []
        for layer in self.layers[:layers]:
            x, *q_k_v = layer(hiddens[-1], batch)
            hiddens.append(x)
            qkv.append(q_k_v)
        return Trace(tuple(hiddens), *(tuple(per_layer) for per_layer in zip(*qkv)))

    def pool(self, last: Tensor, batch: Batch) -> Tensor:
        """Returns the pooler's output (S, D) for S sequences: tanh(W h + b), where h is the last hidden state
        of a sequence's [CLS]. The encoder needs a pooler.
        """
        return torch.tanh(self.pooler(last[batch.first_tokens]))
