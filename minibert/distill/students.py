"""Builds student models. This file decides which config a student has, which teacher layers it copies, and
which teacher layers it imitates.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from minibert.common.errors import UserError
from minibert.model.config import DISTILBERT, PRESETS, Config, MobileConfig, preset
from minibert.model.encoder import Encoder
from minibert.model.heads import build_encoder, encoder_of
from minibert.model.init import init_weights

# ---------------------------------------------------------------- shapes

def halved(teacher: Config, layers: int | None = None) -> Config:
    """Returns the teacher's config with `layers` layers (None: half of the teacher's layers, at least 1)."""
    return replace(teacher, layers=max(1, teacher.layers // 2) if layers is None else layers)


def distilbert_of(teacher: Config, layers: int | None = None) -> Config:
    """Returns the config of a DistilBERT student for the BERT `teacher`. The student has no token types, no
    pooler, and `layers` layers (None: half of the teacher's layers, at least 1). Raises `UserError` if the
    teacher is a MobileBERT.
    """
    if isinstance(teacher, MobileConfig):
        raise UserError("a DistilBERT has half the layers of a BERT, and the teacher is a MobileBERT: give "
                        "--student")
    return replace(teacher, layers=layers or max(1, teacher.layers // 2), **DISTILBERT)


def tinybert_of(teacher: Config, layers: int | None = None) -> Config:
    """Returns the config of a TinyBERT student: the preset tinybert-4 with `layers` layers (None: 4). The
    fields in the list `same` of `preset_of` have the teacher's values.
    """
    return preset_of("tinybert-4", teacher, layers)


def mobilebert_of(teacher: Config, layers: int | None = None) -> MobileConfig:
    """Returns the config of a MobileBERT student for the IB-BERT `teacher`. The fields in the dict `same`
    have the teacher's values. `bottleneck_size` is a quarter of the teacher's `hidden_size`, and
    `intermediate_size` is 4 times `bottleneck_size`. All other fields are those of the published MobileBERT.
    Raises `UserError` if the teacher is a BERT or DistilBERT, or if `layers` is neither None nor the
    teacher's number of layers.
    """
    if not isinstance(teacher, MobileConfig):
        raise UserError(f"the teacher of --method mobilebert is an IB-BERT, and this one is a "
                        f"{teacher.architecture}; minilmv2 teaches a MobileBERT from any teacher")
    if layers not in (None, teacher.layers):
        raise UserError(f"--layers {layers}: a MobileBERT has the layers of its teacher, {teacher.layers}")
    inside = teacher.hidden_size // 4  # as in the published MobileBERT: 512 / 4 = 128
    same = {name: getattr(teacher, name) for name in
            ("vocab_size", "hidden_size", "layers", "heads", "embedding_size", "max_positions", "segments",
             "pad_id", "initializer_range")}
    return replace(PRESETS["mobilebert"], bottleneck_size=inside, intermediate_size=4 * inside, **same)


def preset_of(name: str, teacher: Config, layers: int | None = None, copied: bool = False) -> Config:
    """Returns the config of the preset `name`. The fields in the list `same` have the teacher's values.
    `layers` is the number of layers (None: that of the preset). `copied` must be true if the student will
    copy teacher layers, because these layers need the teacher's `activation` and `norm_eps`.
    """
    same = ["vocab_size", "max_positions", "pad_id", "labels", "problem_type"]
    if copied:
        same += ["activation", "norm_eps"]
    config = replace(preset(name), **{field: getattr(teacher, field) for field in same})
    return config if layers is None else replace(config, layers=layers)


# ---------------------------------------------------------------- layer maps

def copied_layers(student_layers: int, teacher_layers: int) -> list[int]:
    """Returns a list with the number (from 0) of the teacher layer that each student layer copies. Layer i of
    the student copies teacher layer round(i (L_t - 1) / (L_s - 1)), where L_t and L_s are the numbers of
    layers of teacher and student. For a student of 6 layers and a teacher of 12 layers, the list is 0, 2, 4,
    7, 9, 11, as in DistilBERT. A student of one layer copies layer 0. Raises `UserError` if the student has
    more layers than the teacher.
    """
    if not 1 <= student_layers <= teacher_layers:
        raise UserError(f"a student of {student_layers} layers cannot be copied "
                        f"from a teacher of {teacher_layers} layers")
    if student_layers == 1:
        return [0]
    return [round(i * (teacher_layers - 1) / (student_layers - 1)) for i in range(student_layers)]


def imitated_layers(student_layers: int, teacher_layers: int,
                    given: tuple[int, ...] | None = None) -> tuple[int, ...]:
    """Returns the layer map as a tuple (g(0), g(1), ..., g(L_s)): student layer m imitates teacher layer
    g(m). Layer 0 is the embedding output, so g(0) = 0. If `given` is None, g(m) is round(m L_t / L_s) (Jiao
    et al. 2019), where L_s and L_t are the numbers of layers of student and teacher. Otherwise, `given` is
    the tuple (g(1), ..., g(L_s)). Raises `UserError` if `given` does not name one teacher layer for each
    student layer, or if `given` is None and the student has more layers than the teacher.
    """
    if given is None:
        if not 1 <= student_layers <= teacher_layers:
            raise UserError(f"a student of {student_layers} layers has no uniform layer map to a teacher of "
                            f"{teacher_layers}: give --imitate with one teacher layer for each student layer")
        return tuple(round(m * teacher_layers / student_layers) for m in range(student_layers + 1))
    if len(given) != student_layers or not all(1 <= g <= teacher_layers for g in given):
        raise UserError(f"--imitate {','.join(map(str, given))} must have {student_layers} numbers, one for "
                        f"each student layer, from 1 to {teacher_layers}, the number of teacher layers")
    return 0, *given


# ---------------------------------------------------------------- making students

STARTS = ("teacher", "embeddings", "random")


def make_student(teacher: nn.Module, shape: str | Config | None = None, *, layers: int | None = None,
                 layer_map: Sequence[int] | None = None, init: str = "teacher", seed: int = 0,
                 fold_segments: bool = True) -> nn.Module:
    """Builds a student with the same kind of head as its teacher, on the teacher's device and in the
    teacher's mode (train or eval).

    `shape` is the name of a preset or a `Config` (None: the teacher's config with half of the layers).
    `layers` is the number of layers. If `layers` is None and `shape` is a `Config`, the student has as many
    layers as this config. If `layers` is None and `shape` is no `Config`, the student has one layer for each
    number in `layer_map`. If `layer_map` is None as well, the student has as many layers as the shape.

    `init` says which weights are copied. "teacher" copies the embeddings, the head and teacher layers.
    `layer_map` has the number (from 0) of the copied teacher layer for each student layer (None: the result
    of `copied_layers`). "embeddings" copies only the embeddings and the head. "random" copies nothing, so the
    student may have any width. Weights that are not copied are random and depend on `seed`.

    `fold_segments` is for a student without token types. If `fold_segments` is true, the teacher's vector of
    token type 0 is added to every copied position vector. So a single text has the same embeddings in student
    and teacher. If `fold_segments` is false, the vector of token type 0 is left out, as in DistilBERT's
    original script.
    """
    if init not in STARTS:
        raise UserError(f"init {init!r} is not known: {', '.join(STARTS)}")
    if layers is None and layer_map is not None and not isinstance(shape, Config):
        layers = len(layer_map)
    config = student_config(teacher.config, shape, layers, copied=init == "teacher")
    if init == "teacher":
        origins = layer_map
        if layer_map is None:
            origins = copied_layers(config.layers, teacher.config.layers)
        check_layers(config, teacher.config, origins)
        student = copied(teacher, same_head(teacher, config, pooler=True), origins, fold_segments)
    elif init == "embeddings":
        student = copied(teacher, random_weights(same_head(teacher, config), seed), None, fold_segments)
    else:
        student = random_weights(same_head(teacher, config), seed)
    return student.to(next(teacher.parameters()).device).train(teacher.training)


def student_config(teacher: Config, shape: str | Config | None, layers: int | None, copied: bool) -> Config:
    """Returns the config of a student. `make_student` describes `shape` and `layers`, and `preset_of`
    describes `copied`.
    """
    if isinstance(shape, str):
        return preset_of(shape, teacher, layers, copied)
    if shape is None:
        return halved(teacher, layers)
    return shape if layers is None else replace(shape, layers=layers)


def same_head(teacher: nn.Module, config: Config, pooler: bool = False) -> nn.Module:
    """Returns a new model with the config `config` and the teacher's kind of head. If the teacher has no
    head, the model has a pooler only if `pooler` is true and the teacher has a pooler.
    """
    if isinstance(teacher, Encoder):
        return build_encoder(config, pooler and teacher.pooler is not None)
    return type(teacher)(config)


@torch.no_grad()
def random_weights(model: nn.Module, seed: int) -> nn.Module:
    """Gives a model random weights and returns the model. The weights depend only on `seed` and the config.
    All token types get the same vector. In pre-training, all text has token type 0, so a random vector of
    token type 1 would stay untrained. In fine-tuning, this vector would add noise to text pairs.
    """
    init_weights(model, torch.Generator().manual_seed(seed))
    segment = encoder_of(model).segment
    if segment is not None:
        segment.weight[1:] = segment.weight[0]
    return model


@torch.no_grad()
def copied(teacher: nn.Module, student: nn.Module, layers: Sequence[int] | None, fold_segments: bool
           ) -> nn.Module:
    """Copies the teacher's weights into a student with the same kind of head, and returns the student.
    `layers` has, for each student layer, the number (from 0) of the copied teacher layer (None: no layers are
    copied). `make_student` describes `fold_segments`.
    """
    check_embeddings(student.config, teacher.config)
    other_norm = getattr(student.config, "norm", None) != getattr(teacher.config, "norm", None)
    teacher_weights, student_weights = teacher.state_dict(), {}
    for name in student.state_dict():
        # `origin` is the tensor's name in the teacher: it equals `name`, except for the number of the layer
        origin, layer = name, re.fullmatch(r"((?:encoder\.)?layers\.)(\d+)(\..*)", name)
        if layer and layers is None or other_norm and re.match(r"(encoder\.)?norm\.", name):
            continue  # no layers are copied, or one model has a LayerNorm and the other a NoNorm
        if layer:
            origin = f"{layer[1]}{layers[int(layer[2])]}{layer[3]}"
        if origin not in teacher_weights:
            raise UserError(f"the teacher has no {origin} that the student could copy: student and teacher "
                            "have different kinds of heads or token types")
        student_weights[name] = teacher_weights[origin]
    # `load_state_dict` copies the values, so student and teacher share no tensor
    student.load_state_dict(student_weights, strict=False)
    token_types = encoder_of(teacher).segment
    if token_types is not None and encoder_of(student).segment is None and fold_segments:
        encoder_of(student).position.weight += token_types.weight[0]
    return student


def check_equal(student: Config, teacher: Config, sizes: dict[str, str], hint: str) -> None:
    """Raises `UserError` if student and teacher differ in one of `sizes`, a dict from config fields to their
    names in the error message. `hint` is the end of the message.
    """
    for name, meaning in sizes.items():
        student_size, teacher_size = getattr(student, name), getattr(teacher, name)
        if student_size != teacher_size:
            raise UserError(f"student and teacher do not fit: {meaning} {student_size} against "
                            f"{teacher_size}; {hint}")


OUTER_SIZES = {"vocab_size": "vocabulary", "hidden_size": "width", "max_positions": "positions"}


def check_vocabulary(student: Config, teacher: Config) -> None:
    """Raises `UserError` if student and teacher have vocabularies of different sizes."""
    check_equal(student, teacher, {"vocab_size": "vocabulary"}, "both read the same ids")


def check_heads(student: Config, teacher: Config) -> None:
    """Raises `UserError` if the numbers of heads differ, because attention is compared head by head."""
    check_equal(student, teacher, {"heads": "heads"}, "the method compares attention head by head; minilmv2 "
                "allows different numbers of heads")


def check_embeddings(student: Config, teacher: Config) -> None:
    """Raises `UserError` if the student cannot copy the teacher's embeddings, because a size differs."""
    check_equal(student, teacher, OUTER_SIZES | {"embedding_size": "width of the word embeddings"}, "to copy "
                "weights, vocabulary, width and positions must be equal (--init random allows any width)")


def check_layers(student: Config, teacher: Config, layers: Sequence[int]) -> None:
    """Raises `UserError` if the student cannot copy the teacher layers with the numbers `layers` (from 0), or
    the teacher's embeddings.
    """
    check_embeddings(student, teacher)
    if len(layers) != student.layers or not all(0 <= i < teacher.layers for i in layers):
        raise UserError(f"layer map {list(layers)} must have {student.layers} numbers from 0 to "
                        f"{teacher.layers - 1}")
    for name in ("intermediate_size", "heads", "bottleneck_size", "feed_forwards", "attention_input", "norm",
                 "activation", "norm_eps"):
        if getattr(student, name, None) != getattr(teacher, name, None):
            raise UserError(f"student and teacher differ in {name}, so layers cannot be copied; use "
                            "--init random")
