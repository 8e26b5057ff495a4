"""Running a model over many texts:
sorted by length, packed to a token budget, results in the order asked for.
"""

import sys
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from minibert.common.errors import UserError
from minibert.common.runtime import Runtime
from minibert.data.examples import Examples, check_examples, encode, make_examples
from minibert.data.tokenizer import Tokenizer
from minibert.model.batch import groups, pack, rows_of
from minibert.model.heads import Classifier, Span, encoder_of

MICRO_TOKENS = 4096


def where_it_is(model: nn.Module) -> Runtime:
    """One rank in fp32 on the model's own device: what the functions here run on unless told otherwise."""
    return Runtime(next(model.parameters()).device, "fp32")


@torch.no_grad()
def outputs(model: nn.Module, examples: Examples, runtime: Runtime,
            micro_tokens: int = MICRO_TOKENS, progress: Callable[[int], None] | None = None) -> np.ndarray:
    """What the model returns for every example, fp32, in order:
    (n, K), or for a span head (N, 2), one row for each token.

    `progress` is told the tokens of every forward pass.
    """
    training, per_token = model.training, isinstance(model, Span)
    model.eval()
    made = None
    for group in groups(examples.lengths, micro_tokens):
        batch = examples.batch(group).to(runtime.device)
        with runtime.autocast():
            out = model(batch).float().cpu().numpy()
        if made is None:
            made = np.empty((examples.lengths.sum() if per_token else len(examples.lengths), out.shape[1]),
                            np.float32)
        made[rows_of(examples.starts[group], examples.lengths[group])[0] if per_token else group] = out
        if progress:
            progress(len(batch.ids))
    model.train(training)
    return made


def predict(model: nn.Module, tokenizer: Tokenizer, texts: list[str], pairs: list[str] | None = None, *,
            max_length: int | None = None, runtime: Runtime | None = None) -> np.ndarray:
    """Logits (n, K) of a classifier for texts, or pairs of texts; scores (n, 1) of a regression.

    `model.config.labels` names the classes.
    Texts longer than `max_length` (default: the model's positions) are cut.
    `UserError` where the model is no classifier.
    """
    if not isinstance(model, Classifier):
        raise UserError(f"predict needs a classifier, and this model is a {type(model).__name__}: fine-tune "
                        "it first")
    runtime = runtime or where_it_is(model)
    length = max_length or model.config.max_positions
    examples = encode(tokenizer, texts, pairs, length)
    check_examples(examples, model.config, "the model")
    return outputs(model.to(runtime.device), examples, runtime)


@torch.no_grad()
def fill_masks(model: nn.Module, tokenizer: Tokenizer, text: str, pair: str | None = None, best: int = 5,
               runtime: Runtime | None = None) -> list[list[tuple[str, float]]]:
    """For each [MASK] of a text, or of a pair of texts, its `best` likeliest pieces and their probabilities.

    `UserError` where there is no [MASK], or the text is longer than the model can read.
    """
    runtime, training = runtime or where_it_is(model), model.training
    ids, segments = tokenizer.encode([text], None if pair is None else [pair], max_length=sys.maxsize)
    at = [row for row, i in enumerate(ids[0]) if i == tokenizer.mask_id]
    if not at:
        raise UserError("there is no [MASK] in this text: write one where a word is to be filled in")
    if len(ids[0]) > model.config.max_positions:
        raise UserError(f"the text has {len(ids[0])} tokens, and the model reads {model.config.max_positions}")
    check_examples(make_examples(ids, segments, np.array([-1])), model.config, "the model")
    model.eval()
    with runtime.autocast():
        logits = model(pack(ids, segments).to(runtime.device))[at, :tokenizer.vocab_size]  # (masks, V)
    model.train(training)
    p, found = logits.float().softmax(-1).topk(min(best, tokenizer.vocab_size))
    return [[(tokenizer.id_to_piece(i), share) for i, share in zip(row, shares)]
            for row, shares in zip(found.tolist(), p.tolist())]


@torch.no_grad()
def embed(model: nn.Module, tokenizer: Tokenizer, texts: list[str], *, max_length: int | None = None,
          runtime: Runtime | None = None) -> np.ndarray:
    """One vector (n, D) of length 1 for each text:
    the mean of its tokens' last hidden states, as sentence encoders use.

    The mean runs over all tokens of the text,
    [CLS] and [SEP] included (Reimers and Gurevych 2019, section 3).
    """
    runtime = runtime or where_it_is(model)
    encoder, training = encoder_of(model).to(runtime.device), model.training
    model.eval()
    examples = encode(tokenizer, texts, None, max_length or encoder.config.max_positions)
    vectors = np.empty((len(texts), encoder.config.hidden_size), np.float32)
    for group in groups(examples.lengths, MICRO_TOKENS):
        batch = examples.batch(group).to(runtime.device)
        with runtime.autocast():
            last = encoder(batch).float()  # (N, D)
        lengths = batch.lengths.to(last.device)
        sums = last.new_zeros(len(group), last.shape[1]).index_add_(
            0, torch.arange(len(group), device=last.device).repeat_interleave(lengths), last)
        vectors[group] = torch.nn.functional.normalize(sums / lengths[:, None]).cpu().numpy()
    model.train(training)
    return vectors
