"""Word vectors: GloVe's files as they are and as they should not be, neighbours against all cosines."""

import pytest
import torch

from minibert.common.errors import UserError
from minibert.tasks.word_vectors import Vectors, is_word, nearest, read_vectors


def put(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_is_read_up_to_the_limit_without_what_are_no_words(tmp_path):
    path = put(tmp_path / "glove.txt",  # two "words" with spaces, as the largest of these files have
               "odd 3 4\nThe 1 2\n, 1 1\ngood 0 2\nat 7pm 1 0\n. . 1 0\nzero 0 0\nbad 0 -1\nlate 1 1\n")
    vectors = read_vectors(path, limit=8)
    assert vectors.words == ["odd", "good", "bad"]  # eight lines, three words of letters that point somewhere
    assert torch.allclose(vectors.table, torch.tensor([[0.6, 0.8], [0.0, 1.0], [0.0, -1.0]]))


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
    words = [chr(97 + i // 26) + chr(97 + i % 26) for i in range(300)] + ["Ab", "Zz"]
    table = torch.nn.functional.normalize(torch.randn(302, 8))
    vectors, asked = Vectors(words, table), [*words[:280], "unknown", words[3].upper(), "Zz"]
    found = nearest(vectors, asked, 5)
    assert found.keys() == {*asked} - {"unknown"}
    for word, near in found.items():
        own = words.index(word if word in words else word.lower())
        cosines = {other: float(table[i] @ table[own]) for i, other in enumerate(words)
                   if other.lower() != word.lower()}
        assert near == sorted(cosines, key=cosines.get, reverse=True)[:5]
    few = nearest(Vectors(words[:3], table[:3]), [words[0]], 5)
    assert set(few[words[0]]) == {*words[1:3]}


def test_words_are_letters_and_no_stop_words():
    assert [is_word(text) for text in ("word", "é" * 2, "x", "b2b", "##ing", "[MASK]", "", "The")] == [
        True, True, False, False, False, False, False, False]
