"""Reads the json files of SQuAD 1.1, and computes the scores of evaluate-v1.1.py (Rajpurkar et al. 2016)."""

import json
import re
import string
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from minibert.common.disk import read_text
from minibert.common.errors import UserError


class Answer(NamedTuple):
    """The text of a gold answer, and the position of its first character in the context."""

    text: str
    start: int


class Question(NamedTuple):
    """A question, its gold answers, and the paragraph that contains the answers (`context`)."""

    id: str
    question: str
    context: str
    answers: tuple[Answer, ...]


class Candidate(NamedTuple):
    """A predicted text, its score (a start logit plus an end logit), and its probability (the softmax over
    the scores of all candidates for the question).
    """

    text: str
    score: float
    probability: float


def read_squad(path: str | Path) -> list[Question]:
    """Returns a list of the questions in train-v1.1.json or dev-v1.1.json, in the order of the file. Raises
    `UserError` if the file is not the json of SQuAD 1.1, if an id occurs twice, or if `check_question` raises
    an error.
    """
    path = Path(path)
    questions, text, place = {}, read_text(path), str(path)
    try:
        for a, article in enumerate(json.loads(text)["data"], 1):
            for paragraph in article["paragraphs"]:
                for entry in paragraph["qas"]:
                    place = f"{path}, article {a}, question {entry['id']!r}"
                    answers = tuple(Answer(answer["text"], answer["answer_start"])
                                    for answer in entry["answers"])
                    question = Question(entry["id"], entry["question"], paragraph["context"], answers)
                    check_question(question, place)
                    if question.id in questions:
                        raise UserError(f"{place}: an earlier question has the same id")
                    questions[question.id] = question
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid json, or an incomplete file ({error})") from None
    except (KeyError, TypeError) as error:
        raise UserError(f"{place}: this is not the json of SQuAD 1.1 ({error!r})") from None
    if not questions:
        raise UserError(f"{path} holds no question")
    return list(questions.values())


def check_question(question: Question, place: str) -> None:
    """Raises `UserError` if a question has no answer, or if an answer is empty or is not at its position
    `start` in the context. Raises `TypeError` or `ValueError` if a field of the question is not a valid text.
    """
    if not question.answers:
        raise UserError(f"{place}: no answer; questions without answers (SQuAD 2.0) are not supported")
    # `encode` raises ValueError for a text that is not valid Unicode
    "".join([question.id, question.question, question.context]).encode()
    for text, start in question.answers:
        if not text or start < 0 or not question.context.startswith(text, start):
            raise UserError(f"{place}: the context does not have the answer {text!r} at character {start}, "
                            "which is its answer_start")


def normalise(text: str) -> str:
    """Returns the text in lower case, without ASCII punctuation, without articles, and with single spaces
    between the words.
    """
    text = text.lower().translate(PUNCTUATION)
    return " ".join(ARTICLES.sub(" ", text).split())


PUNCTUATION = str.maketrans("", "", string.punctuation)
ARTICLES = re.compile(r"\b(a|an|the)\b")


def exact_match(prediction: str, answer: str) -> float:
    """Returns 1.0 if the two texts are equal after `normalise`, and 0.0 otherwise."""
    return float(normalise(prediction) == normalise(answer))


def f1(prediction: str, answer: str) -> float:
    """Returns F1 of the words of the two normalised texts, or 0.0 if the texts have no word in common."""
    predicted, expected = normalise(prediction).split(), normalise(answer).split()
    same = (Counter(predicted) & Counter(expected)).total()
    if same == 0:
        return 0.0
    precision, recall = same / len(predicted), same / len(expected)
    return 2 * precision * recall / (precision + recall)


def evaluate(questions: Sequence[Question], predictions: dict[str, str]) -> dict[str, float]:
    """Returns a dict with the means of `exact_match` and `f1` over all questions, in percent. `predictions`
    is a dict from question ids to predicted texts. A prediction is compared with every gold answer of its
    question, and the best score counts. A question without a prediction has the score 0.
    """
    totals = {"exact_match": 0.0, "f1": 0.0}
    for question in questions:
        if question.id in predictions:
            text = predictions[question.id]
            for name, score in (("exact_match", exact_match), ("f1", f1)):
                totals[name] += max(score(text, answer.text) for answer in question.answers)
    return {name: 100 * total / len(questions) for name, total in totals.items()}
