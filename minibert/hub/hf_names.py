"""Translates the names of tensors and config fields between minibert and Hugging Face.

In the tables `MODULES` and `FIELDS`, minibert's names are left, and Hugging Face's names are right. The first
`{}` of a name stands for the number of the layer. In MobileBERT, a second `{}` stands for the number of a
feed-forward network in the layer.
"""

import re

HEADS = {
    "mlm": "cls.predictions",  # only for the tensor mlm.bias
    "mlm.dense": "cls.predictions.transform.dense",
    "mlm.norm": "cls.predictions.transform.LayerNorm",
    "nsp": "cls.seq_relationship",
    "classifier": "classifier",
    "span": "qa_outputs",
}

# These are names of modules. The name of a tensor is the name of its module, plus ".weight" or ".bias".
MODULES = {
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
        **HEADS,
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
        "mlm": "vocab_projector",
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
        **HEADS,
        "mlm.extra": "cls.predictions.dense",
    },
}

# Some files store one tensor under two names. `TIED` maps the name that `load` drops to the kept name.
TIED = {architecture: {
    "cls.predictions.decoder.weight": f"{architecture}.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias"} for architecture in ("bert", "mobilebert")}
TIED["distilbert"] = {"vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight"}

DROPPED = (  # patterns for the names of tensors that no model of minibert has
    # Old versions of transformers store two constants: the positions 0, 1, 2 ... and the token types, all 0.
    r"(distil|mobile)?bert\.embeddings\.(position_ids|token_type_ids)",
    # Only TinyBERT's distillation needs these layers, which map the student's states to the teacher's width.
    r"fit_dense\.(weight|bias)",
    r"fit_denses\.\d+\.(weight|bias)",
)

# `load` accepts tensors of these modules in a file, even if the model does not have the modules.
HEAD_MODULES = ("encoder.pooler", "mlm", "mlm.dense", "mlm.norm", "mlm.extra", "nsp", "pre_classifier",
                "classifier", "span")

CLASSES = {architecture: {
    "encoder": f"{name}Model",
    "mlm": f"{name}ForMaskedLM",
    "pretraining": f"{name}ForPreTraining",
    "classification": f"{name}ForSequenceClassification",
    "span": f"{name}ForQuestionAnswering",
} for architecture, name in (("bert", "Bert"), ("distilbert", "DistilBert"), ("mobilebert", "MobileBert"))}
del CLASSES["distilbert"]["pretraining"]  # DistilBERT has no next-sentence head

FIELDS = {
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
# Maps unusual field names, which some config.json files of DistilBERT have, to the usual names. If a
# config.json has both names of a field, the value under the unusual name is used.
ALIASES = {"distilbert": {"hidden_size": "dim", "num_hidden_layers": "n_layers",
                          "num_attention_heads": "n_heads"}}
# `save` does not copy these keys from the loaded config.json. It computes the values of some keys from the
# model, and leaves out the other keys, for example transformers_version.
NOT_KEPT = {"architectures", "model_type", "num_labels", "_num_labels", "problem_type", "torch_dtype",
            "dtype", "transformers_version", "_name_or_path", "auto_map",
            *(name for fields in FIELDS.values() for name in fields.values())}  # `describe` sets these fields
ACTIVATION = {"bert": "hidden_act", "distilbert": "activation", "mobilebert": "hidden_act"}
ATTENTION_DROPOUT = {"bert": "attention_probs_dropout_prob", "distilbert": "attention_dropout",
                     "mobilebert": "attention_probs_dropout_prob"}
ATTENTION_INPUT = {  # maps each value of minibert's `attention_input` to two fields of config.json
    "shared": {"key_query_shared_bottleneck": True, "use_bottleneck_attention": False},
    "hidden": {"key_query_shared_bottleneck": False, "use_bottleneck_attention": False},
    "bottleneck": {"key_query_shared_bottleneck": False, "use_bottleneck_attention": True},
}
ACTIVATIONS = {"gelu": "gelu", "gelu_python": "gelu", "relu": "relu"} | dict.fromkeys(
    ("gelu_new", "gelu_fast", "gelu_accurate", "gelu_python_tanh", "gelu_pytorch_tanh"), "gelu_tanh")

# In the file of an encoder without a head, the tensor names begin with these parts. In the file of a model
# with a head, the name of the architecture comes before these parts, for example "bert.embeddings."
ENCODER_PARTS = {"bert": ("embeddings.", "encoder.", "pooler."),
                 "distilbert": ("embeddings.", "transformer."),
                 "mobilebert": ("embeddings.", "encoder.", "pooler.")}


def translate(name: str, modules: dict[str, str]) -> str | None:
    """Translates the name of a tensor. `modules` is a dict from old to new names of modules. Returns None if
    the tensor is not the weight or bias of a module in `modules`.
    """
    module, _, leaf = name.rpartition(".")
    number = r"(?<=\.)\d+(?=\.)"
    numbers, module = re.findall(number, module), re.sub(number, "{}", module)
    if module not in modules or leaf not in ("weight", "bias"):
        return None
    return f"{modules[module].format(*numbers)}.{leaf}"


def to_hf(name: str, architecture: str) -> str:
    """Returns Hugging Face's full name of the tensor that minibert calls `name`. Returns `name` itself if
    `MODULES` does not have the tensor's module.
    """
    return translate(name, MODULES[architecture]) or name


def from_hf(name: str, architecture: str) -> str | None:
    """Returns minibert's name of the tensor that has the full name `name` in Hugging Face's files. Returns
    None if `MODULES` does not have the tensor's module.
    """
    return translate(name, {hf: own for own, hf in MODULES[architecture].items()})


def full_hf_name(name: str, architecture: str) -> str:
    """Returns the full name of the tensor that a Hugging Face file calls `name`. The file may use an old name
    (with .gamma or .beta) or a short name (without the architecture).

    >>> full_hf_name("embeddings.LayerNorm.gamma", "bert")
    'bert.embeddings.LayerNorm.weight'
    """
    name = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))
    return f"{architecture}.{name}" if name.startswith(ENCODER_PARTS[architecture]) else name
