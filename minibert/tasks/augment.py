"""TinyBERT's data augmentation (Jiao et al. 2019, section 3.2, algorithm 1): copies of a text in which some
words are replaced.

Some words are one piece of the vocabulary. The candidates of such a word are the K words to which a masked
language model gives the highest probability at its position. The candidates of any other word are the K words
with the most similar word vectors. In each of N_a copies, each word is replaced with probability p by one of
its candidates.

As in the original code, a word is replaced only if it consists of letters and is not a stop word. The model
reads the text with masked words, and then the unchanged text as the second text. So the candidates have
meanings that fit the text. The candidates of each text are computed once. note: algorithm 1 computes new
candidates in each of the N_a rounds, from the text in which words are already replaced. It needs N_a times
the work, and each round moves the text further from its meaning. The original code masks one word at a time.
Here up to 15 % of the pieces of a text are masked at once, as in pre-training. About 14 of 15 candidates are
the same in both ways. A candidate is never a stop word or the word itself.
"""

import re
import time
import unicodedata
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from minibert.common.console import clock
from minibert.common.randomness import uniform
from minibert.common.runtime import Runtime
from minibert.data.examples import make_examples
from minibert.model.batch import groups
from minibert.data.tokenizer import Tokenizer
from minibert.inference.predict import MICRO_TOKENS
from minibert.tasks.specs import Example
from minibert.tasks.word_vectors import STOP_WORDS, Vectors, is_word, nearest

BLOCK = 128  # the number of rows whose candidates are computed together
MASK_SHARE = 0.15  # the largest share of the pieces of a text that are masked in one pass

WORD = re.compile(r"(?<!\w)[^\W\d_]+(?!\w)")  # this pattern matches no part of b2b or snake_case


class Text(NamedTuple):
    """A text, its w replaceable words, and the candidates of these words."""

    text: str
    spans: np.ndarray  # (w, 2) the positions of the words in the text
    candidates: np.ndarray  # (w, K) int32, indices into `candidate_words`; -1: the word has fewer candidates


class Query(NamedTuple):
    """A part of a text that the model reads in one pass."""

    ids: list[int]
    masked: list[int]  # the positions in `ids` that are masked
    words: list[int]  # for each masked position, the number of its word


def candidate_words(tokenizer: Tokenizer, vectors: Vectors) -> list[str]:
    """The words that `Text.candidates` points to: the pieces of the vocabulary, then the words that have a
    vector.
    """
    return [*tokenizer.vocabulary, *vectors.words]


def with_candidates(texts: list[str], model: nn.Module, tokenizer: Tokenizer, vectors: Vectors,
                    runtime: Runtime, k: int = 15, micro_tokens: int = MICRO_TOKENS) -> list[Text]:
    """The texts with their replaceable words and K candidates for each word. Words without candidates are
    left out.

    `model` has an MLM head and is frozen on the runtime's device. The model reads each text twice in one
    sequence. A text that is too long for this is divided into parts.
    """
    room = (model.config.max_positions - 3) // 2
    found, queries, rare, words = [], [], [], 0
    for text, encoding in zip(texts, tokenizer.backend.encode_batch(texts, add_special_tokens=False)):
        spans = replaceable(text)
        pieces = {span: i for i, span in enumerate(encoding.offsets) if encoding.ids[i] != tokenizer.unk_id}
        single = [(pieces[span], words + i) for i, span in enumerate(spans) if span in pieces]
        rare += [(text[slice(*span)], words + i) for i, span in enumerate(spans) if span not in pieces]
        queries += queries_of(encoding.ids, single, room)
        found.append((text, spans))
        words += len(spans)

    table = np.full((words, k), -1, np.int32)
    fill_candidates(table, queries, model, tokenizer, runtime, micro_tokens)
    if rare:
        distinct = list(dict.fromkeys(word for word, _ in rare))
        numbers = dict(zip(distinct, nearest(vectors, distinct, k)))
        for word, i in rare:
            table[i] = np.where(numbers[word] < 0, -1, numbers[word] + len(tokenizer.vocabulary))
    made, ends = [], np.cumsum([0, *(len(spans) for _, spans in found)])
    for (text, spans), (start, end) in zip(found, pairwise(ends)):
        known = table[start:end, 0] >= 0
        made.append(Text(text, np.array(spans, np.int64).reshape(-1, 2)[known], table[start:end][known]))
    return made


def replaceable(text: str) -> list[tuple[int, int]]:
    """The positions of the replaceable words: words of letters that are not stop words.

    note: `re` does not count a combining mark as part of a word. So `WORD` alone would split words of Hindi,
    or words with decomposed accents. Words beside a combining mark are not replaced.
    """
    found = []
    for match in WORD.finditer(text):
        start, end = match.span()
        beside = text[max(0, start - 1):start] + text[end:end + 1]
        marked = any(unicodedata.category(c)[0] == "M" for c in beside)
        if match[0].lower() not in STOP_WORDS and not marked:
            found.append((start, end))
    return found


def queries_of(ids: list[int], single: list[tuple[int, int]], room: int) -> Iterator[Query]:
    """The passes of the model for the words in `single`. Each entry of `single` has the position of a piece
    and the number of its word.

    A text of more than `room` pieces is divided into parts of equal length. If a part needs p passes, each
    pass masks every p-th word of the part. So the masks of one pass are far apart.
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
def fill_candidates(table: np.ndarray, queries: list[Query], model: nn.Module, tokenizer: Tokenizer,
                    runtime: Runtime, micro_tokens: int) -> None:
    """Computes, for each masked word, the K words with the highest probability, and writes them into its row
    of `table` (words, K).
    """
    if not queries:
        return
    cls, sep = [tokenizer.cls_id], [tokenizer.sep_id]
    ids = [cls + query.ids + sep + query.ids + sep for query in queries]
    segments = [[0] * (len(query.ids) + 2) + [1] * (len(query.ids) + 1) for query in queries]
    for sequence, query in zip(ids, queries):
        for i in query.masked:
            sequence[1 + i] = tokenizer.mask_id
    examples = make_examples(ids, segments, np.full(len(ids), -1))
    # (V,); "film" and "Film" have the same number, and a piece that is not a word has -1
    spelling = np.full(model.config.vocab_size, -1)
    first: dict[str, int] = {}
    for i, piece in enumerate(tokenizer.vocabulary):
        if is_word(piece):
            spelling[i] = first.setdefault(piece.casefold(), i)
    spelling = torch.from_numpy(spelling).to(runtime.device)
    for group in groups(examples.lengths, micro_tokens):
        batch = examples.batch(group).to(runtime.device)
        together = [queries[i] for i in group]
        offsets = np.cumsum(examples.lengths[group]) - examples.lengths[group]
        rows = torch.tensor([offset + 1 + i for offset, query in zip(offsets, together)
                             for i in query.masked])
        own = spelling[[query.ids[i] for query in together for i in query.masked]]  # (M,)
        with runtime.autocast():
            last = model.encoder(batch)[rows.to(runtime.device)]  # the MLM head reads masked tokens only
            logits = model.mlm.logits(last, model.encoder.word.weight).float()  # (M, V)
        logits = logits.masked_fill_((spelling < 0) | (spelling == own[:, None]), -torch.inf)
        best = logits.topk(table.shape[1])
        numbers = best.indices.masked_fill(best.values == -torch.inf, -1)
        table[[word for query in together for word in query.words]] = numbers.cpu().numpy()


def copies(text: Text, names: list[str], n: int, p: float, *key: int) -> list[str]:
    """`n` copies of a text. In each copy, each word is replaced with probability p by one of its candidates.

    The random numbers depend on `key` alone. The text between the words does not change. The new word gets
    the upper or lower case of the replaced word.
    """
    words, round_number = np.arange(len(text.spans)), np.arange(n)[:, None]
    replaced = uniform(*key, round_number, words, 0) <= p  # (n, w)
    counts = (text.candidates >= 0).sum(1)  # (w,)
    chosen = (uniform(*key, round_number, words, 1) * counts).astype(np.int64)  # (n, w)
    made = []
    for turn in range(n):
        copy, end = [], 0
        for word in np.flatnonzero(replaced[turn]):
            start, next_end = text.spans[word].tolist()
            new = names[text.candidates[word, chosen[turn, word]]]
            copy += [text.text[end:start], in_case_of(text.text[start:next_end], new)]
            end = next_end
        made.append("".join([*copy, text.text[end:]]))
    return made


def in_case_of(old: str, new: str) -> str:
    """The new word in the case of the old word: in lower case, with a capital first letter, or in capitals.
    """
    if old.isupper() and len(old) > 1:
        return new.upper()
    return new[:1].upper() + new[1:] if old[:1].isupper() else new


def augment(rows: list[Example], find: Callable[[list[str]], list[Text]], names: list[str], n: int, p: float,
            seed: int, report: Callable[[str], None] | None = print) -> Iterator[Example]:
    """Yields each row, and after it up to `n` different variants of the row with the same id and label.

    `find` is `with_candidates` with all arguments set except the texts. `names` are the `candidate_words`.
    The two texts of a pair are changed independently. `report` gets a line after every block. note: the
    original code pairs every variant of the second text with the last variant of the first text.
    """
    begun = time.perf_counter()
    for start in range(0, len(rows), BLOCK):
        block = rows[start:start + BLOCK]
        texts = list(dict.fromkeys(text for row in block for text in columns_of(row)))
        found = dict(zip(texts, find(texts)))
        for number, row in enumerate(block, start):
            varied = zip(*(copies(found[text], names, n, p, seed, number, column)
                           for column, text in enumerate(columns_of(row))))
            for columns in dict.fromkeys([columns_of(row), *varied]):
                yield Example(row.id, columns[0], columns[1] if row.pair is not None else None, row.label)
        if report:
            done = start + len(block)
            rate = done / (time.perf_counter() - begun)
            report(f"{done:,} of {len(rows):,} examples, {rate:.1f} a second, "
                   f"{clock((len(rows) - done) / rate)} left")


def columns_of(row: Example) -> tuple[str, ...]:
    """The text columns of a row: one or two texts."""
    return (row.text,) if row.pair is None else (row.text, row.pair)
