"""Runs inference on many texts, sorted by length and packed into batches. The results have the order of the
given texts.
"""

import sys
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import nn

from minibert.common.errors import UserError
from minibert.common.runtime import Runtime
from minibert.data.examples import Examples, check_examples, check_pieces, encode, make_examples
from minibert.data.tokenizer import Tokenizer
from minibert.model.batch import groups, pack, rows_of
from minibert.model.config import Config
from minibert.model.heads import Classifier, Span, encoder_of
from minibert.model.sentences import pooling_of

MICRO_TOKENS = 4096


def where_it_is(model: nn.Module) -> Runtime:
    """Returns the default runtime: one rank, in fp32, on the device of the model."""
    return Runtime(next(model.parameters()).device, "fp32")


@torch.no_grad()
def outputs(model: nn.Module, examples: Examples, runtime: Runtime,
            micro_tokens: int = MICRO_TOKENS, progress: Callable[[int], None] | None = None) -> np.ndarray:
    """Returns the outputs of the model for all examples, in fp32 and in the order of the examples. A
    classifier's result has one row of logits for each example. A span model's result has one row for each
    token: a start logit and an end logit. A batch has at most `micro_tokens` tokens, but a longer example is
    a batch by itself. `progress` is called with the number of tokens of each batch.
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


def encode_checked(tokenizer: Tokenizer, texts, pairs, max_length: int, config: Config) -> Examples:
    """Checks and tokenises a list of texts. `pairs` has the second texts of pairs, or is None. Raises
    `UserError` if an element is not a text, or if a model with this `config` cannot read the texts.
    """
    texts, pairs = as_texts(texts, "texts"), None if pairs is None else as_texts(pairs, "pairs")
    for name, given in (("texts", texts), ("pairs", pairs or [])):
        for i, text in enumerate(given):
            if not isinstance(text, str):
                raise UserError(f"{name}[{i}] is {text!r:.60}, a {type(text).__name__}, and must be a text")
    check_pieces(tokenizer, config, "these texts")
    examples = encode(tokenizer, texts, pairs, max_length)
    check_examples(examples, config, "the model")
    return examples


def as_texts(given, name: str) -> list:
    """Returns `given` as a list. Raises `UserError` if `given` is one text, bytes, a dict, or not iterable.
    """
    if isinstance(given, (str, bytes, dict)) or not isinstance(given, Iterable):
        raise UserError(f"{name} is a {type(given).__name__}, and must be a list of texts")
    return list(given)


def predict(model: nn.Module, tokenizer: Tokenizer, texts: list[str],
            pairs: list[str] | None = None, *, max_length: int | None = None,
            runtime: Runtime | None = None) -> np.ndarray:
    """Returns the logits of a classifier for n texts: (n, K) for K classes. A regression model gives scores
    (n, 1). For pairs of texts, `pairs` has the n second texts.

    `model.config.labels` has the names of the classes. If `model.config.problem_type` is
    multi_label_classification, the sigmoid of a logit is the probability of its label. Otherwise, the softmax
    of a row of logits has the probabilities of the classes. Texts longer than `max_length` tokens (default:
    the model's number of positions) are cut. Raises `UserError` if the model is no classifier, if the model
    cannot read the texts, or if an element of `texts` or `pairs` is not a text.
    """
    if not isinstance(model, Classifier):
        raise UserError(f"predict needs a classifier, and this model is a {type(model).__name__}: fine-tune "
                        "it first")
    runtime = runtime or where_it_is(model)
    length = max_length or model.config.max_positions
    examples = encode_checked(tokenizer, texts, pairs, length, model.config)
    return outputs(model.to(runtime.device), examples, runtime)


@torch.no_grad()
def fill_masks(model: nn.Module, tokenizer: Tokenizer, text: str, pair: str | None = None, best: int = 5,
               runtime: Runtime | None = None) -> list[list[tuple[str, float]]]:
    """Returns one list for each [MASK] in a text or a pair of texts. A list has a pair (token, probability)
    for each of the `best` most likely tokens. Raises `UserError` if there is no [MASK], or if the model
    cannot read the text.
    """
    runtime, training = runtime or where_it_is(model), model.training
    ids, segments = tokenizer.encode([text], None if pair is None else [pair], max_length=sys.maxsize)
    at = [row for row, i in enumerate(ids[0]) if i == tokenizer.mask_id]
    if not at:
        raise UserError("there is no [MASK] in this text: write one where a word is to be filled in")
    if len(ids[0]) > model.config.max_positions:
        raise UserError(f"the text has {len(ids[0])} tokens, and the model reads "
                        f"{model.config.max_positions}")
    check_examples(make_examples(ids, segments, np.array([-1])), model.config, "the model")
    model.eval()
    with runtime.autocast():
        logits = model(pack(ids, segments).to(runtime.device))[at, :tokenizer.vocab_size]  # (n, V), n masks
    model.train(training)
    p, found = logits.float().softmax(-1).topk(min(best, tokenizer.vocab_size))
    return [[(tokenizer.id_to_piece(i), share) for i, share in zip(row, shares)]
            for row, shares in zip(found.tolist(), p.tolist())]


@torch.no_grad()
def embed(model: nn.Module, tokenizer: Tokenizer, texts: list[str], *, max_length: int | None = None,
          runtime: Runtime | None = None) -> np.ndarray:
    """Returns the sentence vectors of n texts: (n, W) for vectors of width W. The files of
    sentence-transformers in the model's folder say how a vector is computed. Without these files, a vector is
    the mean of the last hidden states, scaled to length 1 (Reimers and Gurevych 2019, section 3). The mean is
    over all tokens, [CLS] and [SEP] included.

    Texts longer than `max_length` tokens are cut. By default, `max_length` is the limit in the files of
    sentence-transformers, but at most the model's number of positions. Raises `UserError` if the files need a
    feature that minibert does not support, if the model cannot read the texts, or if an element of `texts` is
    not a text.
    """
    runtime = runtime or where_it_is(model)
    pooling = pooling_of(model)
    encoder, training = encoder_of(model).to(runtime.device), model.training
    model.eval()
    positions = encoder.config.max_positions
    texts = as_texts(texts, "texts")
    if pooling.prompt:
        texts = [pooling.prompt + text if isinstance(text, str) else text for text in texts]
    examples = encode_checked(tokenizer.lowercased() if pooling.lowercase else tokenizer, texts, None,
                              max_length or min(pooling.max_length or positions, positions), encoder.config)
    vectors = None
    for group in groups(examples.lengths, MICRO_TOKENS):
        batch = examples.batch(group).to(runtime.device)
        with runtime.autocast():
            last = encoder(batch)  # (N, D)
        made = pooling(last, batch).cpu().numpy()
        if vectors is None:
            vectors = np.empty((len(texts), made.shape[1]), np.float32)
        vectors[group] = made
    model.train(training)
    return vectors
