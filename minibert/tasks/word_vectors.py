"""Word vectors from GloVe's text files or a model's word embeddings, and the search for the nearest words."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from minibert.common.errors import UserError
from minibert.data.tokenizer import Tokenizer

CHUNK = 256  # the number of words whose similarities to all words are computed together
# function words, and the parts of "don't" or "it's" before and after the apostrophe
STOP_WORDS = frozenset("""
a about above after again against ain all am an and any are aren as at be because been before being below
between both but by can could couldn d did didn do does doesn doing don down during each few for from further
had hadn has hasn have haven having he her here hers herself him himself his how i if in into is isn it its
itself just ll m may me might mightn more most must mustn my myself needn no nor not now o of off on once
only or other our ours ourselves out over own re s same shall shan she should shouldn so some such t than
that the their theirs them themselves then there these they this those through to too under until up ve very
was wasn we were weren what when where which while who whom why will with won would wouldn y you your yours
yourself yourselves
""".split())


class Vectors(NamedTuple):
    """The words among which `nearest` searches, their vectors, and a function that gives the vector of any
    word.
    """

    words: list[str]
    table: Tensor  # (n, D), the vectors of `words`, each with length 1
    of: Callable[[str], Tensor | None]  # the vector of a word (D,) with length 1, or None if it has no vector


def is_word(text: str) -> bool:
    """Whether a text is a word that may be replaced: it has at least two characters, all of them are letters,
    and it is not a stop word.
    """
    return len(text) > 1 and text.isalpha() and text.lower() not in STOP_WORDS


def read_vectors(path: str | Path, limit: int = 100_000) -> Vectors:
    """The vectors in the first `limit` lines of a GloVe text file. Its lines have the form `word x1 x2 ...
    xD`. Only words for which `is_word` is true are kept.

    GloVe's files begin with the most frequent words. TinyBERT's code has the same limit. If the first line
    has only two numbers, as in word2vec's files, it is skipped. Raises `UserError` with the line number if a
    line has any other form.
    """
    path = Path(path)
    words, rows, width = [], [], None
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(itertools.islice(file, limit), 1):
                fields = line.rstrip().split(" ")
                if number == 1 and len(fields) == 2 and all(field.isdigit() for field in fields):
                    continue
                width = width or len(fields) - 1
                # a few words in the largest GloVe files contain spaces
                word, values = " ".join(fields[:-width]), fields[-width:]
                try:
                    row = np.array(values, np.float32)
                except ValueError:
                    row = np.array([np.nan])
                if not word or len(row) != width or not np.isfinite(row).all():
                    raise UserError(f"{path}, line {number} is not a word and {width} numbers: {line[:40]!r}")
                if is_word(word) and row.any():
                    words.append(word)
                    rows.append(row)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if not words:
        raise UserError(f"{path} holds no word vectors")
    table = torch.nn.functional.normalize(torch.from_numpy(np.stack(rows)))
    numbers = {word: i for i, word in reversed(list(enumerate(words)))}

    def of(word: str) -> Tensor | None:
        number = numbers.get(word, numbers.get(word.lower()))
        return None if number is None else table[number]
    return Vectors(words, table, of)


def own_vectors(model: nn.Module, tokenizer: Tokenizer) -> Vectors:
    """A model's word embeddings minus their mean. The vector of a word of several pieces is the mean of the
    vectors of its pieces.
    """
    weight = model.encoder.word.weight.detach().float().cpu()
    weight = weight - weight.mean(0)  # the mean of all embeddings says nothing about a single word
    found = [i for i, piece in enumerate(tokenizer.vocabulary) if is_word(piece)]

    def of(word: str) -> Tensor | None:
        pieces = tokenizer.pieces([word])[0]
        if tokenizer.unk_id in pieces:
            return None
        return torch.nn.functional.normalize(weight[pieces].mean(0), dim=0)
    words = [tokenizer.id_to_piece(i) for i in found]
    return Vectors(words, torch.nn.functional.normalize(weight[found]), of)


def nearest(vectors: Vectors, words: list[str], k: int) -> np.ndarray:
    """For each of m words, the indices of the k words in `vectors.words` with the largest cosine to it, as an
    array (m, k). The largest cosine is first, and the word itself is left out. An index is -1 if the word has
    no vector, or if fewer than k words are found.
    """
    out = np.full((len(words), k), -1, np.int32)
    known = [(i, v) for i, v in enumerate(map(vectors.of, words)) if v is not None]
    own: dict[str, list[int]] = {}
    for number, word in enumerate(vectors.words):
        own.setdefault(word.lower(), []).append(number)
    for start in range(0, len(known), CHUNK):
        numbered, directions = zip(*known[start:start + CHUNK])
        cosines = torch.stack(directions).to(vectors.table.device) @ vectors.table.T  # (m, n)
        for row, i in enumerate(numbered):
            cosines[row, own.get(words[i].lower(), [])] = -2.0
        best = cosines.topk(min(k, len(vectors.words)), dim=1)
        numbers = best.indices.masked_fill(best.values < -1.5, -1)
        out[list(numbered), :numbers.shape[1]] = numbers.cpu().numpy()
    return out
