"""The encoder of MobileBERT and of its teacher IB-BERT (Sun et al. 2020), over packed batches.

The hidden states h between the blocks have the width D. The states x inside a block have the width B:

    x = Norm(W_in h)                          D -> B, the bottleneck
    x = Norm(x + attention(h or x))
    x = Norm(x + feed-forward(x))             `feed_forwards` times, each with its own weights
    h = Norm(h + W_out x)                     B -> D

`attention_input` in config.py says from which states queries, keys and values are computed. In the paper's
IB-BERT ("inverted bottleneck") B is larger than D. IB-BERT and MobileBERT have the same D, so distillation
can compare their hidden states.
"""

import torch
from torch import Tensor, nn

from minibert.model.attention import attend
from minibert.model.batch import Batch
from minibert.model.config import MobileConfig
from minibert.model.dropout import dropout
from minibert.model.encoder import Encoder, activation


class NoNorm(nn.LayerNorm):
    """A LayerNorm without the mean and the variance (Sun et al. 2020, "Operational Optimizations"). NoNorm
    inherits from LayerNorm, so it has LayerNorm's initial weights and no weight decay.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Returns gamma * x + beta, in the shape of x. gamma is `weight`, and beta is `bias`."""
        return x * self.weight + self.bias


def norm(config: MobileConfig, width: int) -> nn.LayerNorm:
    """Returns a new norm of `width` units: a `NoNorm` if `config.norm` is "no_norm", else a LayerNorm."""
    return (NoNorm if config.norm == "no_norm" else nn.LayerNorm)(width, config.norm_eps)


class FeedForward(nn.Module):
    """One of the feed-forward networks of a block: Norm(x + W_2 act(W_1 x))."""

    def __init__(self, config: MobileConfig):
        super().__init__()
        self.config = config
        B, F_ = config.bottleneck_size, config.intermediate_size
        self.up, self.down = nn.Linear(B, F_), nn.Linear(F_, B)
        self.norm = norm(config, B)

    def forward(self, x: Tensor) -> Tensor:
        """Takes states (N, B) of N tokens, and returns new states (N, B). B is the width inside the block."""
        return self.norm(x + self.down(activation(self.config.activation, self.up(x))))


class MobileLayer(nn.Module):
    """A block of MobileBERT or IB-BERT."""

    def __init__(self, config: MobileConfig):
        super().__init__()
        D, B = config.hidden_size, config.bottleneck_size
        self.config = config
        self.bottleneck, self.bottleneck_norm = nn.Linear(D, B), norm(config, B)
        if config.attention_input == "shared":
            self.shared, self.shared_norm = nn.Linear(D, B), norm(config, B)
        qk_width, v_width = {"shared": (B, D), "hidden": (D, D), "bottleneck": (B, B)}[config.attention_input]
        self.query, self.key, self.value = (nn.Linear(width, B) for width in (qk_width, qk_width, v_width))
        self.out, self.attention_norm = nn.Linear(B, B), norm(config, B)
        self.stacked = nn.ModuleList(FeedForward(config) for _ in range(config.feed_forwards - 1))
        self.feed_forward = FeedForward(config)
        self.expand, self.expand_norm = nn.Linear(B, D), norm(config, D)

    def forward(self, h: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Takes hidden states (N, D) of N tokens. Returns four tensors: the block's output (N, D), and its
        queries, keys and values, each (N, H, E) for H heads of size E.
        """
        c = self.config
        x = self.bottleneck_norm(self.bottleneck(h))  # (N, B)
        if c.attention_input == "shared":
            for_qk, for_v = self.shared_norm(self.shared(h)), h
        else:
            for_qk = for_v = h if c.attention_input == "hidden" else x
        q, k, v = (project(y).unflatten(-1, (c.heads, c.head_size))  # (N, H, E)
                   for project, y in ((self.query, for_qk), (self.key, for_qk), (self.value, for_v)))
        context = attend(q, k, v, batch, c.attention_dropout if self.training else 0.0)
        x = self.attention_norm(x + self.out(context.flatten(-2)))  # (N, B)
        for feed_forward in self.stacked:
            x = feed_forward(x)
        x = self.feed_forward(x)
        return self.expand_norm(h + dropout(self.expand(x), c.dropout, self.training)), q, k, v


class MobileEncoder(Encoder):
    """The embeddings and the L layers of a MobileBERT or IB-BERT. A pooler is added if `pooler` and
    `config.tanh_pooler` are true.
    """

    def __init__(self, config: MobileConfig, pooler: bool = False):
        # `Encoder.__init__` is not called, because it would build BERT's word embeddings, norm and layers
        nn.Module.__init__(self)
        D, width = config.hidden_size, config.embedding_size
        self.config = config
        self.word = nn.Embedding(config.vocab_size, width)
        self.trigram = nn.Linear(3 * width, D)
        self.position = nn.Embedding(config.max_positions, D)
        self.segment = nn.Embedding(config.segments, D) if config.segments else None
        self.norm = norm(config, D)
        self.layers = nn.ModuleList(MobileLayer(config) for _ in range(config.layers))
        self.pooler = nn.Linear(D, D) if pooler and config.tanh_pooler else None

    def words(self, batch: Batch) -> Tensor:
        """Returns the input vector of each of N tokens, (N, D): W [w_next, w_own, w_previous] + b ("Embedding
        Factorization" in the paper). w_own is the token's word embedding. w_next and w_previous are the word
        embeddings of the next and the previous token. For the last token of a sequence, w_next is zero. For
        the first token, w_previous is zero. In `transformers`, w_next of the last token may be the embedding
        of a padding token, so padding can change the outputs.
        """
        own = self.word(batch.ids)  # (N, embedding_size)
        last_tokens = batch.offsets[1:].long() - 1
        following = own.roll(-1, 0).index_fill(0, last_tokens, 0.0)
        previous = own.roll(1, 0).index_fill(0, batch.first_tokens, 0.0)
        return self.trigram(torch.cat([following, own, previous], -1))

    def pool(self, last: Tensor, batch: Batch) -> Tensor:
        """Returns the pooled vectors (S, D) of S sequences: tanh(W h_[CLS] + b), or h_[CLS] if `tanh_pooler`
        is false.
        """
        return super().pool(last, batch) if self.config.tanh_pooler else last[batch.first_tokens]
