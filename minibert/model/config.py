"""The configurations of models, and the table `PRESETS` with named configurations.

The letters for sizes in the whole project are: S sequences, N tokens of the packed batch, T tokens of one
sequence, D hidden size, H heads, E head size (D / H in BERT), F feed-forward size, V vocabulary size, L
layers, K labels.
"""

from dataclasses import dataclass, replace

from minibert.common.errors import UserError

# The values of `problem_type` in config.json. They say how transformers uses the outputs of a classifier: as
# a score (regression), with a softmax (single label), or with a sigmoid for each class (multi label).
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")


@dataclass(frozen=True)
class Config:
    """The shape and the numerical settings of a BERT or DistilBERT. DistilBERT has no token types, and no
    dropout after the output projection of attention.
    """

    architecture: str = "bert"  # "bert" or "distilbert"
    vocab_size: int = 30522  # V
    hidden_size: int = 768  # D
    layers: int = 12  # L
    heads: int = 12  # H
    intermediate_size: int = 3072  # F
    max_positions: int = 512
    segments: int = 2  # number of token types
    activation: str = "gelu"  # "gelu" (erf, as in Hugging Face), "gelu_tanh" (as in Google's code) or "relu"
    norm_eps: float = 1e-12  # epsilon of LayerNorm, as in BERT; torch's default is 1e-5
    dropout: float = 0.1  # dropout of embeddings, and of the outputs of attention and feed-forward networks
    attention_dropout: float = 0.0  # 0.1 in the papers; training is faster with 0 (see `attend`)
    classifier_dropout: float = 0.1
    initializer_range: float = 0.02
    pad_id: int = 0
    labels: tuple[str, ...] = ("LABEL_0", "LABEL_1")  # the names of the K classes
    # one of PROBLEM_TYPES, or None if config.json has no problem type
    problem_type: str | None = None

    _architectures = "bert", "distilbert"
    _attention_field = "hidden_size"

    def __post_init__(self):
        if self.architecture not in self._architectures:
            raise UserError(f"architecture {self.architecture!r} is not known: "
                            f"{' or '.join(self._architectures)}")
        if self.activation not in ("gelu", "gelu_tanh", "relu"):
            raise UserError(f"activation {self.activation!r} is not known: gelu, gelu_tanh or relu")
        for name in ("vocab_size", "hidden_size", "layers", "heads", "intermediate_size", "max_positions"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, and must be at least 1")
        if self.segments < 0:
            raise UserError(f"segments is {self.segments}, and must be at least 0")
        if not 0 <= self.pad_id < self.vocab_size:
            raise UserError(f"pad_id {self.pad_id} is not in the vocabulary of {self.vocab_size}")
        if not self.labels:
            raise UserError("labels is empty; a score has one label")
        if len(set(self.labels)) < len(self.labels):
            twice = next(label for label in self.labels if self.labels.count(label) > 1)
            raise UserError(f"two classes are both named {twice!r}: give each label its own name")
        if self.problem_type not in (None, *PROBLEM_TYPES):
            raise UserError(f"problem_type is {self.problem_type!r}, and must be one of "
                            f"{', '.join(PROBLEM_TYPES)}, or absent")
        if self.problem_type == "regression" and len(self.labels) > 1:
            raise UserError(f"problem_type is 'regression' with {len(self.labels)} labels; only one score "
                            "loads here")
        if self.attention_size % self.heads:
            raise UserError(f"{self._attention_field} {self.attention_size} is not a multiple of heads "
                            f"{self.heads}")
        if self.architecture == "distilbert" and self.segments:
            raise UserError("a DistilBERT has no token types: segments must be 0")
        for name in ("dropout", "attention_dropout", "classifier_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, and must be in [0, 1)")

    @property
    def regression(self) -> bool:
        """True if there is one label and the problem type is "regression" or None. The model's output is then
        one score.
        """
        return len(self.labels) == 1 and self.problem_type in (None, "regression")

    @property
    def attention_size(self) -> int:
        """The width of all attention heads together, H * E."""
        return getattr(self, self._attention_field)

    @property
    def head_size(self) -> int:
        """The width E of one attention head."""
        return self.attention_size // self.heads

    @property
    def embedding_size(self) -> int:
        """The width of the word embeddings."""
        return self.hidden_size


@dataclass(frozen=True)
class MobileConfig(Config):
    """The configuration of a MobileBERT or of its teacher IB-BERT. The default shape is that of the published
    MobileBERT plus a pooler, which the published model does not have.
    """

    architecture: str = "mobilebert"
    hidden_size: int = 512  # D
    layers: int = 24
    heads: int = 4
    intermediate_size: int = 512  # F
    activation: str = "relu"
    dropout: float = 0.0  # dropout of embeddings, and of the output of each block's last linear layer
    classifier_dropout: float = 0.0
    embedding_size: int = 128
    bottleneck_size: int = 128  # B, the width inside a block; B = H * E
    feed_forwards: int = 4  # number of feed-forward networks in a block
    # Queries and keys have one of three inputs. "shared": the output of an extra linear layer with a norm, of
    # width B. "hidden": the block's input, of width D. "bottleneck": the output of the bottleneck layer, of
    # width B. With "bottleneck", values have the same input as queries and keys. With "shared" and "hidden",
    # the input of values is the block's input.
    attention_input: str = "shared"
    # "layer_norm" or "no_norm" (`NoNorm` in mobilebert.py)
    norm: str = "no_norm"
    tanh_pooler: bool = True  # False: no pooler; the pooled vector is the hidden state of [CLS]

    _architectures = ("mobilebert",)
    _attention_field = "bottleneck_size"

    def __post_init__(self):
        for name in ("embedding_size", "bottleneck_size", "feed_forwards"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, and must be at least 1")
        super().__post_init__()
        for name, known in (("attention_input", ("shared", "hidden", "bottleneck")),
                            ("norm", ("no_norm", "layer_norm"))):
            if getattr(self, name) not in known:
                raise UserError(f"{name} {getattr(self, name)!r} is not known: {', '.join(known)}")
        if self.embedding_size >= self.hidden_size:
            raise UserError(f"embedding_size {self.embedding_size} must be less than hidden_size "
                            f"{self.hidden_size} in a MobileBERT")


BERT_BASE = Config()
DISTILBERT = dict(architecture="distilbert", segments=0, classifier_dropout=0.2)
# Sun et al. 2020. `MOBILEBERT` fits the released weights. `MOBILEBERT_PAPER` is the paper's model with 25.3M
# parameters. The two models compute queries and keys from different states (`attention_input`).
MOBILEBERT = MobileConfig(tanh_pooler=False)
MOBILEBERT_PAPER = replace(MOBILEBERT, attention_input="hidden")
IB_BERT = MobileConfig(attention_input="hidden", norm="layer_norm", activation="gelu_tanh", feed_forwards=1,
                       bottleneck_size=1024, intermediate_size=4096, dropout=0.1, classifier_dropout=0.1)

PRESETS: dict[str, Config] = {
    "bert-base": BERT_BASE,
    "bert-large": replace(BERT_BASE, hidden_size=1024, layers=24, heads=16, intermediate_size=4096),
    "distilbert": replace(BERT_BASE, layers=6, **DISTILBERT),
    "distilbert-4": replace(BERT_BASE, layers=4, **DISTILBERT),
    "bert-pkd-3": replace(BERT_BASE, layers=3),
    "bert-pkd-4": replace(BERT_BASE, layers=4),
    "bert-pkd-6": replace(BERT_BASE, layers=6),
    # The TinyBERT paper calls a BERT of this shape "BERT-TINY". Google's BERT-Tiny is smaller: bert-L2-H128.
    "tinybert-4": replace(BERT_BASE, hidden_size=312, layers=4, intermediate_size=1200),
    "tinybert-6": replace(BERT_BASE, layers=6),
    "bert-small": replace(BERT_BASE, hidden_size=512, layers=4, heads=8, intermediate_size=2048),
    # Google's small BERTs (Turc et al., "Well-read students learn better", 2019)
    **{f"bert-L{layers}-H{hidden}": replace(BERT_BASE, hidden_size=hidden, layers=layers, heads=hidden // 64,
                                            intermediate_size=4 * hidden)
       for layers in (2, 4, 6, 8, 10, 12) for hidden in (128, 256, 512, 768)},
    "minibert-teacher": replace(BERT_BASE, vocab_size=8192, hidden_size=384, layers=4, heads=12,
                                intermediate_size=384, max_positions=256),
    "mobilebert": MOBILEBERT,
    "mobilebert-paper": MOBILEBERT_PAPER,
    "mobilebert-tiny": replace(MOBILEBERT, attention_input="bottleneck", feed_forwards=2),
    "mobilebert-without-opt": replace(MOBILEBERT_PAPER, norm="layer_norm", activation="gelu_tanh"),
    "ib-bert-large": IB_BERT,
    # a small IB-BERT and its student, for training on two CPU cores
    "ib-bert-small": replace(IB_BERT, vocab_size=8192, hidden_size=128, layers=6, embedding_size=32,
                             bottleneck_size=128, intermediate_size=512, max_positions=256),
    "mobilebert-small": replace(MOBILEBERT, vocab_size=8192, hidden_size=128, layers=6, embedding_size=32,
                                bottleneck_size=32, intermediate_size=128, max_positions=256),
}


def preset(name: str) -> Config:
    """Returns the configuration named `name` in `PRESETS`. Raises `UserError` if the name is unknown."""
    if name not in PRESETS:
        raise UserError(f"{name!r} is no preset; there are: {', '.join(PRESETS)}")
    return PRESETS[name]
