"""SQuAD 1.1 for a span head: questions to windows of tokens, logits of tokens back to answers.

A context that is longer than the model is read in overlapping windows, [CLS] question [SEP] part of the
context [SEP]. Settings and rules are those of BERT's run_squad.py (Devlin et al. 2018), with one difference
that makes it short. There, an answer was put together from pieces and had to be aligned with the text again
(`get_final_text`), and a gold answer was first found among words and then tightened to pieces
(`_improve_answer_span`). Here every piece knows which characters of the original context it stands for, so
gold answers are mapped from characters and predicted ones are cut from the text.
"""

import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from minibert.common.errors import UserError
from minibert.data.tokenizer import Tokenizer
from minibert.tasks.squad import Answer, Candidate, Question


class Window(NamedTuple):
    """[CLS] question [SEP] part of the context [SEP], T tokens, of which M are of the context.

    `start` and `end` are the rows of the first and last token of the gold answer, both from 0 at [CLS], and
    both 0 where the answer is not wholly inside the window.
    """

    question: int  # index into the questions that the windows were made of
    ids: list[int]  # T
    first: int  # the row of the first context token; those of the context are first to first + M - 1
    chars: np.ndarray  # (M, 2) int32, where the characters of each context token begin and end in the context
    max_context: np.ndarray  # (M,) bool, True where no other window shows more of the token's surroundings
    start: int
    end: int

    @property
    def segments(self) -> list[int]:
        """Token types: 0 for [CLS] question [SEP], 1 for the rest."""
        return [0] * self.first + [1] * (len(self.ids) - self.first)


def windows(questions: Sequence[Question], tokenizer: Tokenizer, max_length: int = 384, stride: int = 128,
            max_query: int = 64) -> list[Window]:
    """The windows of all questions, in their order; each question has at least one.

    A window has at most `max_length` tokens, of which at most the first `max_query` pieces of the question.
    `stride` is how far the start of a window advances, as in the original; note: the `stride` of Hugging
    Face's run_qa.py is the overlap of two windows instead. The gold answer is the first one. `UserError`
    where `max_length` leaves no room.
    """
    if min(stride, max_query) < 1:
        raise UserError(f"stride {stride} and max_query {max_query} must be at least 1")
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
    """For each text its ids and, (M, 2), the characters [begin, end) of the text that each stands for."""
    encoded = {}
    for text, encoding in zip(texts, tokenizer.encodings(texts, offsets=True)):
        chars = np.array(encoding.offsets, dtype=np.int32).reshape(-1, 2)
        encoded[text] = encoding.ids, chars if text.isascii() else _with_marks(text, chars)
    return encoded


def _with_marks(text: str, chars: np.ndarray) -> np.ndarray:
    """`chars` with the combining marks behind a token added to it: stripping accents dropped them.

    Without this an answer that ends in "e" and an accent of its own would be cut from the text without the
    accent.
    """
    limits = [*chars[1:, 0].tolist(), len(text)]
    for i, (end, limit) in enumerate(zip(chars[:, 1].tolist(), limits)):
        while end < limit and unicodedata.category(text[end]) == "Mn":
            end += 1
        chars[i, 1] = end
    return chars


def _covering(chars: np.ndarray, answer: Answer) -> tuple[int, int] | None:
    """First and last of the fewest tokens that cover an answer; None where no token holds a character of it.

    An answer that starts or ends inside a piece gets the whole piece: more than its text, never less.
    """
    first = int(np.searchsorted(chars[:, 1], answer.start, side="right"))  # ends behind its start
    last = int(np.searchsorted(chars[:, 0], answer.start + len(answer.text), side="left")) - 1
    return (first, last) if first <= last else None


def _borders(tokens: int, room: int, stride: int) -> list[tuple[int, int]]:
    """Where the windows of a context of `tokens` tokens begin and end, until one reaches its end."""
    borders = [(0, min(room, tokens))]
    while borders[-1][1] < tokens:
        begin = borders[-1][0] + min(room, stride)  # a stride above the room would skip tokens
        borders.append((begin, min(begin + room, tokens)))
    return borders


def _owners(tokens: int, borders: list[tuple[int, int]]) -> np.ndarray:
    """(tokens,) the window that shows most of each token's surroundings (`_check_is_max_context`).

    A token scores the smaller of its distances to the window's ends, plus a hundredth of the window's length;
    the first of equal ones wins. Only its owner may start an answer with it, so that no answer is taken from
    a window's edge.
    """
    owners, best = np.zeros(tokens, dtype=np.int64), np.full(tokens, -np.inf)
    for w, (begin, end) in enumerate(borders):
        left = np.arange(end - begin)
        score = np.minimum(left, left[::-1]) + 0.01 * (end - begin)
        better = score > best[begin:end]
        owners[begin:end][better] = w
        best[begin:end][better] = score[better]
    return owners


def decode(windows_of_question: Sequence[Window], start_logits: Sequence[np.ndarray],
           end_logits: Sequence[np.ndarray], question: Question, n_best: int = 20,
           max_answer: int = 30) -> list[Candidate]:
    """The `n_best` answers of a question, best first, never none: the empty text where no span is possible.

    The logits are one array (T,) for each window, over all its rows. In each window the `n_best` best starts
    are paired with the `n_best` best ends, all tokens of the context; a start must be max-context, and an
    answer is at most `max_answer` tokens long. Of spans with the same text the best one counts. Probabilities
    are over what is returned. note: the original takes the best of all rows first and then drops what is no
    answer, so it may have fewer to pair.
    """
    scores, spans = [np.zeros(0)], [np.zeros((0, 2), dtype=np.int32)]
    for window, starts, ends in zip(windows_of_question, start_logits, end_logits, strict=True):
        context = slice(window.first, window.first + len(window.chars))
        starts, ends = (np.asarray(x, dtype=np.float64)[context] for x in (starts, ends))  # (M,) each
        allowed = np.flatnonzero(window.max_context)
        first = allowed[np.argsort(-starts[allowed], kind="stable")[:n_best]]
        last = np.argsort(-ends, kind="stable")[:n_best]
        score = starts[first][:, None] + ends[last]  # (n_best, n_best)
        length = last - first[:, None] + 1
        # not finite: a model that diverged, which is to score 0 and not to crash
        a, b = np.nonzero((length >= 1) & (length <= max_answer) & np.isfinite(score))
        scores.append(score[a, b])
        spans.append(np.stack([window.chars[first[a], 0], window.chars[last[b], 1]], axis=1))
    scores, spans = np.concatenate(scores), np.concatenate(spans)
    found: dict[str, float] = {}
    for i in np.argsort(-scores, kind="stable"):
        begin, end = spans[i]
        found.setdefault(question.context[begin:end], float(scores[i]))
        if len(found) == n_best:
            break
    if not found:
        return [Candidate("", 0.0, 1.0)]
    best = np.array(list(found.values()))
    shares = np.exp(best - best.max())
    return [Candidate(text, score, float(share))
            for (text, score), share in zip(found.items(), shares / shares.sum())]
