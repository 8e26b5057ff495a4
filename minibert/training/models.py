"""Loads and prepares the models of train.py."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from minibert.common.console import say
from minibert.common.errors import UserError
from minibert.common.runtime import PRECISIONS, Runtime
from minibert.data.tokenizer import Tokenizer, load_tokenizer
from minibert.distill.students import random_weights
from minibert.hub.load_save import load
from minibert.model.config import PRESETS
from minibert.model.encoder import Encoder
from minibert.model.heads import MaskedLM, PreTraining, encoder_of
from minibert.model.sentences import pooling_of


def load_student(name: str, head: str, tokenizer: Tokenizer) -> nn.Module:
    """Loads a student with the head `head` from a folder. `tokenizer` is the teacher's tokenizer. Raises
    `UserError` if the student has another tokenizer than the teacher.
    """
    if load_tokenizer(name).sha256 != tokenizer.sha256:
        raise UserError(f"--student {name} has another tokenizer than its teacher: the same ids would be "
                        "other words; start from a preset, or from a student of this teacher")
    return load(name, head=head)


def check_sentence_teacher(teacher: nn.Module, tokenizer: Tokenizer) -> None:
    """Checks the teacher of the method `embedding`. Raises `UserError` if the teacher puts a prompt before
    each text, or lower-cases each text although its tokenizer is cased. In training, the text would have no
    prompt and would not be lower-cased.
    """
    if teacher.sentences is None:
        say("the teacher has no modules.json: its vector is the mean of its tokens' states, with length 1")
    pooling = pooling_of(teacher)
    if pooling.prompt:
        raise UserError(f"the teacher puts the prompt {pooling.prompt!r} before each text. Put this prompt "
                        "before each line of the corpus, and set default_prompt_name in a copy of its "
                        "folder to null")
    if pooling.lowercase and tokenizer.encode(["A"])[0] != tokenizer.lowercased().encode(["A"])[0]:
        raise UserError("the teacher lower-cases each text before its cased tokenizer reads it. Lower-case "
                        "the corpus, and set do_lower_case in a copy of its folder to false")


def load_alone(name: str, seed: int) -> tuple[MaskedLM, Tokenizer]:
    """Returns a model and its tokenizer from a folder, to train the model without a teacher. A model without
    an MLM head gets a new MLM head with random weights.
    """
    model, tokenizer = load(name), load_tokenizer(name)
    if isinstance(model, PreTraining):  # loads again, without the next-sentence head, which is not trained
        model = load(name, head="mlm")
    if not isinstance(model, MaskedLM):
        say(f"{name} has no MLM head: a new one is trained")
        model = with_new_mlm_head(encoder_of(model), seed)
    return model, tokenizer


def start_alone(name: str, layers: int | None, corpus: str, seed: int) -> tuple[MaskedLM, Tokenizer]:
    """Returns a model with random weights and the sizes of the preset `name`, and its tokenizer. The
    tokenizer is that of `corpus`, a folder made by data/prepare.py. `layers` is the number of layers (None:
    that of the preset). Raises `UserError` if `corpus` has no tokenizer.
    """
    if not (Path(corpus) / "tokenizer").is_dir():
        raise UserError(f"--student {name} has no vocabulary: give --corpus a folder made by "
                        "data/prepare.py; the student gets the tokenizer of this folder")
    tokenizer = load_tokenizer(Path(corpus) / "tokenizer")
    config = replace(PRESETS[name], vocab_size=tokenizer.vocab_size, pad_id=tokenizer.pad_id)
    if layers:
        config = replace(config, layers=layers)
    return random_weights(MaskedLM(config), seed), tokenizer


def with_new_mlm_head(encoder: Encoder, seed: int) -> MaskedLM:
    """Returns a masked language model with the weights of `encoder` and a new head with random weights."""
    model = random_weights(MaskedLM(encoder.config), seed)
    weights = {name: tensor for name, tensor in encoder.state_dict().items() if not name.startswith("pooler")}
    model.encoder.load_state_dict(weights)
    return model


def with_dropout(model: nn.Module, dropout: float | None = None, attention_dropout: float = 0.0) -> nn.Module:
    """Sets the dropout of a model in place and returns the model. If `dropout` is None, only
    `attention_dropout` is set.
    """
    changed = {"attention_dropout": attention_dropout} | ({} if dropout is None else {"dropout": dropout})
    for module in model.modules():
        if hasattr(module, "config"):
            module.config = replace(module.config, **changed)
    return model


def check_positions(max_length: int, **models: nn.Module | None) -> None:
    """Raises `UserError` if one of `models` has fewer than `max_length` positions."""
    for who, model in models.items():
        if model is not None and max_length > model.config.max_positions:
            raise UserError(f"--max-length {max_length} is more than the {who}'s "
                            f"{model.config.max_positions} positions")


def hold_frozen(model: nn.Module, runtime: Runtime) -> nn.Module:
    """Freezes a model, sets eval mode and moves the model to the device. In 16-bit precision, the matrices of
    linear layers and word embeddings are converted to 16 bits once. Otherwise autocast would convert these
    matrices for every micro-batch.
    """
    model.to(runtime.device).eval().requires_grad_(False)
    if runtime.precision != "fp32":
        for module in [m for m in model.modules() if isinstance(m, nn.Linear)] + [encoder_of(model).word]:
            module.weight.data = module.weight.data.to(PRECISIONS[runtime.precision])
    return model


# Pre-training has only token type 0, so it trains only row 0 of the token-type table. After the training, row
# 0 is copied to the rows that were equal to row 0 before the training. Otherwise fine-tuning on pairs would
# start with a meaningless difference between the types of the first and the second text.

def equal_token_types(encoder: Encoder) -> list[int]:
    """Returns the indices of the rows after row 0 of the token-type table that are equal to row 0."""
    if encoder.segment is None:
        return []
    rows = encoder.segment.weight
    return [i for i in range(1, len(rows)) if torch.equal(rows[i], rows[0])]


@torch.no_grad()
def keep_token_types_equal(encoder: Encoder, rows: list[int]) -> None:
    """Copies row 0 of the token-type table to the rows with the indices `rows`."""
    for i in rows:
        encoder.segment.weight[i] = encoder.segment.weight[0]
