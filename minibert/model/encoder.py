"""The encoder of BERT (Devlin et al. 2018) and DistilBERT (Sanh et al. 2019), over packed batches.

Post-LN transformer: a block is LN(x + attention(x)), then LN(x + feed-forward(x)). Shapes: N tokens of the
batch, D hidden, H heads, E head size, F feed-forward (config.py has the alphabet).
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
    """The states inside an encoder that distillation compares.

    `hiddens` has L + 1 entries, the embedding output (after LayerNorm) first.
    """

    hiddens: tuple[Tensor, ...]  # (N, D) each
    queries: tuple[Tensor, ...]  # L times (N, H, E), not yet divided by sqrt(E)
    keys: tuple[Tensor, ...]  # likewise
    values: tuple[Tensor, ...]  # likewise


def activation(name: str, x: Tensor) -> Tensor:
    """GELU by the error function ("gelu", Hugging Face), by tanh ("gelu_tanh", Google's code), or ReLU."""
    if name == "relu":
        return F.relu(x)
    return F.gelu(x, approximate="tanh" if name == "gelu_tanh" else "none")  # the two differ by up to 5e-4


class Layer(nn.Module):
    """One transformer block."""

    def __init__(self, config: Config):
        super().__init__()
        D, F_ = config.hidden_size, config.intermediate_size
        self.config = config
        # one matrix for all H heads, which are its rows of E outputs each
        self.query, self.key, self.value, self.out = (nn.Linear(D, D) for _ in range(4))
        self.attention_norm = nn.LayerNorm(D, config.norm_eps)
        self.up, self.down = nn.Linear(D, F_), nn.Linear(F_, D)
        self.output_norm = nn.LayerNorm(D, config.norm_eps)

    def forward(self, x: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(N, D) -> the block's output (N, D) and its q, k, v (N, H, E each)."""
        c = self.config
        q, k, v = (project(x).unflatten(-1, (c.heads, c.head_size))  # (N, H, E)
                   for project in (self.query, self.key, self.value))
        # the only place where tokens see each other (Vaswani et al. 2017, section 3.2)
        context = attend(q, k, v, batch, c.attention_dropout if self.training else 0.0)
        attended = self.out(context.flatten(-2))  # (N, D)
        if c.architecture == "bert":  # note: DistilBERT has no dropout here
            attended = dropout(attended, c.dropout, self.training)
        # post-LN: the norm comes after the sum, not before the sublayer as in later models
        x = self.attention_norm(x + attended)
        hidden = activation(c.activation, self.up(x))  # (N, F)
        return self.output_norm(x + dropout(self.down(hidden), c.dropout, self.training)), q, k, v


class Encoder(nn.Module):
    """Embeddings and L layers: batch -> the last hidden states (N, D).

    `pool` returns BERT's [CLS] vector if the encoder has a pooler.
    """

    def __init__(self, config: Config, pooler: bool = False):
        super().__init__()
        D = config.hidden_size
        self.config = config
        self.word = nn.Embedding(config.vocab_size, D)
        self.position = nn.Embedding(config.max_positions, D)
        self.segment = nn.Embedding(config.segments, D) if config.segments else None  # token types
        self.norm = nn.LayerNorm(D, config.norm_eps)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.pooler = nn.Linear(D, D) if pooler else None

    def embed(self, batch: Batch) -> Tensor:
        """The embedding output (N, D): word + token type + position, LayerNorm, dropout.

        Raises `UserError` if a sequence is longer than the number of positions.
        """
        # lengths are on the CPU, so asking for them does not wait for a GPU
        if not torch.compiler.is_compiling() and int(batch.lengths.max()) > self.config.max_positions:
            raise UserError(f"a sequence of {int(batch.lengths.max())} tokens is longer than the model's "
                            f"{self.config.max_positions} positions: cut it, or encode with max_length")
        x = self.words(batch)  # (N, D), from here on without sequence borders
        if self.segment is not None:
            x = x + self.segment(batch.segments)
        # positions are learned, not sinusoids (Devlin et al. 2018, section 3)
        x = self.norm(x + self.position(batch.positions))
        return dropout(x, self.config.dropout, self.training)

    def words(self, batch: Batch) -> Tensor:
        """The rows of the word table for the ids, (N, D)."""
        return self.word(batch.ids)

    def forward(self, batch: Batch) -> Tensor:
        """The last hidden states (N, D)."""
        x = self.embed(batch)
        for layer in self.layers:
            x = layer(x, batch)[0]  # q, k, v are not kept: only `trace` needs them
        return x

    def trace(self, batch: Batch, layers: int | None = None) -> Trace:
        """The hidden states and the q, k, v of every layer, or of the first `layers`,
        for methods that compare them.
        """
        hiddens, qkv = [self.embed(batch)], []
        for layer in self.layers[:layers]:
            x, *q_k_v = layer(hiddens[-1], batch)
            hiddens.append(x)
            qkv.append(q_k_v)
        return Trace(tuple(hiddens), *(tuple(per_layer) for per_layer in zip(*qkv)))

    def pool(self, last: Tensor, batch: Batch) -> Tensor:
        """tanh(W h_[CLS] + b), (S, D): the pooler that BERT trained with next-sentence prediction."""
        return torch.tanh(self.pooler(last[batch.first_tokens]))
