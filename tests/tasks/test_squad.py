"""SQuAD: the official score, reading, windows that lose nothing, and answers cut from the original text.

    python -m pytest tests/tasks/test_squad.py
"""

import json
import math
import random
import re
import string
from collections import Counter

import numpy as np
import pytest

from minibert.common.errors import UserError
from minibert.data.tokenizer import Tokenizer
from minibert.tasks.squad import (Answer, Candidate, Question, evaluate, exact_match, f1, normalise,
                                  read_squad)
from minibert.tasks.squad_windows import decode, windows

LETTERS = "abcdefghijklmnopqrstuvwxyz"
DIGITS = "0123456789"
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.punctuation, *DIGITS, *LETTERS,
          *LETTERS.upper(), *(f"##{c}" for c in LETTERS + LETTERS.upper() + DIGITS + "é\u0301"), *"你好é",
          "ᄒ", "##ᅡ", "##ᆫ", "the", "##ing"]  # the three are what 한 decomposes into
VOCABULARY = {piece: i for i, piece in enumerate(PIECES)}
WORDS = ["the", "Café", "cafe\u0301", "naïve", "你好", "😀", "👩\u200d👧", "한", "x1", "(a-b),", "…", "sing",
         "e\u0301\u0323.", "a\u00adb", "ZZ", "\u0301", "…b"]


@pytest.fixture(params=[True, False], ids=["uncased", "cased"])
def tokenizer(request):
    return Tokenizer(VOCABULARY, {"lowercase": request.param})


def ask(context, text=None, start=None, question="Who?", id="q"):
    """A question whose answer is the first `text` in the context, or the one at `start`."""
    if text is None:
        return Question(id, question, context, ())
    return Question(id, question, context, (Answer(text, context.index(text) if start is None else start),))


def random_context(generator, words):
    """A text of plain words, words with accents, CJK characters and emoji, with several kinds of spaces."""
    return "".join(generator.choice(WORDS + ["ab", "c", "def", "the"] * 4) + generator.choice("  \n\u00a0")
                   for _ in range(words))


# the score

def official_normalise(s):
    """evaluate-v1.1.py, read line by line: white_space_fix(remove_articles(remove_punc(lower(s))))."""
    s = s.lower()
    exclude = set(string.punctuation)
    s = "".join(ch for ch in s if ch not in exclude)
    s = re.sub(r"\b(a|an|the)\b", " ", s)
    return " ".join(s.split())


def official_f1(prediction, ground_truth):
    prediction_tokens = official_normalise(prediction).split()
    ground_truth_tokens = official_normalise(ground_truth).split()
    common = Counter(prediction_tokens) & Counter(ground_truth_tokens)
    num_same = sum(common.values())
    if num_same == 0:
        return 0
    precision = 1.0 * num_same / len(prediction_tokens)
    recall = 1.0 * num_same / len(ground_truth_tokens)
    return (2 * precision * recall) / (precision + recall)


@pytest.mark.parametrize("text, expected", [
    ("The  Cat, a\tDog and an Owl!", "cat dog and owl"),
    ("THEory of Anthem", "theory of anthem"),  # articles are whole words
    ("a-the", "athe"),  # punctuation goes first: one word, and no article
    ("the.", ""), ("a.b the-a", "ab thea"),
    ("don't", "dont"), ("$1,000.50", "100050"),
    ("“The” – café", "“ ” – café"),  # only ASCII punctuation goes
    ("İAN", "i\u0307"),  # a combining mark ends a word: the rest of this one is an article
    ("ÀN an", "àn"), ("\u00a0 the\u2003x ", "x"), ("", ""),
])
def test_normalise_by_hand(text, expected):
    assert normalise(text) == expected == official_normalise(text)


@pytest.mark.parametrize("prediction, answer, same, score", [
    ("the Broncos", "Broncos.", 1, 1.0),
    ("Denver Broncos", "Broncos", 0, 2 / 3),
    ("x x y", "x y y", 0, 2 / 3), ("x x y", "z x x", 0, 2 / 3),  # multisets: x and y are shared; x twice
    ("a-the", "the", 0, 0.0), ("the", "a", 1, 0.0),  # nothing left of either: a match, yet no word in common
    ("", "", 1, 0.0), ("", "x", 0, 0.0), ("Saint Émile", "saint émile", 1, 1.0),
])
def test_scores_by_hand(prediction, answer, same, score):
    assert exact_match(prediction, answer) == same
    assert f1(prediction, answer) == pytest.approx(score) == official_f1(prediction, answer)


def test_scores_equal_the_official_script_on_random_texts():
    generator = random.Random(0)
    parts = ["the", "a", "an", "The", "x", "yes", "café", "-", "'", ".", " ", " ", "\t", "—", "ß", "1"]
    for _ in range(2000):
        a, b = ("".join(generator.choices(parts, k=generator.randint(0, 8))) for _ in range(2))
        assert normalise(a) == official_normalise(a)
        assert exact_match(a, b) == (official_normalise(a) == official_normalise(b))
        assert f1(a, b) == official_f1(a, b)


def test_evaluate_takes_the_best_answer_and_counts_the_unanswered():
    questions = [Question(id, "", "", tuple(Answer(text, 0) for text in texts)) for id, texts in
                 [("1", ["red cat", "cat"]), ("2", ["dog"]), ("3", ["green old owl", "owl"]),
                  ("4", ["fish"])]]
    score = evaluate(questions, {"1": "The cat", "2": "a mouse", "3": "old owl", "5": "fish", "6": "fish"})
    assert score == {"exact_match": 25.0, "f1": pytest.approx(100 * (1 + 0 + 0.8 + 0) / 4)}


# reading

def squad(entry=None, **changes):
    """The json of two questions over two paragraphs; the second is `entry`, or has `changes`."""
    first = {"id": "one", "question": "Who?", "answers": [{"text": "Ann", "answer_start": 5}]}
    second = {"id": "two", "question": "What?", "answers": [{"text": "owl", "answer_start": 5},
                                                            {"text": "An owl", "answer_start": 2}]} | changes
    paragraphs = [{"context": "It's Ann", "qas": [first]},
                  {"context": "😀 An owl an owl", "qas": [second if entry is None else entry]}]
    return {"version": "1.1", "data": [{"title": "x", "paragraphs": paragraphs}]}


def test_reading_keeps_order_and_counts_in_characters(tmp_path):
    (tmp_path / "dev.json").write_text(json.dumps(squad()), encoding="utf-8-sig")
    assert read_squad(tmp_path / "dev.json") == [
        Question("one", "Who?", "It's Ann", (Answer("Ann", 5),)),
        Question("two", "What?", "😀 An owl an owl", (Answer("owl", 5), Answer("An owl", 2)))]


@pytest.mark.parametrize("content, message", [
    (" \n", "not valid json"), (json.dumps(squad())[:-30], r"not valid json, .* line 1 column \d+"),
    ('{"data": [\n{"paragraphs": ]}', "not valid json, .* line 2 column 16"),
    ("[" * 100_000, "not valid json"),
    ("[]", "not the json of SQuAD 1.1"), ('{"data": {}}', "holds no question"),
    ('{"data": [{"title": "x"}]}', r"not the json of SQuAD 1.1 \(KeyError\('paragraphs'\)\)"),
    (json.dumps(squad(question="\ud83d")), "not valid json, .*surrogates"),
    (squad(entry=[1]), "not the json"), (squad(id=5), "article 1, question 5: this is not the json"),
    (squad(id="one"), "article 1, question 'one': an earlier question has the same id"),
    (squad(question=None), "question 'two': this is not the json"),
    (squad(answers=[]), r"question 'two': no answer; .*SQuAD 2.0"),
    (squad(answers=["owl"]), "question 'two': this is not the json"),
    (squad(answers=[{"text": "owl", "answer_start": "5"}]), "question 'two': this is not the json"),
    (squad(answers=[{"text": "owl", "answer_start": 4}]), "the answer 'owl' at character 4"),
    (squad(answers=[{"text": "owl", "answer_start": -3}]), "does not have the answer 'owl'"),
    (squad(answers=[{"text": "", "answer_start": 0}]), "does not have the answer ''"),
])
def test_a_bad_file_is_one_sentence_that_names_the_place(tmp_path, content, message):
    path = tmp_path / "train.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=message) as error:
        read_squad(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="nowhere.json cannot be read"):
        read_squad(tmp_path / "nowhere.json")
    (tmp_path / "latin.json").write_bytes(b'{"data":\n"\xe9"}')
    with pytest.raises(UserError, match="latin.json, line 2: not UTF-8"):
        read_squad(tmp_path / "latin.json")


# windows

def test_a_window_is_written_as_bert_reads_it():
    tokenizer = Tokenizer(VOCABULARY)
    window, = windows([ask("The café sing.", "fé", question="Whó?")], tokenizer, max_length=40, max_query=8)
    assert tokenizer.decode(window.ids, skip_special=False) == "[CLS] who? [SEP] the cafe sing. [SEP]"
    assert [tokenizer.id_to_piece(i) for i in window.ids[6:]] == "the c ##a ##f ##e s ##ing . [SEP]".split()
    assert window.segments == [0] * 6 + [1] * 9
    assert (window.first, window.start, window.end) == (6, 9, 10)
    assert window.chars.tolist() == [[0, 3], [4, 5], [5, 6], [6, 7], [7, 8], [9, 10], [10, 13], [13, 14]]


def max_context_by_the_original(spans, cur_span_index, position):
    """run_squad.py, _check_is_max_context, read line by line; spans are (start, length)."""
    best_score, best_span_index = None, None
    for span_index, (start, length) in enumerate(spans):
        end = start + length - 1
        if position < start or position > end:
            continue
        score = min(position - start, end - position) + 0.01 * length
        if best_score is None or score > best_score:
            best_score, best_span_index = score, span_index
    return cur_span_index == best_span_index


def spans_by_the_original(tokens, max_tokens, stride):
    """run_squad.py, the loop over doc_spans, read line by line."""
    spans, start_offset = [], 0
    while start_offset < tokens:
        length = min(tokens - start_offset, max_tokens)
        spans.append((start_offset, length))
        if start_offset + length == tokens:
            break
        start_offset += min(length, stride)
    return spans


# in the last, the end window is so much shorter that the hundredth of its length decides
@pytest.mark.parametrize("words, max_length, stride, count", [
    (60, 24, 5, 20), (60, 24, 14, 8), (60, 24, 100, 7), (60, 17, 1, 99), (60, 384, 128, 1),
    (310, 327, 200, 3)])
def test_windows_are_those_of_the_original(tokenizer, words, max_length, stride, count):
    context = random_context(random.Random(1), words)
    ids = tokenizer.pieces([context])[0]
    found = windows([ask(context, question="abc?")], tokenizer, max_length, stride, max_query=8)
    spans = spans_by_the_original(len(ids), max_length - 4 - 3, stride)
    assert len(found) == len(spans) >= count
    owned = np.zeros(len(ids))
    for w, (window, (start, length)) in enumerate(zip(found, spans)):
        assert window.ids == [2, *tokenizer.pieces(["abc?"])[0], 3, *ids[start:start + length], 3]
        assert len(window.ids) <= max_length and len(window.chars) == len(window.max_context) == length
        assert window.max_context.tolist() == [max_context_by_the_original(spans, w, i)
                                               for i in range(start, start + length)]
        owned[start:start + length] += window.max_context
    assert (owned == 1).all()  # every token is in a window, and in exactly one with most of its surroundings


def test_many_questions_give_the_same_windows_as_one_at_a_time(tokenizer):
    generator = random.Random(2)
    contexts = [random_context(generator, n) for n in (0, 5, 40)]
    questions = [ask(context, question=text) for context in contexts for text in ("", "ab?", "ab" * 40)]
    found = windows(questions, tokenizer, 30, 7, 12)
    alone = [(i, window) for i, question in enumerate(questions)
             for window in windows([question], tokenizer, 30, 7, 12)]
    assert [(window.question, window.ids, window.first, window.chars.tolist()) for window in found] == [
        (i, window.ids, window.first, window.chars.tolist()) for i, window in alone]


def test_a_long_question_is_cut(tokenizer):
    question = "ab" * 40 + "?"
    window, = windows([ask("c d", "d", question=question)], tokenizer)
    assert window.first == 66 and window.ids[1:65] == tokenizer.pieces([question])[0][:64]
    assert window.ids[window.start] == VOCABULARY["d"]


def gold_text(question, window):
    rows = slice(window.start - window.first, window.end - window.first + 1)
    return question.context[window.chars[rows][0, 0]:window.chars[rows][-1, 1]]


def test_gold_spans_are_the_answer_to_the_character_in_every_window_that_holds_them(tokenizer):
    generator = random.Random(3)
    context = random_context(generator, 80)
    # answers of whole words (accents of their own, CJK, emoji, joined ones): every border a token border
    words = [m.span() for m in re.finditer(r"[^\s\u0301\u00ad…]\S*", context)]
    questions = []
    for i in range(len(words)):
        begin, end = words[i][0], words[min(len(words) - 1, i + generator.randint(0, 3))][1]
        questions.append(ask(context, context[begin:end], begin, id=str(i)))
    whole, = windows([ask(context)], tokenizer, 10_000)
    held = Counter()
    for question in questions:
        answer, found = question.answers[0], windows([question], tokenizer, 40, 9, 8)
        needed = [i for i, (begin, end) in enumerate(whole.chars)
                  if begin < answer.start + len(answer.text) and end > answer.start]
        spans = spans_by_the_original(len(whole.chars), 40 - found[0].first - 1, 9)
        for window, (start, length) in zip(found, spans, strict=True):
            if start <= needed[0] and needed[-1] < start + length:
                held[question.id] += 1
                rows = [row - window.first + start for row in (window.start, window.end)]
                assert rows == [needed[0], needed[-1]]
                assert gold_text(question, window) == answer.text
            else:
                assert (window.start, window.end) == (0, 0)
    assert len(held) == len(questions) and held.total() > 2 * len(held)


@pytest.mark.parametrize("context, text, lowercase, cut", [
    ("Zebra at last", "Zebra", True, None),  # the very start
    ("at last 你", "你", True, None),  # the very end
    ("at cafe\u0301", "cafe\u0301", True, None),  # the accent at the end is no token's once it is stripped
    ("at cafe\u0301", "cafe\u0301", False, None),  # and is one where it is not
    ("e\u0301e\u0301 x", "e\u0301", True, None),
    ("a 한 b", "한", True, None),  # three pieces of one character
    ("😀😀 👩\u200d👧 x", "👩\u200d👧", True, None),
    ("你好", "好", True, None),
    ("in 1990s", "990", True, None),
    ("a sings", "in", True, "ing"),  # "##ing" is a piece: more than the answer, never less
    ("the", "h", True, "the"),
])
def test_gold_at_odd_places(context, text, lowercase, cut):
    question = ask(context, text)
    window, = windows([question], Tokenizer(VOCABULARY, {"lowercase": lowercase}))
    assert window.start >= window.first and gold_text(question, window) == (cut or text)


def test_an_answer_that_no_token_holds_is_no_span():
    window, = windows([ask("a \u200b b", "\u200b")], Tokenizer(VOCABULARY))
    assert (window.start, window.end) == (0, 0)


def test_impossible_lengths_are_refused(tokenizer):
    with pytest.raises(UserError, match="max_length 67 leaves no room .* at least 68"):
        windows([ask("a")], tokenizer, 67)
    assert len(windows([ask("a b c", question="ab" * 40)], tokenizer, 68)) == 3


# answers

def random_logits(found, generator):
    return [[generator.normal(scale=3, size=len(window.ids)).astype(np.float32) for window in found]
            for _ in range(2)]


def both(starts, ends):
    """For each window, the logits (T, 2)."""
    return [np.stack(pair, 1) for pair in zip(starts, ends)]


def every_pair(found, starts, ends, context, n_best, max_answer):
    """All spans, one by one, best first, each text once."""
    spans = []
    for window, start, end in zip(found, starts, ends):
        rows = range(window.first, len(window.ids) - 1)
        best_ends = sorted(rows, key=lambda row: -end[row])[:n_best]
        allowed = [row for row in rows if window.max_context[row - window.first]]
        best_starts = sorted(allowed, key=lambda row: -start[row])
        for s in best_starts[:n_best]:
            for e in best_ends:
                if s <= e < s + max_answer:
                    text = context[window.chars[s - window.first][0]:window.chars[e - window.first][1]]
                    spans.append((float(start[s]) + float(end[e]), text))
    best = {}
    for score, text in sorted(spans, reverse=True):
        best.setdefault(text, score)
    return list(best.items())[:n_best]


@pytest.mark.parametrize("n_best, max_answer", [(1000, 30), (1000, 3), (20, 30), (20, 1), (3, 30), (1, 1000)])
def test_decode_equals_trying_every_pair(tokenizer, n_best, max_answer):
    generator = np.random.default_rng(4)
    for words in (1, 6, 40):
        question = ask(random_context(random.Random(words), words) + "a")
        found = windows([question], tokenizer, 40, 9, 8)
        starts, ends = random_logits(found, generator)
        ours = decode(list(zip(found, both(starts, ends))), question, n_best, max_answer)
        expected = every_pair(found, starts, ends, question.context, n_best, max_answer)
        assert [(c.text, pytest.approx(c.score)) for c in ours] == (expected or [("", 0.0)])
        shares = [math.exp(c.score - ours[0].score) for c in ours]
        assert [c.probability for c in ours] == pytest.approx([share / sum(shares) for share in shares])


def test_gold_logits_give_the_gold_text(tokenizer):
    context = random_context(random.Random(5), 80)
    words = [m.span() for m in re.finditer(r"[^\s\u0301\u00ad…]\S*", context)]
    questions = [ask(context, context[a:b], a, id=str(i)) for i, (a, b) in enumerate(words)]
    found, predictions = windows(questions, tokenizer, 60, 9, 8), {}
    for i, question in enumerate(questions):
        own = [window for window in found if window.question == i]
        logits = [[np.where(np.arange(len(w.ids)) == row, 9.0, 0.0) for w, row in zip(own, rows)]
                  for rows in ([w.start for w in own], [w.end for w in own])]
        predictions[question.id] = decode(list(zip(own, both(*logits))), question)[0].text
        assert predictions[question.id] == question.answers[0].text
    assert evaluate(questions, predictions)["exact_match"] == 100


def test_a_start_at_the_edge_of_a_window_does_not_count():
    question = ask(" ".join("abcdefghijklmnop"))
    found = windows([question], Tokenizer(VOCABULARY), 18, 4, 8)
    starts, ends = ([np.zeros(len(w.ids)) for w in found] for _ in range(2))
    second = found[1]
    starts[1][second.first] = ends[1][second.first] = 9.0  # its first token, better seen from the one before
    starts[0][found[0].first + 1] = ends[0][found[0].first + 1] = 1.0
    assert not second.max_context[0] and decode(list(zip(found, both(starts, ends))), question)[0].text == "b"


def test_there_is_always_an_answer():
    tokenizer = Tokenizer(VOCABULARY)
    for context in ("", " \u200b", "a b c"):
        question = ask(context)
        window, = windows([question], tokenizer)
        for logits in (np.full(len(window.ids), np.nan), np.full(len(window.ids), -np.inf)):
            assert decode([(window, np.stack([logits] * 2, 1))], question) == [Candidate("", 0.0, 1.0)]
    assert decode([], ask("")) == [Candidate("", 0.0, 1.0)]
    ends = np.zeros(len(window.ids))
    ends[window.first] = 5  # the only end that is tried stands before the only start that is tried
    starts = np.arange(len(window.ids))
    logits = np.stack([starts, ends], 1)
    assert decode([(window, logits)], ask("a b c"), n_best=1) == [Candidate("", 0.0, 1.0)]
