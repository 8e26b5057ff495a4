"""Tests that all kinds of tokenizer files give BERT's ids, and that errors name the file.

    python -m pytest tests/data/test_tokenizer.py
"""

import json
import os
import random
import re
from types import SimpleNamespace

import numpy as np
import pytest

from minibert.common.errors import UserError
from minibert.data.tokenizer import Tokenizer, load_tokenizer, longest_first, train_tokenizer

PIECES = ("[PAD] [unused0] [UNK] [CLS] [SEP] [MASK] hello world , . un ##aff ##able the cafe ##s 你 好 i ##i 1 "
          "##2 ' Hello WORLD café É").split()
TEXT = ["The unaffable cafés, 你好.", "hello\u00adworld\x00 \ufffd the\u2003world\t12",
        "don't [MASK] the[SEP]un [mask]", "Hello WORLD É café CAFÉ", "", " ", "x" * 200, "İi 12",
        "\u0301 e\u0301", "hello 你world\r\n.,"]


def write_vocabulary(folder, pieces=PIECES, **config):
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def uncased(pieces=PIECES):
    return [piece for piece in pieces if piece.startswith("[") or piece == piece.lower()]


@pytest.fixture
def tokenizer(tmp_path):
    return load_tokenizer(write_vocabulary(tmp_path / "uncased", uncased()))


def ids_of(tokenizer, text):
    return [tokenizer.id_to_piece(i) for i in tokenizer.pieces([text])[0]]


def test_recorded_pieces(tokenizer):
    """The expected pieces follow from BERT's rules: no accents, no control characters, each CJK character
    alone.
    """
    assert ids_of(tokenizer, "The unaffable CAFÉS, 你好.") == "the un ##aff ##able cafe ##s , 你 好 .".split()
    assert ids_of(tokenizer, "hel\x00lo\ufffd\tworld\u2003the 12") == "hello world the 1 ##2".split()
    assert ids_of(tokenizer, "unknown the") == ["[UNK]", "the"]
    assert ids_of(tokenizer, "the[MASK]the [SEP] [UNK]") == "the [MASK] the [SEP] [UNK]".split()
    assert ids_of(tokenizer, "") == []


def test_texts_are_encoded_in_parts(tokenizer, monkeypatch):
    backend, sizes, texts = tokenizer.backend, [], [*["the"] * 1500, "world the", *["hello"] * 700]
    expected = [pieces for text in texts for pieces in tokenizer.pieces([text])]

    def encode(part, **more):
        sizes.append(len(part))
        return backend.encode_batch_fast(part, **more)

    monkeypatch.setattr(tokenizer, "backend", SimpleNamespace(encode_batch_fast=encode))
    assert tokenizer.pieces(texts) == expected and sizes == [1024, 1024, 153]


def test_a_cased_vocabulary_keeps_case_without_being_told(tmp_path):
    cased = load_tokenizer(write_vocabulary(tmp_path / "a"))
    assert not cased.lowercase
    assert ids_of(cased, "Hello hello café É") == ["Hello", "hello", "café", "É"]


def test_the_config_decides_over_the_vocabulary(tmp_path):
    told = load_tokenizer(write_vocabulary(tmp_path / "a", do_lower_case=True, strip_accents=False))
    assert told.lowercase and ids_of(told, "Hello CAFÉ") == ["hello", "café"]
    split = load_tokenizer(write_vocabulary(tmp_path / "b", uncased(), tokenize_chinese_chars=False))
    assert ids_of(split, "你 好") == ["你", "好"] and ids_of(split, "你好") == ["[UNK]"]


def test_ids_and_masks_of_special_tokens_and_continuations(tokenizer):
    pieces = uncased()
    assert tokenizer.vocab_size == len(pieces)
    ids = [tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id]
    assert ids == [0, 2, 3, 4, 5]
    assert np.flatnonzero(tokenizer.special).tolist() == [0, 2, 3, 4, 5]
    continuations = [pieces[i] for i in np.flatnonzero(tokenizer.continuation)]
    assert continuations == ["##aff", "##able", "##s", "##i", "##2"]
    assert tokenizer.piece_to_id("##s") == pieces.index("##s")
    assert tokenizer.piece_to_id("absent") == tokenizer.unk_id


def test_encode_single_and_pair(tokenizer):
    ids, segments = tokenizer.encode(["hello world", "the"], ["the .", "un"])
    pieces = [[tokenizer.id_to_piece(i) for i in sequence] for sequence in ids]
    assert pieces == ["[CLS] hello world [SEP] the . [SEP]".split(), "[CLS] the [SEP] un [SEP]".split()]
    assert segments == [[0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1]]
    ids, segments = tokenizer.encode(["hello world the"], max_length=4)
    assert tokenizer.decode(ids[0]) == "hello world" and segments == [[0, 0, 0, 0]]
    assert tokenizer.decode(ids[0], skip_special=False) == "[CLS] hello world [SEP]"


def test_longest_first_takes_away_one_token_at_a_time():
    """The result equals removing one token at a time from the longer text."""
    for n_a in range(12):
        for n_b in range(12):
            for room in range(0, 24):
                a, b = longest_first(n_a, n_b, room)
                assert a + b == min(room, n_a + n_b) and a <= n_a and b <= n_b
                if a < n_a and b < n_b:
                    assert b == a + room % 2 or a == b + room % 2 and n_a > n_b
                if a < n_a:
                    assert a >= b - 1
                if b < n_b:
                    assert b >= a - 1


def test_saved_files_load_to_the_same_tokenizer(tmp_path, tokenizer):
    cased = load_tokenizer(write_vocabulary(tmp_path / "vocabulary"))
    for name, original in (("uncased_copy", tokenizer), ("cased_copy", cased)):
        original.save(tmp_path / name)
        both = load_tokenizer(tmp_path / name)
        (tmp_path / name / "tokenizer.json").unlink()
        from_vocabulary = load_tokenizer(tmp_path / name)
        assert original.sha256 == both.sha256 == from_vocabulary.sha256
        assert original.pieces(TEXT) == both.pieces(TEXT) == from_vocabulary.pieces(TEXT)
        assert original.lowercase == both.lowercase == from_vocabulary.lowercase


def added_to(folder, where, **tokens):
    """A folder with a vocab.txt and added tokens, {content: id}, in the old or in the new file."""
    if where == "added_tokens.json":
        write_vocabulary(folder, uncased(), do_lower_case=True)
        (folder / where).write_text(json.dumps(tokens))
    else:
        write_vocabulary(folder, uncased(), do_lower_case=True, added_tokens_decoder={
            str(i): {"content": content, "normalized": True} for content, i in tokens.items()})
    return folder


BESIDE = pytest.mark.parametrize("where", ["added_tokens.json", "tokenizer_config.json"])


@BESIDE
def test_tokens_added_beside_a_vocabulary_count(tmp_path, where):
    n = len(uncased())
    loaded = load_tokenizer(added_to(tmp_path / "t", where, **{"<url>": n + 1, "<user>": n, "[MASK]": 5}))
    assert ids_of(loaded, "hello <user> un<URL>[MASK]") == ["hello", "<user>", "un", "<url>", "[MASK]"]
    assert loaded.vocab_size == n + 2 and loaded.special.sum() == 5
    loaded.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").sha256 == loaded.sha256
    for name, wrong in (("gap", n + 7), ("taken", 3), ("word", "8")):
        with pytest.raises(UserError, match=f"the added token '<user>' cannot have id {wrong}: it gets {n}"):
            load_tokenizer(added_to(tmp_path / name, "added_tokens.json", **{"<user>": wrong}))
    (tmp_path / "t" / where).write_text('{"added_tokens_decoder": [1], "<user>": "8", "<url>": 9}')
    with pytest.raises(UserError, match="this file is damaged, or tokenizer_config.json"):
        load_tokenizer(tmp_path / "t")


@BESIDE
def test_added_tokens_are_those_of_transformers(tmp_path, where):
    transformers = pytest.importorskip("transformers")
    n = len(uncased())
    folder = added_to(tmp_path / "t", where, **{"<user>": n, "<url>": n + 1})
    ours = load_tokenizer(folder)
    ours.save(tmp_path / "saved")
    for theirs in map(transformers.BertTokenizerFast.from_pretrained, (folder, tmp_path / "saved")):
        for line in ("hello <user> see<url>s", "a<USER>b [MASK] <user >"):
            assert ours.encode([line])[0][0] == theirs(line)["input_ids"]


def test_sha256_tells_tokenisations_apart():
    vocabulary = {piece: i for i, piece in enumerate(PIECES)}
    swapped = vocabulary | {"hello": vocabulary["world"], "world": vocabulary["hello"]}
    different = [Tokenizer(vocabulary), Tokenizer(vocabulary, {"lowercase": False}), Tokenizer(swapped),
                 Tokenizer(vocabulary, {"strip_accents": False}), Tokenizer(vocabulary, max_word=50)]
    assert len({t.sha256 for t in different}) == len(different)
    # stripping accents is what lower-casing means unless said otherwise
    assert Tokenizer(vocabulary, {"strip_accents": True}).sha256 == Tokenizer(vocabulary).sha256


def test_truncation_and_padding_in_tokenizer_json_have_no_effect(tmp_path, tokenizer):
    tokenizer.save(tmp_path / "t")
    path = tmp_path / "t" / "tokenizer.json"
    content = json.loads(path.read_text())
    content["truncation"] = {"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    content["padding"] = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None,
                          "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"}
    path.write_text(json.dumps(content))
    loaded = load_tokenizer(tmp_path / "t")
    assert loaded.encode(TEXT) == tokenizer.encode(TEXT) and loaded.sha256 == tokenizer.sha256


def test_loading_writes_nothing(tmp_path):
    folder = write_vocabulary(tmp_path / "t")
    load_tokenizer(folder)
    assert [path.name for path in folder.iterdir()] == ["vocab.txt"]


def test_errors_name_the_file_and_the_line(tmp_path):
    def message(folder):
        with pytest.raises(UserError) as error:
            load_tokenizer(folder)
        return str(error.value)

    assert "nowhere is neither a folder" in message(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "neither tokenizer.json nor vocab.txt" in message(tmp_path / "empty")
    assert re.search(r"vocab.txt.*\[SEP\] \[MASK\];", message(write_vocabulary(tmp_path / "a", PIECES[:4])))
    folder = write_vocabulary(tmp_path / "c")
    (folder / "vocab.txt").write_bytes(b"[PAD]\n[UNK]\nab\xff\n")
    assert "vocab.txt, line 3: not UTF-8" in message(folder)
    (write_vocabulary(tmp_path / "d") / "tokenizer_config.json").write_text("{\n\n,}")
    assert "tokenizer_config.json, line 3: not valid json" in message(tmp_path / "d")
    (tmp_path / "d" / "tokenizer_config.json").unlink()
    (tmp_path / "d" / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE"}}))
    assert "not a BERT WordPiece tokenizer" in message(tmp_path / "d")
    (tmp_path / "d" / "tokenizer.json").write_text("[]")
    assert "not a json object" in message(tmp_path / "d")
    assert "damaged" in message(write_vocabulary(tmp_path / "e", do_lower_case="maybe"))


def test_encode_refuses_impossible_lengths(tokenizer):
    with pytest.raises(UserError, match="max_length 2"):
        tokenizer.encode(["a"], ["b"], max_length=2)
    with pytest.raises(UserError, match="1 texts but 2"):
        tokenizer.encode(["a"], ["b", "c"])


@pytest.fixture(scope="module")
def words():
    generator = random.Random(1)
    stems = ["".join(generator.choices("abcdefgé", k=generator.randint(1, 4))) for _ in range(80)]
    return [" ".join("".join(generator.choices(stems, k=2)) for _ in range(9)).capitalize() + " [UNK], €5."
            for _ in range(400)]


def test_a_trained_vocabulary_is_deterministic_and_covers_its_text(words):
    first, second = (train_tokenizer(words, 300) for _ in range(2))
    assert first.vocabulary == second.vocabulary and first.vocab_size == 300
    assert first.vocabulary[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    ids = first.pieces(words)
    # only the [UNK] that the text itself holds
    assert sum(i == first.unk_id for line in ids for i in line) == len(words)
    assert first.lowercase and not any("A" <= c <= "Z" for piece in first.vocabulary[5:] for c in piece)
    # learned pieces shorten the text, beyond one piece per character
    assert sum(map(len, ids)) < 0.6 * sum(len(line.replace(" ", "")) for line in words)


def test_a_trained_cased_vocabulary_keeps_case_and_accents(words, tmp_path):
    cased = train_tokenizer(words, 300, lowercase=False)
    assert not cased.lowercase and "é" in cased.vocabulary and any(c in cased.vocabulary for c in "ABCDEFG")
    cased.save(tmp_path / "c")
    (tmp_path / "c" / "tokenizer_config.json").unlink()
    (tmp_path / "c" / "tokenizer.json").unlink()
    assert load_tokenizer(tmp_path / "c").sha256 == cased.sha256


def test_a_vocabulary_too_small_for_the_alphabet_is_refused(words):
    with pytest.raises(UserError, match="ask for 2[0-9] or more"):
        train_tokenizer(words, 10)
    with pytest.raises(UserError, match="no text"):
        train_tokenizer([" "], 100)


def odd_lines(n):
    """Random strings of accents, CJK, control characters, symbols and special tokens."""
    generator = random.Random(0)
    ranges = [(32, 0x500), (32, 127), (0x3000, 0x9fff), (0, 0x20), (0x1f000, 0x2fa20), (0x2000, 0x2100)]
    words = [" ", "[MASK]", "[UNK]", "[SEP]", "e\u0301", "\u200b", "\ufffd", "\u00ad", "İ", "ß", "한국어",
             "don't", "[mask]", "ﬁ"]
    return ["".join(chr(generator.randrange(*generator.choice(ranges))) if generator.random() < 0.6 else
                    generator.choice(words) for _ in range(generator.randrange(50))) for _ in range(n)]


@pytest.mark.parametrize("cased", [False, True])
def test_same_ids_as_transformers(tmp_path, cased):
    transformers = pytest.importorskip("transformers")
    alphabet = [chr(c) for c in (*range(33, 0x500), 0x4e00, 0x4f60, 0x597d, 0xac00, 0x20ac)]
    pieces = list(dict.fromkeys(PIECES[:6] + [c for c in alphabet if cased or c == c.lower()]
                                + [f"##{c}" for c in alphabet if cased or c == c.lower()] + uncased()))
    folder = write_vocabulary(tmp_path / "t", pieces, do_lower_case=not cased)
    ours, theirs = load_tokenizer(folder), transformers.BertTokenizerFast.from_pretrained(folder)
    lines = odd_lines(300) + TEXT
    expected = theirs(lines)
    assert ours.encode(lines, max_length=10**6) == (expected["input_ids"], expected["token_type_ids"])
    backwards = lines[::-1]
    for length in (3, 4, 17, 40):
        expected = theirs(lines, backwards, truncation="longest_first", max_length=length)
        assert ours.encode(lines, backwards, length) == (expected["input_ids"], expected["token_type_ids"])
    assert [ours.decode(i) for i in ours.pieces(lines)] == \
        [theirs.decode(i, skip_special_tokens=True) for i in ours.pieces(lines)]


def test_transformers_loads_what_is_saved(tmp_path, words):
    transformers = pytest.importorskip("transformers")
    for name, cased in (("uncased", False), ("cased", True)):
        ours = train_tokenizer(words, 300, lowercase=not cased)
        ours.save(tmp_path / name, max_length=77)
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / name)
        lines = words[:50] + odd_lines(100) + TEXT
        assert type(theirs).__name__.startswith("BertTokenizer") and theirs.model_max_length == 77
        assert theirs(lines)["input_ids"] == ours.encode(lines, max_length=10**6)[0]
        assert theirs.mask_token_id == ours.mask_id and theirs.pad_token_id == ours.pad_id


@pytest.mark.parametrize("change, message", [
    (lambda d: d["model"]["vocab"].update({"[SEP]": 4_000_000_000}), "nearly all of which are unused"),
    (lambda d: d.update(model=[1]), "damaged"),
    (lambda d: d["model"].update(vocab=[1]), "damaged"),
    (lambda d: d.update(added_tokens=[{"id": "x", "content": 3}, {"id": 2, "content": ""}]), "damaged"),
])
def test_a_damaged_description_is_one_sentence(tmp_path, change, message):
    train_tokenizer(["words in a row"], 40).save(tmp_path)
    description = json.loads((tmp_path / "tokenizer.json").read_text())
    change(description)
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match=message):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", ["[" * 9999, '{"a": ' + "9" * 5000 + "}"])
def test_json_that_python_cannot_hold_is_one_sentence(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match="tokenizer.json: this json cannot be read"):
        load_tokenizer(tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="links, pipes, devices")
@pytest.mark.parametrize("kind", ["device", "pipe", "folder"])
def test_what_is_no_file_is_not_read(tmp_path, kind):
    """Reading a device would never end, and reading a pipe would never begin."""
    path = tmp_path / "vocab.txt"
    {"device": lambda: path.symlink_to("/dev/zero"), "pipe": lambda: os.mkfifo(path),
     "folder": path.mkdir}[kind]()
    with pytest.raises(UserError, match="vocab.txt is not a file"):
        load_tokenizer(tmp_path)


def test_a_temporary_folder_that_cannot_be_written_is_named(monkeypatch):
    """The training of a vocabulary keeps the texts in this folder."""
    monkeypatch.setattr("tempfile.tempdir", "/no-such-folder")
    with pytest.raises(UserError, match="/no-such-folder cannot be written"):
        train_tokenizer(["some text"], 30)
