"""Students: their shape, how they start from their teacher, and the models of a run of train.py."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from minibert.common.console import say
from minibert.common.errors import UserError
from minibert.common.options import dropouts, numbers
from minibert.data.examples import check_pieces
from minibert.data.tokenizer import Tokenizer, load_tokenizer
from minibert.distill import tinybert, mobilebert
from minibert.distill.attention_loss import imitated_layers
from minibert.hub.load_save import load
from minibert.model.config import DISTILBERT, PRESETS, Config, MobileConfig, preset
from minibert.model.encoder import Encoder, init_weights
from minibert.model.heads import MaskedLM, PreTraining, build_encoder, encoder_of


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
    if isinstance(teacher, MobileConfig):
        raise UserError("a DistilBERT is half a BERT, and the teacher is a MobileBERT: give --student")
    return replace(teacher, layers=layers or max(1, teacher.layers // 2), **DISTILBERT)


def check_fit(student: Config, teacher: Config) -> None:
    """Raises `UserError` where a student cannot be copied from the teacher, nor the distilbert method compare
    the two: vocabulary, width or positions differ.
    """
    for name, meaning in (("vocab_size", "vocabulary"), ("hidden_size", "width"),
                          ("max_positions", "positions")):
        ours, theirs = getattr(student, name), getattr(teacher, name)
        if ours != theirs:
            raise UserError(f"student and teacher do not fit: {meaning} {ours} against {theirs}; "
                            "copied layers and the distilbert method need equal vocabulary, width and "
                            "positions (with --init random, tinybert and minilm fit any width)")


def student_from(teacher: MaskedLM, config: Config, layers: list[int],
                 fold_segments: bool = True) -> MaskedLM:
    """A student that starts as its teacher with some of the layers taken out; see `encoder_from`. The MLM
    head is copied.
    """
    student = MaskedLM(config)
    student.encoder = encoder_from(teacher.encoder, config, layers, fold_segments)
    student.mlm.load_state_dict(teacher.mlm.state_dict())
    return student


@torch.no_grad()
def encoder_from(teacher: Encoder, config: Config, layers: list[int], fold_segments: bool = True) -> Encoder:
    """An encoder that starts as its teacher with some of the layers taken out; embeddings are copied.

    A student without token types gets row 0 of the teacher's added to every position
    (`fold_segments`), so that its embedding output equals the teacher's on single sentences; otherwise
    that row is dropped, as in the original script.
    """
    check_fit(config, teacher.config)
    if len(layers) != config.layers or not all(0 <= i < teacher.config.layers for i in layers):
        raise UserError(f"layer map {layers} does not give {config.layers} layers "
                        f"out of 0 to {teacher.config.layers - 1}")
    for name in ("intermediate_size", "heads", "embedding_size", "bottleneck_size", "feed_forwards",
                 "attention_input", "norm", "activation", "norm_eps"):
        if getattr(config, name, None) != getattr(teacher.config, name, None):
            raise UserError(f"student and teacher differ in {name}, so layers cannot be copied; "
                            "use --init random")
    student = build_encoder(config)
    for name, module in student.named_children():
        if name not in ("layers", "segment"):
            module.load_state_dict(getattr(teacher, name).state_dict())
    for layer, source in zip(student.layers, layers):
        layer.load_state_dict(teacher.layers[source].state_dict())
    if student.segment is not None and teacher.segment is not None:
        student.segment.load_state_dict(teacher.segment.state_dict())
    elif student.segment is not None:
        raise UserError("the student has token types and its teacher has none to copy")
    elif teacher.segment is not None and fold_segments:
        student.position.weight += teacher.segment.weight[0]
    return student


def mobilebert_of(teacher: Config) -> MobileConfig:
    """The MobileBERT of an IB-BERT: a quarter of its width inside the blocks, all else as released."""
    if not isinstance(teacher, MobileConfig):
        raise UserError(f"the teacher of --method mobilebert is an IB-BERT, and this one is a "
                        f"{teacher.architecture}; minilmv2 teaches a MobileBERT from any teacher")
    inside = teacher.hidden_size // 4
    same = {name: getattr(teacher, name) for name in
            ("vocab_size", "hidden_size", "layers", "heads", "embedding_size", "max_positions", "segments",
             "pad_id", "initializer_range")}
    return replace(PRESETS["mobilebert"], bottleneck_size=inside, intermediate_size=4 * inside, **same)


@torch.no_grad()
def mobilebert_from(teacher: MaskedLM, config: MobileConfig, seed: int) -> MaskedLM:
    """A MobileBERT with random layers; its embeddings and head are its IB-BERT teacher's (Sun et al. 2020,
    section 3.6).

    note: the norm of the embeddings is copied only where both are of one kind, as in the authors' code.
    """
    student = from_scratch(config, seed)
    student.mlm.load_state_dict(teacher.mlm.state_dict())
    copied = ["word", "trigram", "position"]
    if config.segments:
        copied.append("segment")
    if config.norm == teacher.config.norm:
        copied.append("norm")
    for name in copied:
        getattr(student.encoder, name).load_state_dict(getattr(teacher.encoder, name).state_dict())
    return student


def from_scratch(config: Config, seed: int, kind: Callable[[Config], nn.Module] = MaskedLM) -> nn.Module:
    """A masked language model, or what `kind` makes of the config, with random weights."""
    return init_weights(kind(config), torch.Generator().manual_seed(seed))


def with_new_mlm_head(encoder: nn.Module, seed: int) -> MaskedLM:
    """A masked language model around a given encoder, with a new head;
    how a sentence encoder becomes a teacher.
    """
    model = from_scratch(encoder.config, seed)
    weights = {name: tensor for name, tensor in encoder.state_dict().items() if not name.startswith("pooler")}
    model.encoder.load_state_dict(weights)
    return model


def check_read(options, init: str) -> None:
    """`UserError` for options of train.py that make a student, or its start, where they would not be read;
    `init` is --init or the method's default.
    """
    whole = options.student is not None and options.student not in PRESETS
    unread = {}
    if whole:
        unread = dict.fromkeys(("layers", "layer_map", "init", "token_types"),
                               f"--student {options.student} is a model as it is")
    elif options.method == "mlm" and options.teacher is None:
        unread = dict.fromkeys(("layer_map", "token_types", *["init"] * (options.init == "teacher")),
                               "a preset without --teacher starts at random")
    elif options.method == "mobilebert":
        unread = dict.fromkeys(("layer_map", "token_types"),
                               "a MobileBERT starts with its teacher's embeddings and new layers")
        if options.student is None:
            unread["layers"] = "a MobileBERT has the layers of its teacher"
    elif init == "random":
        unread = dict.fromkeys(("layer_map", "token_types"),
                               "nothing is copied from the teacher without --init teacher")
    for name, why in unread.items():
        if getattr(options, name) not in (None, "fold"):
            raise UserError(f"--{name.replace('_', '-')} would not be read: {why}")


def load_models(options, weights, bundled_teacher: Path):
    """Student, teacher (None where there is none) and tokenizer, as the options of train.py say;
    `weights` are those of its method's terms.
    """
    torch.manual_seed(options.seed)
    name, teacher = options.teacher or str(bundled_teacher), None
    if options.method == "mlm" and options.teacher is None:
        name = options.student
        student, tokenizer = lone_student(options)
    else:
        teacher = load(name, head="encoder" if options.method in tinybert.METHODS else "mlm")
        tokenizer = load_tokenizer(name)
        student = make_student(options, weights, teacher)
        check_same_pieces(options.student, tokenizer)
    check_pieces(tokenizer, student.config, name)
    for who, model in (("student", student), ("teacher", teacher)):
        if model is not None and options.max_length > model.config.max_positions:
            raise UserError(f"--max-length {options.max_length} is more than the {who}'s "
                            f"{model.config.max_positions} positions")
    return with_dropout(student, **dropouts(options)), teacher, tokenizer


def check_same_pieces(student: str | None, tokenizer: Tokenizer) -> None:
    """`UserError` where a student that is a folder has another vocabulary than the teacher's tokenizer."""
    if student and student not in PRESETS and load_tokenizer(student).sha256 != tokenizer.sha256:
        raise UserError(f"--student {student} has another tokenizer than its teacher: the same ids would be "
                        "other words; start from a preset, or from a student of this teacher")


def preset_for(options, name: str, **fitted) -> Config:
    """A preset's shape, fitted to a vocabulary, of --layers layers where they are given."""
    config = replace(preset(name), **fitted)
    return replace(config, layers=options.layers) if options.layers else config


def lone_student(options) -> tuple[MaskedLM, Tokenizer]:
    """The student of a run without a teacher, before training, and its tokenizer: a preset's shape with
    random weights and the corpus' vocabulary, or the model in a folder.
    """
    name = options.student
    if name in PRESETS:
        folder = options.corpus[0] if len(options.corpus) == 1 else ""
        if not (Path(folder) / "tokenizer").is_dir():
            raise UserError(f"--student {name} starts without a vocabulary: "
                            "give --corpus a folder made by data/prepare.py, whose tokenizer it takes")
        tokenizer = load_tokenizer(Path(folder) / "tokenizer")
        config = preset_for(options, name, vocab_size=tokenizer.vocab_size, pad_id=tokenizer.pad_id)
        return from_scratch(config, options.seed), tokenizer
    tokenizer, student = load_tokenizer(name), load(name)
    if isinstance(student, PreTraining):  # nothing trains NSP and its pooler
        student = load(name, head="mlm")
    if not hasattr(student, "mlm"):
        say(f"{name} has no MLM head: a new one is trained")
        student = with_new_mlm_head(getattr(student, "encoder", student), options.seed)
    return student, tokenizer


def make_student(options, weights, teacher: MaskedLM | Encoder) -> MaskedLM | Encoder:
    """The student before training, with the head that the teacher has:
    from a folder, or a preset's shape or half the teacher's, copied or random.
    """
    bare, name = isinstance(teacher, Encoder), options.student
    if name is None and options.method in tinybert.METHODS:
        name = "tinybert-4"
    if name and name not in PRESETS:
        student = load(name, head="encoder" if bare else "mlm")
        encoder_of(student).pooler = None  # nothing trains it
        check_student(options, weights, student.config, teacher.config)
        return student
    if name:
        same = ["vocab_size", "max_positions", "pad_id"]
        if options.init == "teacher" and options.method != "mobilebert":  # its layers are copied
            same += ["activation", "norm_eps"]
        config = preset_for(options, name, **{field: getattr(teacher.config, field) for field in same})
    elif options.method == "mobilebert":
        config = mobilebert_of(teacher.config)
    else:
        config = distilbert_of(teacher.config, options.layers)
    check_student(options, weights, config, teacher.config)
    if options.init == "random":
        return from_scratch(config, options.seed, build_encoder if bare else MaskedLM)
    if options.method == "mobilebert":
        return mobilebert_from(teacher, config, options.seed)
    layers = copied_layers(options, config, teacher.config)
    say(f"student layers start from teacher layers {layers}")
    copied = encoder_from if bare else student_from
    return copied(teacher, config, layers, options.token_types == "fold")


def copied_layers(options, student: Config, teacher: Config) -> list[int] | None:
    """The teacher layers, from 0, that the student's start as; None where they start as no teacher's."""
    from_folder = options.student is not None and options.student not in PRESETS
    if from_folder or options.init == "random" or options.method == "mobilebert":
        return None
    if options.layer_map:
        return numbers("--layer-map", options.layer_map)
    return layer_map(teacher.layers, student.layers)


def counterparts(options, weights, student: Config, teacher: Config) -> tuple[int, ...] | None:
    """The teacher layer, from 1, with whose attention that of each of the student's is compared: what it
    imitates in TinyBERT, else what it started as, else TinyBERT's uniform map. None if it has too many.
    """
    if options.method == "tinybert":
        return imitated_layers(student.layers, teacher.layers, weights.layers)[1:]
    copied = copied_layers(options, student, teacher)
    if copied:
        return tuple(g + 1 for g in copied)
    return imitated_layers(student.layers, teacher.layers)[1:] if student.layers <= teacher.layers else None


def check_student(options, weights, student: Config, teacher: Config) -> None:
    """`UserError` where the method cannot compare the two; says which layers it will."""
    if options.method == "distilbert":
        check_fit(student, teacher)
    if options.method == "mlm" and student.vocab_size != teacher.vocab_size:  # the KL to it is reported
        raise UserError(f"student and teacher do not fit: vocabulary {student.vocab_size} against "
                        f"{teacher.vocab_size}; leave out --teacher to train this student alone")
    if options.method == "mobilebert":
        mobilebert.check_fit(student, teacher, weights)
    if options.method not in tinybert.METHODS:
        return
    tinybert.check_fit(options.method, student, teacher, weights)
    if options.method == "tinybert":
        g = imitated_layers(student.layers, teacher.layers, weights.layers)
        say("student layer imitates teacher layer:", ", ".join(f"{m} {g[m]}" for m in range(1, len(g))))
    if options.method == "minilmv2":
        heads = tinybert.relation_heads(weights, student.attention_size, teacher.attention_size)
        say(f"relations in {heads} heads")


def with_dropout(model: nn.Module, **changed) -> nn.Module:
    """Changes dropout settings in place; returns the model."""
    for module in model.modules():
        if hasattr(module, "config"):
            module.config = replace(module.config, **changed)
    return model
