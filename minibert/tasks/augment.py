"""Copies a text and replaces some words of each copy: TinyBERT's data augmentation (Jiao et al. 2019, section
3.2, algorithm 1).

A masked language model finds the candidates for a word: the word is masked, and the `k` words with the
highest probabilities at the masked position are the candidates.

The code differs from the paper and from the original code:
- Only words that consist of one token are replaced. The paper also replaces words of several tokens, by words
  with similar GloVe vectors.
- The candidates for all words of a text are computed once, before any word is replaced. Algorithm 1 computes
  new candidates for each copy: for each word, after the words before it have been replaced.
- Up to 15 % of the tokens of a text are masked at the same time. The original code masks one word at a time.
  In a measurement, the two ways of masking had about 14 of the 15 candidates for a word in common.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from minibert.common.console import Progress
from minibert.common.randomness import uniform
from minibert.common.runtime import Runtime
from minibert.data.examples import make_examples
from minibert.data.tokenizer import Tokenizer
from minibert.inference.predict import MICRO_TOKENS
from minibert.model.batch import groups
from minibert.tasks.specs import Example

BLOCK = 128  # number of examples whose candidates are computed together
MASK_SHARE = 0.15  # the largest share of masked tokens in a `Query`, which masks at least one token

WORD = re.compile(r"(?<!\w)[^\W\d_]+(?!\w)")  # a word of letters only; finds nothing in `b2b` or `snake_case`
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


class Text(NamedTuple):
    """A text with its replaceable words and their candidates."""

    text: str
    spans: list[tuple[int, int]]  # for each replaceable word, the positions [start, end) of its characters
    candidates: list[list[str]]  # for each replaceable word, the words that may replace it


class Query(NamedTuple):
    """A part of a text, and the words of this part that are masked together."""

    ids: list[int]
    masked: list[int]  # the positions in `ids` that are masked
    words: list[int]  # for each position, the index of its word among all replaceable words of all texts


def with_candidates(texts: list[str], model: nn.Module, tokenizer: Tokenizer, runtime: Runtime, k: int = 15,
                    micro_tokens: int = MICRO_TOKENS) -> list[Text]:
    """Returns a list with one `Text` for each text. A `Text` has at most `k` candidates for each replaceable
    word, the most probable candidate first.

    `model` is a frozen model with an MLM head. The model reads two copies of a text in one sequence: a copy
    with masked words, and the unchanged text. So a text is divided into parts if it fills more than about
    half of the model's positions.
    """
    room = (model.config.max_positions - 3) // 2
    found, queries, words = [], [], 0
    for text, encoding in zip(texts, tokenizer.backend.encode_batch(texts, add_special_tokens=False)):
        places = {span: i for i, span in enumerate(encoding.offsets)
                  if encoding.ids[i] != tokenizer.unk_id}
        spans = [span for span in replaceable(text) if span in places]
        queries += queries_of(encoding.ids, [(places[span], words + i) for i, span in enumerate(spans)], room)
        found.append((text, spans, range(words, words + len(spans))))
        words += len(spans)
    candidates = predicted(queries, model, tokenizer, runtime, k, micro_tokens)
    return [Text(text, spans, [candidates[i] for i in numbers]) for text, spans, numbers in found]


def is_word(text: str) -> bool:
    """Returns True if the token `text` can be a candidate: it has at least two letters and no other
    characters, and is not a stop word.
    """
    return len(text) > 1 and text.isalpha() and text.lower() not in STOP_WORDS


def replaceable(text: str) -> list[tuple[int, int]]:
    """Returns a list with the positions [start, end) of the characters of each replaceable word. As in the
    original code, a replaceable word has only letters and is not a stop word. Words with combining marks, as
    in Hindi, are left out.
    """
    def marked(neighbour: str) -> bool:
        return unicodedata.category(neighbour or " ")[0] == "M"
    return [match.span() for match in WORD.finditer(text)
            if match[0].lower() not in STOP_WORDS
            and not marked(text[max(0, match.start() - 1):match.start()])
            and not marked(text[match.end():match.end() + 1])]


def queries_of(ids: list[int], single: list[tuple[int, int]], room: int) -> Iterator[Query]:
    """Yields the queries of the text that has the token ids `ids`. `single` has a pair for each replaceable
    word: the position of its only token in `ids`, and the index of the word (see `Query.words`).

    A text with more than `room` tokens is divided into parts of about equal length. If a part has several
    queries, no query masks two neighbouring replaceable words.
    """
    stretches = -(-len(ids) // room)
    borders = [len(ids) * i // max(1, stretches) for i in range(stretches + 1)]
    for start, end in pairwise(borders):
        here = [(place - start, word) for place, word in single if start <= place < end]
        passes = -(-len(here) // max(1, int(MASK_SHARE * (end - start))))
        for turn in range(passes):
            masked, words = zip(*here[turn::passes])
            yield Query(ids[start:end], list(masked), list(words))


@torch.no_grad()
def predicted(queries: list[Query], model: nn.Module, tokenizer: Tokenizer, runtime: Runtime, k: int,
              micro_tokens: int) -> dict[int, list[str]]:
    """Returns a dict from the index of each masked word to a list of its candidates. The list has at most `k`
    candidates, the most probable candidate first.
    """
    if not queries:
        return {}
    cls, sep, found = [tokenizer.cls_id], [tokenizer.sep_id], {}
    ids = [cls + query.ids + sep + query.ids + sep for query in queries]
    segments = [[0] * (len(query.ids) + 2) + [1] * (len(query.ids) + 1) for query in queries]
    for sequence, query in zip(ids, queries):
        for i in query.masked:
            sequence[1 + i] = tokenizer.mask_id
    examples = make_examples(ids, segments, np.full(len(ids), -1))
    # (V,): a number for each token. Tokens that differ only in capital letters have the same number, so that
    # "film" is not replaced by "Film". Tokens that cannot be candidates have the number -1.
    spelling = torch.full((model.config.vocab_size,), -1, device=runtime.device)
    first: dict[str, int] = {}
    for i, piece in enumerate(tokenizer.vocabulary):
        if is_word(piece):
            spelling[i] = first.setdefault(piece.casefold(), i)
    for group in groups(examples.lengths, micro_tokens):
        batch = examples.batch(group).to(runtime.device)
        together = [queries[i] for i in group]
        offsets = np.cumsum(examples.lengths[group]) - examples.lengths[group]
        rows = torch.tensor([offset + 1 + i for offset, query in zip(offsets, together)
                             for i in query.masked])
        # (M,): the numbers in `spelling` of the M masked words; a word cannot be a candidate for itself
        own = spelling[[query.ids[i] for query in together for i in query.masked]]
        with runtime.autocast():
            last = model.encoder(batch)[rows.to(runtime.device)]  # (M, D), where D is the hidden size
            logits = model.mlm.logits(last, model.encoder.word.weight).float()  # (M, V)
        logits = logits.masked_fill_((spelling < 0) | (spelling == own[:, None]), -torch.inf)
        best = logits.topk(k)
        for word, numbers, values in zip((word for query in together for word in query.words),
                                         best.indices.tolist(), best.values.tolist()):
            found[word] = [tokenizer.id_to_piece(i) for i, value in zip(numbers, values)
                           if value > -np.inf]
    return found


def copies(text: Text, n: int, p: float, *key: int) -> list[str]:
    """Returns a list of `n` copies of a text. In a copy, each word that has candidates is replaced, with
    probability `p`, by a random candidate. The same `key` gives the same random numbers.
    """
    words, round_number = np.arange(len(text.spans)), np.arange(n)[:, None]
    replaced = uniform(*key, round_number, words, 0) <= p  # (n, number of words)
    counts = np.array([len(found) for found in text.candidates])  # (number of words,)
    chosen = uniform(*key, round_number, words, 1) * counts  # (n, number of words)
    made = []
    for turn in range(n):
        copy, end = "", 0
        for word in np.flatnonzero(replaced[turn] & (counts > 0)):
            start, next_end = text.spans[word]
            new = text.candidates[word][int(chosen[turn, word])]
            copy += text.text[end:start] + in_case_of(text.text[start:next_end], new)
            end = next_end
        made.append(copy + text.text[end:])
    return made


def in_case_of(old: str, new: str) -> str:
    """Returns `new` with a capital first letter if `old` has one. If `old` has several letters and all are
    capitals, all letters of the result are capitals.
    """
    if old.isupper() and len(old) > 1:
        return new.upper()
    return new[:1].upper() + new[1:] if old[:1].isupper() else new


def augment(rows: list[Example], find: Callable[[list[str]], list[Text]], n: int, p: float,
            seed: int) -> Iterator[Example]:
    """Yields each row, and after the row at most `n` changed copies of it. The copies differ from the row and
    from each other, and have the row's id and label.

    `find(texts)` returns the result of `with_candidates` for `texts`. The two texts of a pair are changed
    independently. In the original code, every changed copy of the second text is paired with the last changed
    copy of the first text.
    """
    progress = Progress("augmenting", len(rows), "examples")
    for start in range(0, len(rows), BLOCK):
        block = rows[start:start + BLOCK]
        texts = list(dict.fromkeys(text for row in block for text in columns_of(row)))
        found = dict(zip(texts, find(texts)))
        for number, row in enumerate(block, start):
            varied = zip(*(copies(found[text], n, p, seed, number, column)
                           for column, text in enumerate(columns_of(row))))
            for columns in dict.fromkeys([columns_of(row), *varied]):
                yield Example(row.id, columns[0], columns[1] if row.pair is not None else None, row.label)
        progress(len(block))


def columns_of(row: Example) -> tuple[str, ...]:
    """Returns a tuple with the one or two texts of a row."""
    return (row.text,) if row.pair is None else (row.text, row.pair)
