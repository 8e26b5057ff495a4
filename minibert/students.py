"""Students: their shape, and how they start from their teacher."""

from dataclasses import replace

import torch
from torch import nn

from minibert.config import Config
from minibert.errors import UserError
from minibert.heads import MaskedLM
from minibert.model import init_weights


def layer_map(teacher_layers: int, student_layers: int) -> list[int]:
    """The teacher layer (from 0) that each student layer is copied from: round(i (L_t - 1) / (L_s - 1)).

    12 to 6 gives 0, 2, 4, 7, 9, 11, the choice of the released DistilBERT:
    one out of two, first and last among them.
    """
    if not 1 <= student_layers <= teacher_layers:
        raise UserError(f"a student of {student_layers} layers cannot be taken "
                        f"from a teacher of {teacher_layers}")
    if student_layers == 1:
        return [0]
    return [round(i * (teacher_layers - 1) / (student_layers - 1)) for i in range(student_layers)]


def distilbert_of(teacher: Config, layers: int | None = None) -> Config:
    """The DistilBERT of a teacher: half its layers (or `layers`), all else alike;
    no token types and no pooler.
    """
    return replace(teacher, architecture="distilbert", layers=layers or max(1, teacher.layers // 2),
                   segments=0, classifier_dropout=0.2)


def check_fit(student: Config, teacher: Config) -> None:
    """Raises `UserError` where the distilbert method cannot compare the two:
    vocabulary, width or positions differ.
    """
    for name, meaning in (("vocab_size", "vocabulary"), ("hidden_size", "width"),
                          ("max_positions", "positions")):
        ours, theirs = getattr(student, name), getattr(teacher, name)
        if ours != theirs:
            raise UserError(f"student and teacher do not fit: {meaning} {ours} against {theirs}; "
                            "the distilbert method needs equal vocabulary, width and positions")


@torch.no_grad()
def student_from(teacher: MaskedLM, config: Config, layers: list[int],
                 fold_segments: bool = True) -> MaskedLM:
    """A student that starts as its teacher with some of the layers taken out;
    embeddings and MLM head are copied.

    A student without token types gets row 0 of the teacher's added to every position
    (`fold_segments`), so that its embedding output equals the teacher's on single sentences; otherwise
    that row is dropped, as in the original script.
    """
    check_fit(config, teacher.config)
    if len(layers) != config.layers or not all(0 <= i < teacher.config.layers for i in layers):
        raise UserError(f"layer map {layers} does not give {config.layers} layers "
                        f"out of 0 to {teacher.config.layers - 1}")
    for name in ("intermediate_size", "heads"):
        if getattr(config, name) != getattr(teacher.config, name):
            raise UserError(f"student and teacher differ in {name}, so layers cannot be copied; "
                            "use --init random")
    student = MaskedLM(config)
    theirs = teacher.encoder
    student.mlm.load_state_dict(teacher.mlm.state_dict())
    student.encoder.word.load_state_dict(theirs.word.state_dict())
    student.encoder.position.load_state_dict(theirs.position.state_dict())
    student.encoder.norm.load_state_dict(theirs.norm.state_dict())
    for layer, source in zip(student.encoder.layers, layers):
        layer.load_state_dict(theirs.layers[source].state_dict())
    if student.encoder.segment is not None and theirs.segment is not None:
        student.encoder.segment.load_state_dict(theirs.segment.state_dict())
    elif student.encoder.segment is not None:
        raise UserError("the student has token types and its teacher has none to copy")
    elif theirs.segment is not None and fold_segments:
        student.encoder.position.weight += theirs.segment.weight[0]
    return student


def from_scratch(config: Config, seed: int) -> MaskedLM:
    """A masked language model with random weights."""
    return init_weights(MaskedLM(config), torch.Generator().manual_seed(seed))


def with_new_mlm_head(encoder: nn.Module, seed: int) -> MaskedLM:
    """A masked language model around a given encoder, with a new head;
    how a sentence encoder becomes a teacher.
    """
    model = from_scratch(encoder.config, seed)
    weights = {name: tensor for name, tensor in encoder.state_dict().items() if not name.startswith("pooler")}
    model.encoder.load_state_dict(weights)
    return model
