"""The heads: masked language model, pre-training (MLM and next sentence),
sequence classification or regression, spans.

Each is the encoder plus a few lines, and `forward(batch)` returns logits;
losses are in losses.py and vocab_loss.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minibert.batch import Batch
from minibert.config import Config
from minibert.model import Encoder, activation


class MLMHead(nn.Module):
    """Hidden states -> the states that are compared with the word table;
    the table itself is the encoder's (tied).
    """

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, config.norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))  # (V,)

    def forward(self, last: Tensor) -> Tensor:
        """(N, D) -> LN(gelu(W h + b)), (N, D); the logits are this times the word table, plus `bias`."""
        return self.norm(activation(self.config.activation, self.dense(last)))


class MaskedLM(nn.Module):
    """Encoder and MLM head: batch -> logits (N, V). Training never asks for these, see vocab_loss.py."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.mlm = MLMHead(config)

    def forward(self, batch: Batch) -> Tensor:
        """MLM logits (N, V), rows in packed order."""
        return F.linear(self.mlm(self.encoder(batch)), self.encoder.word.weight, self.mlm.bias)


class PreTraining(nn.Module):
    """BERT as it was pre-trained: MLM and next-sentence heads (class 0: is next).

    For loading; nothing here trains NSP.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, pooler=True)
        self.mlm = MLMHead(config)
        self.nsp = nn.Linear(config.hidden_size, 2)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """MLM logits (N, V) and next-sentence logits (S, 2)."""
        last = self.encoder(batch)
        logits = F.linear(self.mlm(last), self.encoder.word.weight, self.mlm.bias)
        return logits, self.nsp(self.encoder.pool(last, batch))


class Classifier(nn.Module):
    """Sequence classification, or regression with K = 1: batch -> logits or scores (S, K).

    BERT reads its pooler's output;
    DistilBERT has ReLU(W h_[CLS] + b) of its own instead, trained with the classifier.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        bert = config.architecture == "bert"
        self.encoder = Encoder(config, pooler=bert)
        self.pre_classifier = None if bert else nn.Linear(config.hidden_size, config.hidden_size)
        self.classifier = nn.Linear(config.hidden_size, 1 if config.regression else len(config.labels))

    def forward(self, batch: Batch) -> Tensor:
        """Logits (S, K), or scores (S, 1) for regression."""
        return self.classify(self.encoder(batch), batch)

    def classify(self, last: Tensor, batch: Batch) -> Tensor:
        """The same from the encoder's last hidden states (N, D)."""
        if self.pre_classifier is None:
            pooled = self.encoder.pool(last, batch)  # (S, D)
        else:
            pooled = F.relu(self.pre_classifier(last[batch.first_tokens]))
        return self.classifier(F.dropout(pooled, self.config.classifier_dropout, self.training))


class Span(nn.Module):
    """Extractive question answering: batch -> start and end logits (N, 2), rows in packed order."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.span = nn.Linear(config.hidden_size, 2)

    def forward(self, batch: Batch) -> Tensor:
        """Start and end logits of every token (N, 2);
        a softmax over one sequence's rows gives the answer's borders.
        """
        last = self.encoder(batch)
        # note: DistilBERT has dropout before this head, BERT has none
        if self.config.architecture == "distilbert":
            last = F.dropout(last, self.config.dropout, self.training)
        return self.span(last)


def encoder_of(model: nn.Module) -> Encoder:
    """The encoder inside a model with a head, or the encoder itself."""
    return model if isinstance(model, Encoder) else model.encoder
