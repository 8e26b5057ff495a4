"""Word vectors from GloVe's text files, and the search for the nearest words."""

import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from minibert.common.disk import disk_errors
from minibert.common.errors import UserError

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
    """The words of a file of word vectors, and their vectors."""

    words: list[str]
    table: Tensor  # (n, D), the vectors of `words`, each with length 1


def is_word(text: str) -> bool:
    """Whether a text is a word that may be replaced: it has at least two characters, all of them are letters,
    and it is not a stop word.
    """
    return len(text) > 1 and text.isalpha() and text.lower() not in STOP_WORDS


def read_vectors(path: str | Path, limit: int = 100_000) -> Vectors:
    """The vectors in the first `limit` lines of a GloVe text file. Its lines have the form `word x1 x2 ...
    xD`. Only words for which `is_word` is true are kept.

    GloVe's files begin with the most frequent words. TinyBERT's code has the same limit. Raises `UserError`
    with the line number if a line has any other form.
    """
    words, rows, width = [], [], None
    with disk_errors(Path(path), "read"), open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(itertools.islice(file, limit), 1):
            fields = line.rstrip().split(" ")
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
    if not words:
        raise UserError(f"{path} holds no word vectors")
    return Vectors(words, torch.nn.functional.normalize(torch.from_numpy(np.stack(rows))))


def nearest(vectors: Vectors, words: list[str], k: int) -> dict[str, list[str]]:
    """For each word that has a vector, the k words with the largest cosine to it, the largest first. The word
    itself, in upper or lower case, is left out.
    """
    numbers = {word: i for i, word in reversed(list(enumerate(vectors.words)))}
    own: dict[str, list[int]] = {}
    for number, word in enumerate(vectors.words):
        own.setdefault(word.lower(), []).append(number)
    known = {word: numbers.get(word, numbers.get(word.lower())) for word in words}
    known = {word: number for word, number in known.items() if number is not None}
    found = {}
    for start in range(0, len(known), CHUNK):
        chunk = list(known)[start:start + CHUNK]
        cosines = vectors.table[[known[word] for word in chunk]] @ vectors.table.T  # (m, n)
        for row, word in enumerate(chunk):
            cosines[row, own[word.lower()]] = -2.0
        best = cosines.topk(min(k, len(vectors.words)), dim=1)
        for word, picked, values in zip(chunk, best.indices.tolist(), best.values.tolist()):
            found[word] = [vectors.words[i] for i, cosine in zip(picked, values) if cosine > -1.5]
    return found
