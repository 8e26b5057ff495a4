"""SQuAD 1.1: reads its json files, computes the official scores, and writes predictions.

The scores are those of evaluate-v1.1.py (Rajpurkar et al. 2016): exact match and F1 of normalised texts. A
prediction is compared with every gold answer of its question, and the best score counts. The result is the
mean over all questions in percent.
"""

import json
import re
import string
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from minibert.common.disk import disk_errors, read_text, write_json
from minibert.common.errors import UserError

KINDS = {str: "a text", int: "a whole number", list: "a list"}


class Answer(NamedTuple):
    """The text of a gold answer, and the position of its first character in the context."""

    text: str
    start: int


class Question(NamedTuple):
    """A question, the paragraph that contains the answer (`context`), and its gold answers. A training
    question has one answer, and a dev question has several.
    """

    id: str
    question: str
    context: str
    answers: tuple[Answer, ...]


class Candidate(NamedTuple):
    """A predicted text, its score, and its probability. The score is the sum of a start logit and an end
    logit. The probability is the softmax of the scores of all candidates.
    """

    text: str
    score: float
    probability: float


def read_squad(path: str | Path) -> list[Question]:
    """The questions in train-v1.1.json or dev-v1.1.json, in the order of the file.

    Raises `UserError` if the file is not valid. For damaged or incomplete json, the message names the line
    and the column. It names the article, the paragraph, the question and the id in four other cases: a field
    is missing or has another type, an id occurs twice, a question has no answer (as in SQuAD 2.0), or the
    context does not contain an answer at its answer_start.
    """
    path = Path(path)
    text = read_text(path)
    if not text.strip():
        raise UserError(f"{path} is empty")
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}, column {error.colno}: not valid json, or cut off "
                        f"({error.msg})") from None
    except (ValueError, RecursionError) as error:  # a number has too many digits, or brackets nest too deep
        raise UserError(f"{path}: json that cannot be read ({error})") from None
    questions, seen = [], set()
    for a, article in enumerate(_field(content, "data", list, str(path)), 1):
        for p, paragraph in enumerate(_field(article, "paragraphs", list, f"{path}, article {a}"), 1):
            place = f"{path}, article {a}, paragraph {p}"
            context = _field(paragraph, "context", str, place)
            for q, entry in enumerate(_field(paragraph, "qas", list, place), 1):
                question = _question(entry, context, f"{place}, question {q}")
                if question.id in seen:
                    raise UserError(f"{place}, question {q}: the id {question.id!r} is an earlier one's, too")
                seen.add(question.id)
                questions.append(question)
    if not questions:
        raise UserError(f"{path} holds no question")
    return questions


def _question(entry, context: str, place: str) -> Question:
    id = _field(entry, "id", str, place)
    place = f"{place} (id {id!r})"
    text = _field(entry, "question", str, place)
    answers = tuple(Answer(_field(answer, "text", str, place), _field(answer, "answer_start", int, place))
                    for answer in _field(entry, "answers", list, place))
    if not answers:
        raise UserError(f"{place}: no answer; questions without one, as in SQuAD 2.0, are not supported")
    for answer in answers:
        if not answer.text or answer.start < 0 or not context.startswith(answer.text, answer.start):
            raise UserError(f"{place}: the answer {answer.text!r} does not stand in its context at character "
                            f"{answer.start}, its answer_start")
    return Question(id, text, context, answers)


def _field(entry, name: str, kind: type, place: str):
    """Returns `entry[name]`. Raises `UserError` if this field is missing or its type is not `kind`."""
    if not isinstance(entry, dict) or name not in entry:
        raise UserError(f"{place}: no '{name}'; this is not the json of SQuAD 1.1")
    value = entry[name]
    if type(value) is not kind:  # isinstance would accept True as an int
        raise UserError(f"{place}: '{name}' is not {KINDS[kind]}")
    if kind is str and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:  # json can contain a lone surrogate such as "\ud83d", but UTF-8 cannot
            raise UserError(f"{place}: '{name}' holds half a character (a lone surrogate)") from None
    return value


def normalise(text: str) -> str:
    """Changes a text for the comparison of answers. These steps are done in this order: lower case, remove
    punctuation, remove articles, use single spaces.

    The order matters. Punctuation is removed first, so "a-the" becomes the word "athe", and no article is
    removed from it. Only ASCII punctuation is removed.
    """
    text = text.lower().translate(PUNCTUATION)
    return " ".join(ARTICLES.sub(" ", text).split())


PUNCTUATION = str.maketrans("", "", string.punctuation)
ARTICLES = re.compile(r"\b(a|an|the)\b")


def exact_match(prediction: str, answer: str) -> float:
    """1.0 if both texts are equal after `normalise`, else 0.0."""
    return float(normalise(prediction) == normalise(answer))


def f1(prediction: str, answer: str) -> float:
    """F1 of the words of the two normalised texts. A word that occurs twice counts twice. The result is 0.0
    if the texts have no word in common.
    """
    predicted, expected = normalise(prediction).split(), normalise(answer).split()
    same = (Counter(predicted) & Counter(expected)).total()
    if same == 0:
        return 0.0
    precision, recall = same / len(predicted), same / len(expected)
    return 2 * precision * recall / (precision + recall)


def evaluate(questions: Sequence[Question], predictions: dict[str, str]) -> dict[str, float]:
    """The official `exact_match` and `f1` in percent. `predictions` is a dictionary from the question id to
    the predicted text.

    A question without a prediction has the score 0 in the mean. A prediction whose id is not among the
    questions is ignored.
    """
    totals = {"exact_match": 0.0, "f1": 0.0}
    for question in questions:
        if question.id in predictions:
            text = predictions[question.id]
            for name, score in (("exact_match", exact_match), ("f1", f1)):
                totals[name] += max(score(text, answer.text) for answer in question.answers)
    return {name: 100 * total / len(questions) for name, total in totals.items()}


def write_predictions(folder: str | Path, candidates: dict[str, list[Candidate]]) -> None:
    """Writes predictions.json, which is {id: text} for the official script, and nbest.json, which is
    {id: candidates}.

    `candidates` are those of `squad_windows.decode`, the best first. Each file is written under another name
    and then renamed.
    """
    folder = Path(folder)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "nbest.json", {id: [c._asdict() for c in found] for id, found in candidates.items()})
    write_json(folder / "predictions.json", {id: found[0].text for id, found in candidates.items()})
