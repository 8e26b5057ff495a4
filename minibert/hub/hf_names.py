"""Hugging Face's names: one table per architecture, from our modules and config fields to theirs.

Read from left to right for saving and from right to left for loading; `{}` is the layer's number, a second
one that of a feed-forward network in it. A file may have tensors that a model here does not have: `TIED`
(stored twice), `DROPPED` (left out on purpose) and `HEAD_MODULES` (heads that were not asked for). Any other
difference between a file and its model is an error (hub.py).
"""

import re

MODULES = {  # our module -> theirs, the same for its .weight and .bias
    "bert": {
        "encoder.word": "bert.embeddings.word_embeddings",
        "encoder.position": "bert.embeddings.position_embeddings",
        "encoder.segment": "bert.embeddings.token_type_embeddings",
        "encoder.norm": "bert.embeddings.LayerNorm",
        "encoder.layers.{}.query": "bert.encoder.layer.{}.attention.self.query",
        "encoder.layers.{}.key": "bert.encoder.layer.{}.attention.self.key",
        "encoder.layers.{}.value": "bert.encoder.layer.{}.attention.self.value",
        "encoder.layers.{}.out": "bert.encoder.layer.{}.attention.output.dense",
        "encoder.layers.{}.attention_norm": "bert.encoder.layer.{}.attention.output.LayerNorm",
        "encoder.layers.{}.up": "bert.encoder.layer.{}.intermediate.dense",
        "encoder.layers.{}.down": "bert.encoder.layer.{}.output.dense",
        "encoder.layers.{}.output_norm": "bert.encoder.layer.{}.output.LayerNorm",
        "encoder.pooler": "bert.pooler.dense",
        "mlm": "cls.predictions",  # its bias over the vocabulary
        "mlm.dense": "cls.predictions.transform.dense",
        "mlm.norm": "cls.predictions.transform.LayerNorm",
        "nsp": "cls.seq_relationship",
        "classifier": "classifier",
        "span": "qa_outputs",
    },
    "distilbert": {
        "encoder.word": "distilbert.embeddings.word_embeddings",
        "encoder.position": "distilbert.embeddings.position_embeddings",
        "encoder.norm": "distilbert.embeddings.LayerNorm",
        "encoder.layers.{}.query": "distilbert.transformer.layer.{}.attention.q_lin",
        "encoder.layers.{}.key": "distilbert.transformer.layer.{}.attention.k_lin",
        "encoder.layers.{}.value": "distilbert.transformer.layer.{}.attention.v_lin",
        "encoder.layers.{}.out": "distilbert.transformer.layer.{}.attention.out_lin",
        "encoder.layers.{}.attention_norm": "distilbert.transformer.layer.{}.sa_layer_norm",
        "encoder.layers.{}.up": "distilbert.transformer.layer.{}.ffn.lin1",
        "encoder.layers.{}.down": "distilbert.transformer.layer.{}.ffn.lin2",
        "encoder.layers.{}.output_norm": "distilbert.transformer.layer.{}.output_layer_norm",
        "mlm": "vocab_projector",  # its bias over the vocabulary
        "mlm.dense": "vocab_transform",
        "mlm.norm": "vocab_layer_norm",
        "pre_classifier": "pre_classifier",
        "classifier": "classifier",
        "span": "qa_outputs",
    },
    "mobilebert": {
        "encoder.word": "mobilebert.embeddings.word_embeddings",
        "encoder.trigram": "mobilebert.embeddings.embedding_transformation",
        "encoder.position": "mobilebert.embeddings.position_embeddings",
        "encoder.segment": "mobilebert.embeddings.token_type_embeddings",
        "encoder.norm": "mobilebert.embeddings.LayerNorm",
        "encoder.layers.{}.bottleneck": "mobilebert.encoder.layer.{}.bottleneck.input.dense",
        "encoder.layers.{}.bottleneck_norm": "mobilebert.encoder.layer.{}.bottleneck.input.LayerNorm",
        "encoder.layers.{}.shared": "mobilebert.encoder.layer.{}.bottleneck.attention.dense",
        "encoder.layers.{}.shared_norm": "mobilebert.encoder.layer.{}.bottleneck.attention.LayerNorm",
        "encoder.layers.{}.query": "mobilebert.encoder.layer.{}.attention.self.query",
        "encoder.layers.{}.key": "mobilebert.encoder.layer.{}.attention.self.key",
        "encoder.layers.{}.value": "mobilebert.encoder.layer.{}.attention.self.value",
        "encoder.layers.{}.out": "mobilebert.encoder.layer.{}.attention.output.dense",
        "encoder.layers.{}.attention_norm": "mobilebert.encoder.layer.{}.attention.output.LayerNorm",
        "encoder.layers.{}.stacked.{}.up": "mobilebert.encoder.layer.{}.ffn.{}.intermediate.dense",
        "encoder.layers.{}.stacked.{}.down": "mobilebert.encoder.layer.{}.ffn.{}.output.dense",
        "encoder.layers.{}.stacked.{}.norm": "mobilebert.encoder.layer.{}.ffn.{}.output.LayerNorm",
        "encoder.layers.{}.feed_forward.up": "mobilebert.encoder.layer.{}.intermediate.dense",
        "encoder.layers.{}.feed_forward.down": "mobilebert.encoder.layer.{}.output.dense",
        "encoder.layers.{}.feed_forward.norm": "mobilebert.encoder.layer.{}.output.LayerNorm",
        "encoder.layers.{}.expand": "mobilebert.encoder.layer.{}.output.bottleneck.dense",
        "encoder.layers.{}.expand_norm": "mobilebert.encoder.layer.{}.output.bottleneck.LayerNorm",
        "encoder.pooler": "mobilebert.pooler.dense",
        "mlm": "cls.predictions",  # its bias over the vocabulary
        "mlm.dense": "cls.predictions.transform.dense",
        "mlm.norm": "cls.predictions.transform.LayerNorm",
        "mlm.extra": "cls.predictions.dense",
        "nsp": "cls.seq_relationship",
        "classifier": "classifier",
        "span": "qa_outputs",
    },
}

TIED = {  # a second name of a tensor, in files that store it twice -> the name in the table
    "bert": {
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    "distilbert": {
        "vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight",
    },
    "mobilebert": {
        "cls.predictions.decoder.weight": "mobilebert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
}

DROPPED = (  # patterns of tensors that no model here has
    # 0, 1, 2 ... and zeros, of old transformers
    r"(distil|mobile)?bert\.embeddings\.(position_ids|token_type_ids)",
    r"fit_dense\.(weight|bias)",  # TinyBERT's way from the student's width to the teacher's,
    r"fit_denses\.\d+\.(weight|bias)",  # of use in its distillation only; one per layer in "v2" files
)

# The modules that only some heads have. A model without one of them drops the one in the file.
HEAD_MODULES = ("encoder.pooler", "mlm", "mlm.dense", "mlm.norm", "mlm.extra", "nsp", "pre_classifier",
                "classifier", "span")

CLASSES = {  # architecture -> head -> their class
    "bert": {
        "encoder": "BertModel",
        "mlm": "BertForMaskedLM",
        "pretraining": "BertForPreTraining",
        "classification": "BertForSequenceClassification",
        "span": "BertForQuestionAnswering",
    },
    "distilbert": {
        "encoder": "DistilBertModel",
        "mlm": "DistilBertForMaskedLM",
        "classification": "DistilBertForSequenceClassification",
        "span": "DistilBertForQuestionAnswering",
    },
    "mobilebert": {
        "encoder": "MobileBertModel",
        "mlm": "MobileBertForMaskedLM",
        "pretraining": "MobileBertForPreTraining",
        "classification": "MobileBertForSequenceClassification",
        "span": "MobileBertForQuestionAnswering",
    },
}

FIELDS = {  # architecture -> our config field -> theirs, where the value is the same
    "bert": {
        "vocab_size": "vocab_size",
        "hidden_size": "hidden_size",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "intermediate_size": "intermediate_size",
        "max_positions": "max_position_embeddings",
        "segments": "type_vocab_size",
        "norm_eps": "layer_norm_eps",
        "dropout": "hidden_dropout_prob",
        "classifier_dropout": "classifier_dropout",
        "initializer_range": "initializer_range",
        "pad_id": "pad_token_id",
    },
    "distilbert": {
        "vocab_size": "vocab_size",
        "hidden_size": "dim",
        "layers": "n_layers",
        "heads": "n_heads",
        "intermediate_size": "hidden_dim",
        "max_positions": "max_position_embeddings",
        "dropout": "dropout",
        "classifier_dropout": "seq_classif_dropout",
        "initializer_range": "initializer_range",
        "pad_id": "pad_token_id",
    },
}
FIELDS["mobilebert"] = FIELDS["bert"] | {
    "embedding_size": "embedding_size",
    "bottleneck_size": "intra_bottleneck_size",
    "feed_forwards": "num_feedforward_networks",
    "norm": "normalization_type",
    "tanh_pooler": "classifier_activation",
}
# architecture -> a second name of a field in their files, which counts before the first -> the first
ALIASES = {
    "bert": {},
    "distilbert": {"hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads"},
    "mobilebert": {},
}
# Keys of a config.json that are not copied from the file: they repeat the model's own config, or name the
# file or code that the model came from.
NOT_KEPT = {"architectures", "model_type", "num_labels", "_num_labels", "problem_type", "torch_dtype",
            "dtype", "transformers_version", "_name_or_path", "auto_map", "format",
            *(name for fields in FIELDS.values() for name in fields.values())}  # ALIASES are among them
# These differ in more than the name: attention dropout is written but not read (hub.py says why).
ACTIVATION = {"bert": "hidden_act", "distilbert": "activation", "mobilebert": "hidden_act"}
ATTENTION_DROPOUT = {"bert": "attention_probs_dropout_prob", "distilbert": "attention_dropout",
                     "mobilebert": "attention_probs_dropout_prob"}
ATTENTION_INPUT = {  # MobileBERT's -> their two switches
    "shared": {"key_query_shared_bottleneck": True, "use_bottleneck_attention": False},
    "hidden": {"key_query_shared_bottleneck": False, "use_bottleneck_attention": False},
    "bottleneck": {"key_query_shared_bottleneck": False, "use_bottleneck_attention": True},
}
ACTIVATIONS = {"gelu": "gelu", "gelu_python": "gelu", "relu": "relu"} | dict.fromkeys(
    ("gelu_new", "gelu_fast", "gelu_accurate", "gelu_python_tanh", "gelu_pytorch_tanh"), "gelu_tanh")

# The prefix of the names in a bare encoder's file.
ENCODER_PARTS = {"bert": ("embeddings.", "encoder.", "pooler."),
                 "distilbert": ("embeddings.", "transformer."),
                 "mobilebert": ("embeddings.", "encoder.", "pooler.")}


def translate(name: str, modules: dict[str, str]) -> str | None:
    """The tensor `name` by a table of modules,
    with its numbers and its "weight" or "bias"; None where it has none.
    """
    module, _, leaf = name.rpartition(".")
    number = r"(?<=\.)\d+(?=\.)"
    numbers, module = re.findall(number, module), re.sub(number, "{}", module)
    if module not in modules or leaf not in ("weight", "bias"):
        return None
    return f"{modules[module].format(*numbers)}.{leaf}"


def to_hf(name: str, architecture: str) -> str:
    """The Hugging Face name of one of our tensors, with the prefix of a model that has a head."""
    return translate(name, MODULES[architecture]) or name


def from_hf(name: str, architecture: str) -> str | None:
    """Our name of a tensor with its full Hugging Face name; None where the table has no such name."""
    return translate(name, {theirs: ours for ours, theirs in MODULES[architecture].items()})


def full_hf_name(name: str, architecture: str) -> str:
    """A name as models with a head have it today: gamma and beta renamed, a bare encoder's prefix added.

    >>> full_hf_name("embeddings.LayerNorm.gamma", "bert")
    'bert.embeddings.LayerNorm.weight'
    """
    name = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))
    return f"{architecture}.{name}" if name.startswith(ENCODER_PARTS[architecture]) else name
