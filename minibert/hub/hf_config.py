"""Converts a config.json with Hugging Face's names into a `Config`, and a `Config` into a config.json."""

import json
import math
import re
from pathlib import Path

from minibert.common.errors import UserError
from minibert.hub.hf_names import (ACTIVATION, ACTIVATIONS, ALIASES, ATTENTION_DROPOUT, ATTENTION_INPUT,
                                   CLASSES, FIELDS, NOT_KEPT)
from minibert.model.config import DISTILBERT, Config, MobileConfig

DEFAULTS = {"bert": Config(), "distilbert": Config(**DISTILBERT), "mobilebert": MobileConfig()}
OWN = "minibert-"  # the start of `model_type` if transformers does not support the model (see `difference`)
# transformers always uses this epsilon in two kinds of LayerNorm of a MobileBERT: the LayerNorm of the
# embeddings, and the LayerNorm after the last feed-forward network of each layer. The epsilon in config.json
# has no effect on these LayerNorms.
MOBILE_NORM_EPS = 1e-5
# Larger sizes are refused. A damaged file with a larger size could make a model that fills the memory.
LIMITS = {"layers": 1000, "hidden_size": 10**6, "intermediate_size": 10**7, "vocab_size": 10**8,
          "feed_forwards": 100}


def parse(raw: dict, path: Path) -> tuple[Config, str | None]:
    """Returns the `Config` and the head for `raw`, the content of the config.json at `path`.

    The first class in the field `architectures` gives the head, for example "mlm" (see `CLASSES`). If
    minibert does not know this class, the head is the name of the class. If config.json names no class, the
    head is None. Raises `UserError` if a value has a wrong type or is out of bounds, or if minibert does not
    support the model.
    """
    try:
        return _parse(raw)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _parse(raw: dict) -> tuple[Config, str | None]:
    classes = raw.get("architectures") or []
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise UserError("architectures is not a list of class names")
    architecture = raw.get("model_type")
    if architecture is None:  # old files, for example TinyBERT's, have no model_type
        stem = classes[0].lower() if classes else ""
        architecture = ("mobilebert" if stem.startswith("mobilebert") else
                        "distilbert" if stem.startswith("distilbert") or "n_layers" in raw else
                        "bert" if "num_hidden_layers" in raw else None)
    own = str(architecture).startswith(OWN)
    architecture = str(architecture).removeprefix(OWN)
    if architecture not in FIELDS:
        raise UserError(f"model_type is {raw.get('model_type')!r}; only {', '.join(FIELDS)} load here")
    if raw.get("is_decoder") or raw.get("add_cross_attention"):
        raise UserError("a decoder does not load here: is_decoder or add_cross_attention is set")
    for name, usual in (("position_embedding_type", "absolute"), ("pruned_heads", {})):
        if raw.get(name) not in (None, usual):
            raise UserError(f"{name} is {raw[name]!r:.60}; only {usual!r} loads")

    raw = raw | {name: raw[alias] for alias, name in ALIASES.get(architecture, {}).items()
                 if alias in raw}
    default = DEFAULTS[architecture]
    names = FIELDS[architecture] | ({"norm_eps": "layer_norm_eps"} if own else {})
    values = {name: _value(raw, hf, name, getattr(default, name)) for name, hf in names.items()}
    if architecture != "distilbert" and raw.get("classifier_dropout") is None:
        values["classifier_dropout"] = values["dropout"]
    if architecture == "mobilebert":
        values["attention_input"] = _attention_input(raw)
        if values["norm"] == "layer_norm" and values["norm_eps"] != MOBILE_NORM_EPS and not own:
            raise UserError(f"layer_norm_eps is {values['norm_eps']}, but with normalization_type "
                            f"'layer_norm' transformers always uses {MOBILE_NORM_EPS} in some LayerNorms; "
                            "only this value can be loaded")
    act = _value(raw, ACTIVATION[architecture], "activation", default.activation)
    if act not in ACTIVATIONS:
        raise UserError(f"{ACTIVATION[architecture]} is {act!r}; these load here: {', '.join(ACTIVATIONS)}")
    # The attention dropout in config.json (usually 0.1) is ignored. `Config` has the default 0, because
    # training is faster without attention dropout (see `attend` in attention.py).
    config = type(default)(architecture=architecture, segments=values.pop("segments", 0),
                           activation=ACTIVATIONS[act], **_labels(raw), **values)
    heads = {name: head for head, name in CLASSES[architecture].items()}
    return config, heads.get(re.sub("^(Tiny|TF|Flax)", "", classes[0]), classes[0]) if classes else None


def _attention_input(raw: dict) -> str:
    """Returns the value of `MobileConfig.attention_input` for `raw`, the content of a MobileBERT's
    config.json. Raises `UserError` if minibert does not support this variant of MobileBERT.
    """
    for name in ("use_bottleneck", "trigram_input"):
        if not _value(raw, name, name, True):
            raise UserError(f"{name} is false, and minibert cannot load a MobileBERT without it")
    switches = {name: _value(raw, name, name, default) for name, default in ATTENTION_INPUT["shared"].items()}
    found = [name for name, values in ATTENTION_INPUT.items() if values == switches]
    if not found:
        raise UserError(f"{' and '.join(switches)} are both true, and then the first has no effect; set one "
                        "of them to false")
    return found[0]


def _labels(raw: dict) -> dict:
    """Returns a dict with the `Config` fields `labels` and `problem_type` for `raw`, the content of a
    config.json. Raises `UserError` if `id2label` or `num_labels` is not valid, or if they do not agree.
    """
    named = raw.get("id2label")
    count = _value(raw, "num_labels", "num_labels", len(named) if isinstance(named, dict) else 2)
    if named is None:
        labels = tuple(f"LABEL_{i}" for i in range(count)) if 1 <= count <= 10**5 else ()
    elif isinstance(named, dict) and named.keys() == {str(i) for i in range(len(named))}:
        labels = tuple(str(named[str(i)]) for i in range(len(named)))
    else:
        labels = ()
    if not labels:
        raise UserError("id2label is not an object from \"0\", \"1\", ... to names, or num_labels is not a "
                        "valid number")
    if count != len(labels):  # refused: transformers 4 would use id2label, transformers 5 num_labels
        raise UserError(f"num_labels is {count}, but id2label names {len(labels)} classes")
    return {"labels": labels, "problem_type": raw.get("problem_type")}


def _value(raw: dict, key: str, field: str, default):
    """Returns `raw[key]`, or `default` if the key is missing or its value is null. If `default` is a float,
    an int is converted to a float. Raises `UserError` if the value has another type than `default`, or is out
    of bounds. The largest int is `LIMITS[field]`, or a million if `LIMITS` does not have `field`.
    """
    value = raw.get(key)
    if value is None:
        return default
    kind = type(default)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:  # isinstance would accept True as an int
        raise UserError(f"{key} is {value!r:.60}, where {kind.__name__} is expected")
    if kind is float and not (math.isfinite(value) and value >= 0):
        raise UserError(f"{key} is {value}, but must be at least 0")
    if kind is int and not 0 <= value <= LIMITS.get(field, 10**6):
        raise UserError(f"{key} is {value}, but must be between 0 and {LIMITS.get(field, 10**6)}")
    return value


def other_settings(raw: dict) -> dict:
    """Returns the fields of a loaded config.json, `raw`, that `save` copies: all except `NOT_KEPT`."""
    return {key: value for key, value in raw.items() if key not in NOT_KEPT}


def difference(config: Config) -> str:
    """Returns a text that names one feature of the model that `transformers` does not support. Returns "" if
    there is no such feature.
    """
    c, mobile = config, config.architecture == "mobilebert"
    differences = {
        f"a DistilBERT with norm_eps {c.norm_eps}": c.architecture == "distilbert" and c.norm_eps != 1e-12,
        "no token types": c.architecture != "distilbert" and c.segments == 0,
        "attention_input hidden, and hidden_size is not bottleneck_size":
            mobile and c.attention_input == "hidden" and c.hidden_size != c.bottleneck_size,
        f"a MobileBERT with layer_norm and norm_eps {c.norm_eps}":
            mobile and c.norm == "layer_norm" and c.norm_eps != MOBILE_NORM_EPS,
        "single_label_classification with one label":
            c.problem_type == "single_label_classification" and len(c.labels) == 1}
    return next((what for what, found in differences.items() if found), "")


def describe(config: Config, head: str, dtype: str, others: dict | None = None) -> dict:
    """Returns the content of a config.json, as a dict, for a model with this `config` and `head`. `dtype` is
    the precision of the stored weights, for example "float32". `others` is the result of `other_settings` for
    the config.json that was loaded (None: nothing is copied from a loaded config.json).
    """
    others, architecture = others or {}, config.architecture
    labels = {str(i): label for i, label in enumerate(config.labels)}
    found = others.get("id2label")
    if not (isinstance(found, dict) and {i: str(label) for i, label in found.items()} == labels):
        others = others | {"id2label": labels, "label2id": {label: int(i) for i, label in labels.items()}}
    act = str(others.get(ACTIVATION[architecture]))
    if ACTIVATIONS.get(act) != config.activation:
        act = {"gelu_tanh": "gelu_pytorch_tanh"}.get(config.activation, config.activation)
    raw = {"architectures": [CLASSES[architecture][head]], "model_type": architecture}
    raw |= {ATTENTION_DROPOUT[architecture]: config.attention_dropout, **others}
    if config.attention_dropout:  # `load` sets 0 by default, so another value is the user's choice
        raw[ATTENTION_DROPOUT[architecture]] = config.attention_dropout
    raw |= {hf: getattr(config, own) for own, hf in FIELDS[architecture].items()}
    raw[ACTIVATION[architecture]] = act
    if architecture == "mobilebert":
        raw |= {"use_bottleneck": True, "trigram_input": True, **ATTENTION_INPUT[config.attention_input]}
    if config.problem_type is not None:
        raw["problem_type"] = config.problem_type
    if difference(config):
        raw |= {"model_type": OWN + architecture, "layer_norm_eps": config.norm_eps}
    return raw | {"tie_word_embeddings": True, "torch_dtype": dtype}


def dump(raw: dict) -> str:
    """Returns the text of a config.json with the content `raw`."""
    return json.dumps(raw, indent=2) + "\n"
