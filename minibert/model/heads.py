"""The heads: masked language model, pre-training (MLM and next sentence),
sequence classification or regression, spans.

Each is the encoder plus a few lines, and `forward(batch)` returns logits;
losses are in vocab_loss.py, finetuning.py and span_loss.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minibert.model.batch import Batch
from minibert.model.config import Config, MobileConfig
from minibert.model.dropout import dropout
from minibert.model.encoder import Encoder, activation
from minibert.model.mobilebert import MobileEncoder


def build_encoder(config: Config, pooler: bool = False) -> Encoder:
    """The encoder that `config` describes; with `pooler`, the layer that pools, if its kind has one."""
    return (MobileEncoder if isinstance(config, MobileConfig) else Encoder)(config, pooler)


class MLMHead(nn.Module):
    """Hidden states -> states, whose products with the vectors of all tokens are the logits.

    The table of these vectors is the encoder's word table (tied). In MobileBERT the head adds its own
    columns.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        # a layer that adapts the states to the word table (run_pretraining.py of BERT, "transform")
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, config.norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))  # (V,)
        missing = config.hidden_size - config.embedding_size
        # (missing, V), as in the published MobileBERT
        self.extra = nn.Linear(config.vocab_size, missing, bias=False) if missing else None

    def forward(self, last: Tensor) -> Tensor:
        """(N, D) -> LN(act(W h + b)), (N, D); the logits are this times the table, plus `bias`."""
        return self.norm(activation(self.config.activation, self.dense(last)))

    def table(self, word: Tensor) -> Tensor:
        """The table (V, D): the encoder's word table, or MobileBERT's [word, extra]."""
        return word if self.extra is None else torch.cat([word, self.extra.weight.t()], 1)

    def logits(self, last: Tensor, word: Tensor) -> Tensor:
        """(N, D) -> (N, V)."""
        return F.linear(self(last), self.table(word), self.bias)


class MaskedLM(nn.Module):
    """Encoder and MLM head: batch -> logits (N, V). Training does not use these logits, see vocab_loss.py."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.encoder = build_encoder(config)
        self.mlm = MLMHead(config)

    def forward(self, batch: Batch) -> Tensor:
        """MLM logits (N, V), rows in packed order."""
        return self.mlm.logits(self.encoder(batch), self.encoder.word.weight)


class PreTraining(nn.Module):
    """BERT with its two heads of pre-training: MLM and next sentence (class 0: is next).

    It is only for loading. Nothing here trains the next-sentence head.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.encoder = build_encoder(config, pooler=True)
        self.mlm = MLMHead(config)
        self.nsp = nn.Linear(config.hidden_size, 2)  # reads the pooled [CLS]

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """MLM logits (N, V) and next-sentence logits (S, 2)."""
        last = self.encoder(batch)
        logits = self.mlm.logits(last, self.encoder.word.weight)
        return logits, self.nsp(self.encoder.pool(last, batch))


class Classifier(nn.Module):
    """Sequence classification, or regression with K = 1: batch -> logits or scores (S, K).

    BERT and MobileBERT read the encoder's pooled vector. DistilBERT has its own ReLU(W h_[CLS] + b) instead,
    which is trained with the classifier.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        # note: DistilBERT has no pooler, but a layer with ReLU in the head
        D, own_layer = config.hidden_size, config.architecture == "distilbert"
        self.encoder = build_encoder(config, pooler=not own_layer)
        self.pre_classifier = nn.Linear(D, D) if own_layer else None
        self.classifier = nn.Linear(D, len(config.labels))

    def forward(self, batch: Batch) -> Tensor:
        """Logits (S, K), or scores (S, 1) for regression."""
        return self.classify(self.encoder(batch), batch)

    def classify(self, last: Tensor, batch: Batch) -> Tensor:
        """The same from the encoder's last hidden states (N, D)."""
        if self.pre_classifier is None:
            pooled = self.encoder.pool(last, batch)  # (S, D)
        else:
            pooled = F.relu(self.pre_classifier(last[batch.first_tokens]))  # (S, D)
        return in_fp32(self.classifier, dropout(pooled, self.config.classifier_dropout, self.training))


class Span(nn.Module):
    """Extractive question answering: batch -> start and end logits (N, 2), rows in packed order."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.encoder = build_encoder(config)
        self.span = nn.Linear(config.hidden_size, 2)

    def forward(self, batch: Batch) -> Tensor:
        """Start and end logits of every token (N, 2);
        a softmax over one sequence's rows gives the answer's borders.
        """
        return self.classify(self.encoder(batch), batch)

    def classify(self, last: Tensor, batch: Batch) -> Tensor:
        """The same from the encoder's last hidden states (N, D)."""
        # note: DistilBERT has dropout before this head, the others have none
        if self.config.architecture == "distilbert":
            last = dropout(last, self.config.dropout, self.training)
        return in_fp32(self.span, last)


def in_fp32(linear: nn.Linear, x: Tensor) -> Tensor:
    """The product of a task's last layer, not rounded to 16 bits under autocast: scores and the logits of a
    context's tokens are compared with each other, and rounded ones tie.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x.to(dtype), linear.weight.to(dtype), linear.bias.to(dtype))


def encoder_of(model: nn.Module) -> Encoder:
    """The encoder inside a model with a head, or the encoder itself."""
    return model if isinstance(model, Encoder) else model.encoder
