"""SQuAD 1.1: its json, its official score, and the files of a prediction.

The score is that of evaluate-v1.1.py (Rajpurkar et al. 2016): exact match and F1 of normalised texts, the
best over the answers of a question, the mean over all questions in percent.
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
    """A text and where it starts in its context, in characters."""

    text: str
    start: int


class Question(NamedTuple):
    """A question, the paragraph that answers it, and its answers: one in the training set, several in dev."""

    id: str
    question: str
    context: str
    answers: tuple[Answer, ...]


class Candidate(NamedTuple):
    """A predicted text, its score (a sum of two logits), its softmax probability among the candidates."""

    text: str
    score: float
    probability: float


def read_squad(path: str | Path) -> list[Question]:
    """The questions of a train-v1.1.json or dev-v1.1.json, in the order of the file.

    `UserError` names the file and the place for what is not such a file: line and column where the json is
    broken or cut off; article, paragraph, question and id where a field is missing or of another kind, an id
    occurs twice, a question has no answer (SQuAD 2.0), or an answer does not stand in its context at its
    answer_start.
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
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, thousands of brackets
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
    """`entry[name]`, or a `UserError` where there is none or it is not of `kind`."""
    if not isinstance(entry, dict) or name not in entry:
        raise UserError(f"{place}: no '{name}'; this is not the json of SQuAD 1.1")
    value = entry[name]
    if type(value) is not kind:  # isinstance would take true for the number 1
        raise UserError(f"{place}: '{name}' is not {KINDS[kind]}")
    if kind is str and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:  # "\ud83d" alone, which json can write and UTF-8 cannot
            raise UserError(f"{place}: '{name}' holds half a character (a lone surrogate)") from None
    return value


def normalise(text: str) -> str:
    """The text as it is compared: lower case, no punctuation, no articles, single spaces, in this order.

    The order matters: without its hyphen "a-the" is the word "athe", and no article. Only ASCII punctuation
    goes.
    """
    text = text.lower().translate(PUNCTUATION)
    return " ".join(ARTICLES.sub(" ", text).split())


PUNCTUATION = str.maketrans("", "", string.punctuation)
ARTICLES = re.compile(r"\b(a|an|the)\b")


def exact_match(prediction: str, answer: str) -> float:
    """1.0 where both texts are the same once normalised, else 0.0."""
    return float(normalise(prediction) == normalise(answer))


def f1(prediction: str, answer: str) -> float:
    """F1 of the words of both normalised texts, as multisets; 0.0 where they share none, or have none."""
    predicted, expected = normalise(prediction).split(), normalise(answer).split()
    same = (Counter(predicted) & Counter(expected)).total()
    if same == 0:
        return 0.0
    precision, recall = same / len(predicted), same / len(expected)
    return 2 * precision * recall / (precision + recall)


def evaluate(questions: Sequence[Question], predictions: dict[str, str]) -> dict[str, float]:
    """The official `exact_match` and `f1` in percent of predicted texts by question id.

    A question without a prediction scores 0 and counts; a prediction for none of the questions is not looked
    at.
    """
    totals = {"exact_match": 0.0, "f1": 0.0}
    for question in questions:
        if question.id in predictions:
            text = predictions[question.id]
            for name, score in (("exact_match", exact_match), ("f1", f1)):
                totals[name] += max(score(text, answer.text) for answer in question.answers)
    return {name: 100 * total / len(questions) for name, total in totals.items()}


def write_predictions(folder: str | Path, candidates: dict[str, list[Candidate]]) -> None:
    """Writes predictions.json, {id: text} as the official script reads it, and nbest.json, {id: candidates}.

    `candidates` are those of `squad.decode`, best first. Each file is written under another name and renamed.
    """
    folder = Path(folder)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "nbest.json", {id: [c._asdict() for c in found] for id, found in candidates.items()})
    write_json(folder / "predictions.json", {id: found[0].text for id, found in candidates.items()})
