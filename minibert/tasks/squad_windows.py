"""Turns questions of SQuAD 1.1 into windows of tokens, and the logits of a span head into answers.

If a context is too long for the model, the model reads the context in overlapping windows. A window is [CLS]
question [SEP] part of the context [SEP]. The default lengths and stride are those of run_squad.py in Google's
BERT code (Devlin et al. 2018).
"""

import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from minibert.common.errors import UserError
from minibert.data.tokenizer import Tokenizer
from minibert.tasks.squad import Answer, Candidate, Question


class Window(NamedTuple):
    """One window of T tokens, of which M are tokens of the context. The gold answer begins with the token at
    position `start` of the window, and ends with the token at position `end`. Both positions are 0 if the
    window does not contain the whole answer.
    """

    question: int  # the index of the window's question
    ids: list[int]
    first: int  # the position of the first context token
    chars: np.ndarray  # (M, 2) int32, the positions [begin, end) of each token's characters in the context
    # (M,) bool, True for each context token at which an answer from this window may start (see `_owners`)
    max_context: np.ndarray
    start: int
    end: int

    @property
    def segments(self) -> list[int]:
        """Returns the token types: 0 for [CLS] question [SEP], 1 for the context and the last [SEP]."""
        return [0] * self.first + [1] * (len(self.ids) - self.first)


def windows(questions: Sequence[Question], tokenizer: Tokenizer, max_length: int = 384, stride: int = 128,
            max_query: int = 64) -> list[Window]:
    """Returns a list of the windows of all questions, in the order of the questions.

    A window has at most `max_length` tokens, and at most `max_query` of them are tokens of the question.
    `stride` is the distance in tokens between the starts of two neighbouring windows. `start` and `end` of a
    `Window` are those of the question's first gold answer.
    """
    if max_length < max_query + 4:
        raise UserError(f"max_length {max_length} leaves no room for a context beside a question of "
                        f"{max_query} pieces and 3 special tokens: it must be at least {max_query + 4}")
    contexts = _encode(list(dict.fromkeys(question.context for question in questions)), tokenizer)
    queries = tokenizer.pieces([question.question for question in questions])
    found = []
    for index, (question, query) in enumerate(zip(questions, queries)):
        ids, chars = contexts[question.context]
        head = [tokenizer.cls_id, *query[:max_query], tokenizer.sep_id]
        gold = _covering(chars, question.answers[0]) if question.answers else None
        borders = _borders(len(ids), max_length - len(head) - 1, stride)
        owners = _owners(len(ids), borders)
        for w, (begin, end) in enumerate(borders):
            inside = gold is not None and begin <= gold[0] and gold[1] < end
            rows = [len(head) + token - begin for token in gold] if inside else (0, 0)
            sequence = [*head, *ids[begin:end], tokenizer.sep_id]
            found.append(Window(index, sequence, len(head), chars[begin:end], owners[begin:end] == w, *rows))
    return found


def _encode(texts: list[str], tokenizer: Tokenizer) -> dict[str, tuple[list[int], np.ndarray]]:
    """Returns a dict from each text to a pair: a list of the text's M token ids, and an array (M, 2). Each
    row of the array has the positions [begin, end) of a token's characters.
    """
    encoded = {}
    for text, encoding in zip(texts, tokenizer.encodings(texts, offsets=True)):
        chars = np.array(encoding.offsets, dtype=np.int32).reshape(-1, 2)
        encoded[text] = encoding.ids, chars if text.isascii() else _with_marks(text, chars)
    return encoded


def _with_marks(text: str, chars: np.ndarray) -> np.ndarray:
    """Changes and returns `chars`: moves the end of each token behind the combining marks that follow the
    token. A tokenizer that removes accents leaves these marks out of its offsets. Without the marks, a
    predicted answer would lose the accent of its last letter.
    """
    limits = [*chars[1:, 0].tolist(), len(text)]
    for i, (end, limit) in enumerate(zip(chars[:, 1].tolist(), limits)):
        while end < limit and unicodedata.category(text[end]) == "Mn":
            end += 1
        chars[i, 1] = end
    return chars


def _covering(chars: np.ndarray, answer: Answer) -> tuple[int, int] | None:
    """Returns the indices of the first and the last token with characters of an answer, or None if no token
    has characters of the answer.
    """
    # the token `first` can start before the answer, because an answer can start inside a token
    first = int(np.searchsorted(chars[:, 1], answer.start, side="right"))
    last = int(np.searchsorted(chars[:, 0], answer.start + len(answer.text), side="left")) - 1
    return (first, last) if first <= last else None


def _borders(tokens: int, room: int, stride: int) -> list[tuple[int, int]]:
    """Returns a list with the positions [begin, end) of each window in a context of `tokens` tokens. A window
    has at most `room` tokens of the context.
    """
    borders = [(0, min(room, tokens))]
    while borders[-1][1] < tokens:
        # with more than `room` tokens between the starts of two windows, some tokens would be in no window
        begin = borders[-1][0] + min(room, stride)
        borders.append((begin, min(begin + room, tokens)))
    return borders


def _owners(tokens: int, borders: list[tuple[int, int]]) -> np.ndarray:
    """Returns an array with a window number for each context token: the number (from 0) of the window in
    which the token has the highest score. The score is `min(left, right) + 0.01 n` in a window with `n`
    context tokens, of which `left` are before the token and `right` are after the token.
    `_check_is_max_context` of run_squad.py computes the same score.
    """
    owners, best = np.zeros(tokens, dtype=np.int64), np.full(tokens, -np.inf)
    for w, (begin, end) in enumerate(borders):
        left = np.arange(end - begin)
        score = np.minimum(left, left[::-1]) + 0.01 * (end - begin)
        better = score > best[begin:end]
        owners[begin:end][better] = w
        best[begin:end][better] = score[better]
    return owners


def decode(found: Sequence[tuple[Window, np.ndarray]], question: Question, n_best: int = 20,
           max_answer: int = 30) -> list[Candidate]:
    """Returns a list of at most `n_best` answers to a question, the best answer first. If no span is allowed,
    the only answer is the empty text.

    `found` has a pair (window, logits) for each window of the question. `logits` (T, 2) has a start logit and
    an end logit for each of the T tokens of the window. In each window, the `n_best` best start tokens of the
    context are combined with the `n_best` best end tokens of the context. Each context token can start an
    answer in one window only (`max_context`). An answer has at most `max_answer` tokens. If several spans
    have the same text, only the best span counts.

    run_squad.py may compare fewer spans than `decode`. It chooses the best tokens among all tokens of the
    window, and then removes the tokens of the question.
    """
    spans = []  # (score, begin, end) of each allowed span, with the positions [begin, end) of its characters
    for window, logits in found:
        context = np.asarray(logits, np.float64)[window.first:window.first + len(window.chars)]
        starts, ends = context.T  # (M,) each
        allowed = np.flatnonzero(window.max_context)
        first = allowed[np.argsort(-starts[allowed], kind="stable")[:n_best]]
        last = np.argsort(-ends, kind="stable")[:n_best]
        score = starts[first][:, None] + ends[last]  # (n_best, n_best)
        length = last - first[:, None] + 1
        # spans whose score is NaN or infinite (of a diverged model) are not allowed
        a, b = np.nonzero((length >= 1) & (length <= max_answer) & np.isfinite(score))
        spans += zip(score[a, b].tolist(), window.chars[first[a], 0], window.chars[last[b], 1])
    best: dict[str, float] = {}
    for score, begin, end in sorted(spans, key=lambda span: -span[0]):
        best.setdefault(question.context[begin:end], score)
        if len(best) == n_best:
            break
    if not best:
        return [Candidate("", 0.0, 1.0)]
    shares = np.exp(np.array(list(best.values())) - max(best.values()))
    return [Candidate(text, score, float(share))
            for (text, score), share in zip(best.items(), shares / shares.sum())]
