"""SQuAD 1.1 for a span head: turns questions into windows of tokens, and the logits of tokens into answers.

If a context is too long for the model, the model reads it in overlapping windows. A window is [CLS] question
[SEP] part of the context [SEP]. Settings and rules are those of BERT's run_squad.py (Devlin et al. 2018).
One difference makes this code shorter: the tokenizer says which characters of the context belong to each
token. So the tokens of a gold answer follow from its characters, and a predicted answer is a part of the
context. run_squad.py searches the text for both (`_improve_answer_span`, `get_final_text`).
"""

import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from minibert.common.errors import UserError
from minibert.data.tokenizer import Tokenizer
from minibert.tasks.squad import Answer, Candidate, Question


class Window(NamedTuple):
    """One window of T tokens, of which M are from the context.

    `start` and `end` are the positions of the first and the last token of the gold answer in the window, or 0
    if the window does not contain the whole answer.
    """

    question: int  # the index of the window's question
    ids: list[int]  # the ids of the T tokens
    first: int  # the position of the first context token; the last context token is at first + M - 1
    chars: np.ndarray  # (M, 2) int32, the characters [begin, end) of the context for each context token
    max_context: np.ndarray  # (M,) bool, True if this window owns the context token (see `_owners`)
    start: int
    end: int

    @property
    def segments(self) -> list[int]:
        """The token types of the window: 0 for [CLS] question [SEP], 1 for the context and the last [SEP]."""
        return [0] * self.first + [1] * (len(self.ids) - self.first)


def windows(questions: Sequence[Question], tokenizer: Tokenizer, max_length: int = 384, stride: int = 128,
            max_query: int = 64) -> list[Window]:
    """The windows of all questions, in the order of the questions. Each question has at least one window.

    A window has at most `max_length` tokens. Only the first `max_query` pieces of a question are used.
    `stride` is the distance between the starts of two windows, as in run_squad.py. note: in Hugging Face's
    run_qa.py, the stride is the overlap of two windows. The gold answer is the first answer of a question.
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
    """Returns, for each text, its M token ids, and an array (M, 2) with the characters [begin, end) of each
    token in the text.
    """
    encoded = {}
    for text, encoding in zip(texts, tokenizer.encodings(texts, offsets=True)):
        chars = np.array(encoding.offsets, dtype=np.int32).reshape(-1, 2)
        encoded[text] = encoding.ids, chars if text.isascii() else _with_marks(text, chars)
    return encoded


def _with_marks(text: str, chars: np.ndarray) -> np.ndarray:
    """Extends the characters of each token in `chars` by the combining marks that follow the token. The
    tokenizer removes accents, so its offsets leave out these marks, and an answer would lose its last accent.
    """
    limits = [*chars[1:, 0].tolist(), len(text)]
    for i, (end, limit) in enumerate(zip(chars[:, 1].tolist(), limits)):
        while end < limit and unicodedata.category(text[end]) == "Mn":
            end += 1
        chars[i, 1] = end
    return chars


def _covering(chars: np.ndarray, answer: Answer) -> tuple[int, int] | None:
    """The first and the last token of the shortest token span that covers an answer, or None if no token
    contains a character of the answer. If an answer starts or ends inside a piece, the span contains the
    whole piece.
    """
    # the first token that ends after the start of the answer
    first = int(np.searchsorted(chars[:, 1], answer.start, side="right"))
    last = int(np.searchsorted(chars[:, 0], answer.start + len(answer.text), side="left")) - 1
    return (first, last) if first <= last else None


def _borders(tokens: int, room: int, stride: int) -> list[tuple[int, int]]:
    """The tokens [begin, end) of each window of a context with `tokens` tokens. The last window ends at the
    end of the context.
    """
    borders = [(0, min(room, tokens))]
    while borders[-1][1] < tokens:
        begin = borders[-1][0] + min(room, stride)  # a stride larger than `room` would skip tokens
        borders.append((begin, min(begin + room, tokens)))
    return borders


def _owners(tokens: int, borders: list[tuple[int, int]]) -> np.ndarray:
    """Returns the number of the window that owns each context token, as an array (tokens,). It is the window
    that shows most of the text around the token (`_check_is_max_context` in run_squad.py).

    In each window, a token has a score: its distance to the nearer end of the window plus 0.01 times the
    window's length. The first window that has the highest score owns the token.
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
    """The `n_best` best answers of a question, the best first. If no span is possible, the only answer is the
    empty text.

    `found` has each window of the question, with the logits (T, 2) of each token for the start and for the
    end of the answer. In each window, the `n_best` best start tokens are combined with the `n_best` best end
    tokens. Both tokens must be in the context. The window must own the start token (`max_context`), because
    another window may show more of the text around this token. An answer has at most `max_answer` tokens. If
    several spans have the same text, only the best span counts. The probabilities of the returned answers sum
    to 1. note: run_squad.py first takes the best tokens of the whole window and then removes impossible
    spans, so it may combine fewer tokens.
    """
    spans = []  # (score, begin, end) of possible answers, in characters of the context
    for window, logits in found:
        context = np.asarray(logits, np.float64)[window.first:window.first + len(window.chars)]
        starts, ends = context.T  # (M,) each
        allowed = np.flatnonzero(window.max_context)
        first = allowed[np.argsort(-starts[allowed], kind="stable")[:n_best]]
        last = np.argsort(-ends, kind="stable")[:n_best]
        score = starts[first][:, None] + ends[last]  # (n_best, n_best)
        length = last - first[:, None] + 1
        # A model that diverged has logits that are not finite. It must get the score 0, and no exception.
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
