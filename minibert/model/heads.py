"""Models for pre-training and for tasks. Each model is an encoder with one or two heads."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minibert.model.batch import Batch
from minibert.model.config import Config, MobileConfig
from minibert.model.dropout import dropout
from minibert.model.encoder import Encoder, activation
from minibert.model.mobilebert import MobileEncoder


def build_encoder(config: Config, pooler: bool = False) -> Encoder:
    """Returns the encoder that `config` describes, with a pooler if `pooler` is true. A MobileBERT with
    `tanh_pooler=False` never has a pooler.
    """
    return (MobileEncoder if isinstance(config, MobileConfig) else Encoder)(config, pooler)


class MLMHead(nn.Module):
    """The MLM head maps hidden states (N, D) to new states (N, D), and the new states to logits (N, V). The
    logit of a vocabulary token is the dot product of the new state and the token's vector, plus the token's
    bias.

    The token vectors are the encoder's word embeddings (tied weights, Press and Wolf 2017). MobileBERT's word
    embeddings have fewer than D columns. The rows of `extra.weight` are the missing columns of the token
    vectors (V, D).
    """

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, config.norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))  # (V,)
        missing = config.hidden_size - config.embedding_size
        # The weight is (`missing`, V), because the published MobileBERT stores the missing columns as rows.
        self.extra = nn.Linear(config.vocab_size, missing, bias=False) if missing else None

    def forward(self, last: Tensor) -> Tensor:
        """Returns the new states (N, D) of N tokens: LN(act(W h + b)) for the last hidden states h."""
        # the norm comes after the activation, as in BERT's run_pretraining.py (get_masked_lm_output)
        return self.norm(activation(self.config.activation, self.dense(last)))

    def table(self, word: Tensor) -> Tensor:
        """Returns the vectors (V, D) of the V vocabulary tokens. `word` are the encoder's word embeddings.
        """
        return word if self.extra is None else torch.cat([word, self.extra.weight.t()], 1)

    def logits(self, last: Tensor, word: Tensor) -> Tensor:
        """Returns the logits (N, V) of N tokens. `last` are the encoder's last hidden states (N, D), and
        `word` are its word embeddings.
        """
        return F.linear(self(last), self.table(word), self.bias)


class MaskedLM(nn.Module):
    """An encoder with the MLM head. In training, vocab_loss.py computes the logits in chunks. This needs less
    memory than `forward`, which computes all logits together.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.encoder = build_encoder(config)
        self.mlm = MLMHead(config)

    def forward(self, batch: Batch) -> Tensor:
        """Returns the MLM logits of N tokens, (N, V), in the order of the packed batch."""
        return self.mlm.logits(self.encoder(batch), self.encoder.word.weight)


class PreTraining(nn.Module):
    """BERT with its two heads of pre-training: MLM and next-sentence prediction. Class 0 of the next-sentence
    head means that the second text follows the first. This project does not train the next-sentence head.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.encoder = build_encoder(config, pooler=True)
        self.mlm = MLMHead(config)
        self.nsp = nn.Linear(config.hidden_size, 2)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns a tuple: the MLM logits (N, V) of N tokens, and the next-sentence logits (S, 2) of S
        sequences.
        """
        last = self.encoder(batch)
        logits = self.mlm.logits(last, self.encoder.word.weight)
        return logits, self.nsp(self.encoder.pool(last, batch))


class Classifier(nn.Module):
    """An encoder with a head for K classes, or for one score (regression). The input of the last linear layer
    is the encoder's pooled vector. DistilBERT has no pooler. Its input is ReLU(W h_[CLS] + b), where W and b
    belong to the head.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        D, own_layer = config.hidden_size, config.architecture == "distilbert"
        self.encoder = build_encoder(config, pooler=not own_layer)
        self.pre_classifier = nn.Linear(D, D) if own_layer else None
        self.classifier = nn.Linear(D, len(config.labels))

    def forward(self, batch: Batch) -> Tensor:
        """Returns the logits (S, K) of S sequences, or the scores (S, 1) for regression."""
        return self.classify(self.encoder(batch), batch)

    def classify(self, last: Tensor, batch: Batch) -> Tensor:
        """Returns the same as `forward`, but takes the encoder's last hidden states (N, D) of N tokens."""
        if self.pre_classifier is None:
            pooled = self.encoder.pool(last, batch)  # (S, D)
        else:
            pooled = F.relu(self.pre_classifier(last[batch.first_tokens]))  # (S, D)
        return in_fp32(self.classifier, dropout(pooled, self.config.classifier_dropout, self.training))


class Span(nn.Module):
    """An encoder with a head for extractive question answering."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.encoder = build_encoder(config)
        self.span = nn.Linear(config.hidden_size, 2)  # start and end (Devlin et al. 2018, section 4.2)

    def forward(self, batch: Batch) -> Tensor:
        """Returns the start and end logits (N, 2) of N tokens. A softmax over the tokens of one sequence
        gives the probability that the answer starts, or ends, at each token.
        """
        return self.classify(self.encoder(batch), batch)

    def classify(self, last: Tensor, batch: Batch) -> Tensor:
        """Returns the start and end logits (N, 2) for the encoder's last hidden states (N, D) of N tokens."""
        if self.config.architecture == "distilbert":
            last = dropout(last, self.config.dropout, self.training)
        return in_fp32(self.span, last)


def in_fp32(linear: nn.Linear, x: Tensor) -> Tensor:
    """Returns the output of `linear` in fp32, even under autocast (in fp64 if `x` is in fp64). `linear` is
    the last layer of a task model. In 16 bits, different scores could be rounded to the same value.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x.to(dtype), linear.weight.to(dtype), linear.bias.to(dtype))


def encoder_of(model: nn.Module) -> Encoder:
    """Returns the encoder of a model, or `model` itself if it is an encoder."""
    return model if isinstance(model, Encoder) else model.encoder
