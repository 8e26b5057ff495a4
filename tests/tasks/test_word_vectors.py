"""Word vectors: GloVe's files as they are and as they should not be, neighbours against all cosines."""

import pytest
import torch

from minibert.common.errors import UserError
from minibert.data.tokenizer import Tokenizer
from minibert.model.config import Config
from minibert.model.init import init_weights
from minibert.model.heads import MaskedLM
from minibert.tasks.word_vectors import Vectors, is_word, nearest, own_vectors, read_vectors

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]",
          "good", "bad", "fine", "Fine", "x", "7", "##good", "un"]


def put(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_is_read_up_to_the_limit_without_what_are_no_words(tmp_path):
    path = put(tmp_path / "glove.txt",  # two "words" with spaces, as the largest of these files have
               "odd 3 4\nThe 1 2\n, 1 1\ngood 0 2\nat 7pm 1 0\n. . 1 0\nzero 0 0\nbad 0 -1\nlate 1 1\n")
    vectors = read_vectors(path, limit=8)
    assert vectors.words == ["odd", "good", "bad"]  # eight lines, three words of letters that point somewhere
    assert torch.allclose(vectors.table, torch.tensor([[0.6, 0.8], [0.0, 1.0], [0.0, -1.0]]))
    assert torch.equal(vectors.of("Good"), vectors.table[1]) and vectors.of("late") is None
    with_header = read_vectors(put(tmp_path / "w2v.txt", "2 3\ngood 0 2 0\nbad 0 -1 0\n"))
    assert with_header.words == ["good", "bad"] and with_header.table.shape == (2, 3)


@pytest.mark.parametrize("text, message", [
    ("good 1 2\nbad 1\n", "line 2"), ("good 1 2\nbad one 2\n", "line 2"), ("good 1 2\nbad 1 two\n", "line 2"),
    ("good 1 2\n\nbad 1 2\n", "line 2"), ("good 1 nan\n", "line 1"), ("", "no word vectors"),
    ("good\n", "line 1"), (", 1 2\n", "no word vectors")])
def test_what_is_wrong_with_a_file_is_one_sentence(tmp_path, text, message):
    path = put(tmp_path / "glove.txt", text)
    with pytest.raises(UserError, match=message) as caught:
        read_vectors(path)
    assert "glove.txt" in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="none.txt cannot be read"):
        read_vectors(tmp_path / "none.txt")


def test_the_nearest_are_those_of_the_largest_cosine_and_never_the_word_itself():
    words = [chr(97 + i // 26) + chr(97 + i % 26) for i in range(300)]
    table = torch.nn.functional.normalize(torch.randn(300, 8))
    numbers = {word: i for i, word in enumerate(words)}
    of = lambda word: table[numbers[word.lower()]] if word.lower() in numbers else None  # noqa: E731
    vectors = Vectors(words, table, of)
    asked = [*words[:280], "unknown", words[3].upper()]
    found = nearest(vectors, asked, 5)
    for word, row in zip(asked, found):
        if word == "unknown":
            assert (row == -1).all()
            continue
        cosines = {i: float(table[i] @ table[numbers[word.lower()]]) for i in range(300)
                   if words[i] != word.lower()}
        assert row.tolist() == sorted(cosines, key=cosines.get, reverse=True)[:5]
    few = nearest(Vectors(words[:3], table[:3], vectors.of), [words[0], words[9]], 5)
    assert sorted(few[0].tolist()) == [-1, -1, -1, 1, 2] and few[0, 2] == -1
    assert sorted(few[1].tolist()) == [-1, -1, 0, 1, 2]


def test_a_model_gives_a_word_the_mean_of_its_pieces():
    tokenizer = Tokenizer({piece: i for i, piece in enumerate(PIECES)}, {"lowercase": False})
    model = init_weights(MaskedLM(Config(vocab_size=len(PIECES), hidden_size=8, layers=1, heads=2,
                                         intermediate_size=8)))
    vectors = own_vectors(model, tokenizer)
    assert vectors.words == ["good", "bad", "fine", "Fine", "un"]
    weight = model.encoder.word.weight.detach()
    expected = weight[[12, 11]].mean(0) - weight.mean(0)
    assert torch.allclose(vectors.of("ungood"), expected / expected.norm(), atol=1e-6)
    assert vectors.of("strange") is None
    assert "Fine" not in [vectors.words[i] for i in nearest(vectors, ["fine"], 4)[0] if i >= 0]


def test_words_are_letters_and_no_stop_words():
    assert [is_word(text) for text in ("word", "é" * 2, "x", "b2b", "##ing", "[MASK]", "", "The")] == [
        True, True, False, False, False, False, False, False]
