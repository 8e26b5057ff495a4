"""The heads: the MLM head, the pre-training heads (MLM and next sentence), the sequence classifier (or
regression), and the span head for questions.

Each model here is an encoder with a head, and its `forward(batch)` returns logits. The losses are in
vocab_loss.py, losses.py and task_kd.py.
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
    """Builds the encoder that `config` describes. If `pooler` is true, it has a pooler, provided that this
    kind of encoder has one.
    """
    return (MobileEncoder if isinstance(config, MobileConfig) else Encoder)(config, pooler)


class MLMHead(nn.Module):
    """The MLM head: it maps hidden states (N, D) to other states (N, D). The products of these states with
    the vectors of all tokens are the logits.

    The token vectors are the encoder's word table (tied weights). In MobileBERT the word table is narrower
    than the hidden states. The head has the missing columns (`extra`).
    """

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        # BERT's run_pretraining.py has the same layer, with the name "transform".
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, config.norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))  # (V,)
        missing = config.hidden_size - config.embedding_size
        # The weight of `extra` is (missing, V), as in the published MobileBERT.
        self.extra = nn.Linear(config.vocab_size, missing, bias=False) if missing else None

    def forward(self, last: Tensor) -> Tensor:
        """Returns LN(act(W h + b)) (N, D) of hidden states h. Its product with the table, plus `bias`, is the
        logits.
        """
        # As in BERT's run_pretraining.py (get_masked_lm_output), the norm comes after the activation.
        return self.norm(activation(self.config.activation, self.dense(last)))

    def table(self, word: Tensor) -> Tensor:
        """The table (V, D): the encoder's word table, or MobileBERT's [word, extra]."""
        return word if self.extra is None else torch.cat([word, self.extra.weight.t()], 1)

    def logits(self, last: Tensor, word: Tensor) -> Tensor:
        """(N, D) -> (N, V)."""
        return F.linear(self(last), self.table(word), self.bias)


class MaskedLM(nn.Module):
    """An encoder with the MLM head: batch -> logits (N, V). Training does not call `forward`, because
    vocab_loss.py computes the logits in chunks.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.encoder = build_encoder(config)
        # The head has no word table of its own: `logits` gets the encoder's table (Press and Wolf 2017).
        self.mlm = MLMHead(config)

    def forward(self, batch: Batch) -> Tensor:
        """The MLM logits (N, V) in the order of the packed batch."""
        return self.mlm.logits(self.encoder(batch), self.encoder.word.weight)


class PreTraining(nn.Module):
    """BERT with its two heads of pre-training: MLM and next sentence (class 0: is next).

    This class is only for loading published models. This project does not train the next-sentence head.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.encoder = build_encoder(config, pooler=True)
        self.mlm = MLMHead(config)
        self.nsp = nn.Linear(config.hidden_size, 2)  # its input is the pooled [CLS] vector

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The MLM logits (N, V) and the next-sentence logits (S, 2)."""
        last = self.encoder(batch)
        # The MLM head needs the states of all tokens, the next-sentence head only the pooled [CLS] vector.
        logits = self.mlm.logits(last, self.encoder.word.weight)
        return logits, self.nsp(self.encoder.pool(last, batch))


class Classifier(nn.Module):
    """Sequence classification, or regression with K = 1: batch -> logits or scores (S, K).

    In BERT and MobileBERT the input of the classifier is the encoder's pooled vector. In DistilBERT it is
    ReLU(W h_[CLS] + b), a layer of the head that is trained with the classifier.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        # note: DistilBERT has no pooler. Its head has a layer with ReLU instead.
        D, own_layer = config.hidden_size, config.architecture == "distilbert"
        self.encoder = build_encoder(config, pooler=not own_layer)
        self.pre_classifier = nn.Linear(D, D) if own_layer else None
        self.classifier = nn.Linear(D, len(config.labels))

    def forward(self, batch: Batch) -> Tensor:
        """The logits (S, K), or the scores (S, 1) for regression."""
        return self.classify(self.encoder(batch), batch)

    def classify(self, last: Tensor, batch: Batch) -> Tensor:
        """The logits (S, K) or scores (S, 1), computed from the encoder's last hidden states (N, D)."""
        if self.pre_classifier is None:
            pooled = self.encoder.pool(last, batch)  # (S, D)
        else:
            pooled = F.relu(self.pre_classifier(last[batch.first_tokens]))  # (S, D)
        return in_fp32(self.classifier, dropout(pooled, self.config.classifier_dropout, self.training))


class Span(nn.Module):
    """Extractive question answering: batch -> start and end logits (N, 2) in the order of the packed batch.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.encoder = build_encoder(config)
        # The two outputs of each token are its start logit and its end logit (Devlin et al. 2018, section
        # 4.2).
        self.span = nn.Linear(config.hidden_size, 2)

    def forward(self, batch: Batch) -> Tensor:
        """The start and end logits of every token (N, 2). A softmax over the rows of one sequence gives the
        probability that the answer starts, or ends, at each token.
        """
        return self.classify(self.encoder(batch), batch)

    def classify(self, last: Tensor, batch: Batch) -> Tensor:
        """The start and end logits (N, 2), computed from the encoder's last hidden states (N, D)."""
        # note: DistilBERT has dropout before the span head. BERT and MobileBERT have none.
        if self.config.architecture == "distilbert":
            last = dropout(last, self.config.dropout, self.training)
        return in_fp32(self.span, last)


def in_fp32(linear: nn.Linear, x: Tensor) -> Tensor:
    """The output of the last layer of a task model, in fp32 even under autocast. Scores and span logits are
    compared with each other. In 16 bits, different values could be rounded to the same value.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    # The product of this layer is very small, so fp32 costs almost no time.
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x.to(dtype), linear.weight.to(dtype), linear.bias.to(dtype))


def encoder_of(model: nn.Module) -> Encoder:
    """The encoder inside a model with a head, or the encoder itself."""
    return model if isinstance(model, Encoder) else model.encoder
