"""Tests of preparing a corpus: formats of text, ends of documents, the held-out part, complete folders.

    python -m pytest tests/data/test_prepare.py
"""

import bz2
import contextlib
import gzip
import json
import lzma
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import minibert
from minibert.common.errors import UserError
from minibert.data import prepare as prepare_module
from minibert.data import text
from minibert.data.corpus import open_corpus
from minibert.data.corpus_writer import file_types, new_folder
from minibert.data.prepare import encode_documents, prepare, split_line, training_lines
from minibert.data.text import find_sources, hash_share, read_documents
from minibert.data.tokenizer import Tokenizer

SCRIPT = Path(__file__).resolve().parents[2] / "data" / "prepare.py"
WORDS = [f"{a}{b}" for a in "bcdfg" for b in "aeiou"]
TOKENIZER = Tokenizer({piece: i for i, piece in enumerate(
    ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + WORDS + list("=-,.@<>"))})


def read(path, wikitext="auto"):
    """The documents of a file."""
    return [document for document, _ in read_documents(path, wikitext)]


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def sample_text(n, seed=0):
    generator = np.random.default_rng(seed)
    return "\n\n".join("\n".join(" ".join(generator.choice(WORDS, generator.integers(1, 30)))
                                 for _ in range(generator.integers(1, 9))) for _ in range(n)) + "\n"


def prepared_documents(folder, part="train"):
    """All documents of a part as lists of lines of text, read from the prepared files."""
    ids, lengths, counts = (np.fromfile(folder / f"{part}.{suffix}", dtype)
                            for suffix, dtype in file_types(TOKENIZER.vocab_size).items())
    lines = [TOKENIZER.decode(line) for line in np.split(ids, np.cumsum(lengths)[:-1])]
    return [list(document) for document in np.split(np.array(lines, object),
                                                    np.cumsum(counts.astype(int))[:-1])]


# ---------------------------------------------------------------- reading

def test_text_is_documents_of_lines(tmp_path):
    path = write(tmp_path / "a.txt", b"\xef\xbb\xbfba be\r\nbi\r\n\r\n \t \r\nbo\x00 bu\n\n\nca ce")
    assert read(path) == [["ba be", "bi"], ["bo\x00 bu"], ["ca ce"]]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_end_as_on_every_system(tmp_path, end):
    content = sample_text(20)
    path = write(tmp_path / "a.txt", content.replace("\n", end))
    assert read(path) == [block.split("\n") for block in content.strip().split("\n\n")]


def test_line_ends_of_several_kinds(tmp_path):
    """Mixed line ends give the same lines. A line end that only Unicode has does not end a document."""
    path = write(tmp_path / "a.txt", "ba\r\nbe\rbi\nbo\r\rbu\x85ca\u2028ce\u2029ci\x0cco\x0c\r\ncu")
    assert read(path) == [["ba", "be", "bi", "bo"], ["bu", "ca", "ce", "ci", "co", "cu"]]
    record = {"text": "ba\r\nbe\rbi\u2028bo"}
    path = write(tmp_path / "a.jsonl", json.dumps(record, ensure_ascii=False) + '\r{"text": "bu"}')
    assert read(path) == [["ba", "be", "bi", "bo"], ["bu"]]


def test_jsonl_records_are_documents(tmp_path):
    records = [{"text": "ba\n\nbe", "id": 1}, {"text": ""}, {"text": "bi \ud800bo"}]
    path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, records)) + "\n\n")
    assert read(path) == [["ba", "be"], ["bi bo"]]


@pytest.mark.parametrize("suffix, compress", [(".gz", gzip.compress), (".xz", lzma.compress)])
def test_compressed_files_read_the_same(tmp_path, suffix, compress):
    content = sample_text(20).encode()
    write(tmp_path / "a.txt", content)
    packed = write(tmp_path / f"a.txt{suffix}", compress(content))
    assert read(packed) == read(tmp_path / "a.txt")
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(UserError, match=f"a.txt{suffix}: damaged or cut off"):
        read(packed)


WIKITEXT = """ \n = Ba Be = \n \n The ba @-@ be cost 1 @,@ 000 @.@ 5 , <unk> . \n \n = = Bi = = \n \n Bo . \n
 = Ca <unk> = \n \n Ce = ci = \n"""


def test_wikitext_becomes_plain_text(tmp_path):
    expected = [["Ba Be", "The ba-be cost 1,000.5 , [UNK] .", "Bi", "Bo ."], ["Ca [UNK]", "Ce = ci ="]]
    for name in ("wiki.tokens", "wiki.txt"):
        assert read(write(tmp_path / name, WIKITEXT)) == expected
        assert read(tmp_path / name, "yes") == expected
        assert read(write(tmp_path / f"mac-{name}", WIKITEXT.replace("\n", "\r"))) == expected
    assert read(tmp_path / "wiki.txt", "no")[0] == ["= Ba Be ="]
    plain = write(tmp_path / "plain.txt", "a = b\n\n= x @ y =\n")
    assert read(plain) == [["a = b"], ["= x @ y ="]]
    assert read(plain, "yes") == [["a = b"], ["x @ y"]]


def test_a_line_is_blank_if_only_spaces_of_any_kind_are_in_it(tmp_path):
    """A character without width, like U+200B, is not a space."""
    spaces = [chr(c) for c in range(0x110000) if chr(c).isspace() and chr(c) != "\n"]
    assert len(spaces) > 25
    for blank in ["", *spaces, "\u00a0 \u00a0"]:
        assert read(write(tmp_path / "a.txt", f"ba\n{blank}\nbe\n")) == [["ba"], ["be"]]
    assert read(write(tmp_path / "a.txt", "ba\n\u200b\nbe")) == [["ba", "\u200b", "be"]]


@pytest.mark.parametrize("name, content, message", [
    ("a.txt", b"ba\n\nbe\nbi \xff\n", "a.txt, line 4: not UTF-8"),
    ("a.txt", "ba".encode("utf-16"), "a.txt is UTF-16 or UTF-32 text; convert it"),
    ("a.txt", "ba be".encode("utf-16-be"), "a.txt has many zero bytes"),
    ("a.txt", b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X", "a.txt is a companion file of macOS"),
    ("a.txt", gzip.compress(b"ba", mtime=0), "a.txt is compressed with gzip; add .gz"),
    ("a.txt.gz", gzip.compress(gzip.compress(b"ba", mtime=0), mtime=0), "a.txt.gz is compressed with gzip; "
                                                                        "add .gz"),
    ("a.txt", lzma.compress(b"ba"), "a.txt is compressed with xz; add .xz"),
    ("a.jsonl", b"\x28\xb5\x2f\xfd\x04\x00", "a.jsonl is compressed with zstd"),
    ("a.txt", b"PK\x03\x04\x14\x00", "a.txt is a zip archive"),
    ("a.txt", bz2.compress(b"ba"), "a.txt is compressed with bzip2"),
    ("a.txt", b"%PDF-1.7\n", "a.txt is a PDF file"),
    ("a.txt", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a.txt is a git-LFS pointer"),
    ("a.txt.zst", b"\x28\xb5\x2f\xfd\x04\x00", "a.txt.zst: unknown kind of file"),
    ("a.jsonl", b'{"text": "ba"}\n{"text": }\n', "a.jsonl, line 2: not valid json"),
    ("a.jsonl", b'{"text": ' + b"9" * 5000 + b"}", "a.jsonl, line 1: this json cannot be read"),
    ("a.jsonl", b'{"text": ' + b"[" * 100_000 + b"}", "a.jsonl, line 1: this json cannot be read"),
    ("a.jsonl", b'{"text": "ba"}\n\n{"body": "ba"}\n', 'a.jsonl, line 3: .*"text"'),
    ("a.jsonl", b'{"text": 5}\n', 'a.jsonl, line 1: .*"text"'),
    ("a.jsonl", b'["text"]\n', 'a.jsonl, line 1: .*"text"'),
    ("a.txt.gz", b"not compressed\n", "a.txt.gz: damaged"),
    ("a.csv", b"ba\n", "a.csv: unknown kind of file"),
    ("a.txt", b"", "the corpus is empty"),
    ("a.txt", b"\n \n\x01\x02\n", "the corpus is empty"),
])
def test_errors_name_file_and_line_and_leave_nothing(tmp_path, name, content, message):
    write(tmp_path / name, content)
    with pytest.raises(UserError, match=message):
        prepare([tmp_path / name], TOKENIZER, tmp_path / "out", held_out=0, report=None)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_errors_name_late_lines_too(tmp_path):
    content = sample_text(200)
    write(tmp_path / "a.txt", content.encode() + b"\xff")
    with pytest.raises(UserError, match=f"a.txt, line {content.count(chr(10)) + 1}: not UTF-8"):
        prepare([tmp_path / "a.txt"], TOKENIZER, tmp_path / "out", report=None)


def test_folders_are_read_in_sorted_order_without_prepared_corpora(tmp_path):
    folder = tmp_path / "texts"
    for name in ("b/c.txt", "a.jsonl.gz", "b/a.txt", ".hidden/a.txt", "notes.md"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write(folder / name, "ba\n")
    prepare([folder / "b"], TOKENIZER, folder / "done", held_out=0, report=None)
    names = [source.name for source in find_sources([folder])]
    assert names == ["texts/a.jsonl.gz", "texts/b/a.txt", "texts/b/c.txt"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no text files"):
        find_sources([tmp_path / "empty"])
    with pytest.raises(UserError, match="gone.txt does not exist"):
        find_sources([tmp_path / "gone.txt"])
    with pytest.raises(UserError, match="done is a prepared corpus, not text"):
        find_sources([folder, folder / "done"])
    for name in ("._a.txt", ".DS_Store", "b/._c.jsonl"):  # what macOS leaves behind
        write(folder / name, b"\x00\x05\x16\x07")
    said = []
    assert [source.name for source in find_sources([folder], said.append)] == names
    assert said == [f"{folder}: files whose names end in .md are not read (1 in all)"]
    (tmp_path / "endless.txt").symlink_to("/dev/zero")
    with pytest.raises(UserError, match="endless.txt cannot be read: it is not a file"):
        find_sources([tmp_path / "endless.txt"])


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_linked_folders_are_read_once(tmp_path):
    for name in ("text/a.txt", "text/c/d.txt", "elsewhere/b.txt", "elsewhere/deep/e.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / name, "ba\n")
    prepare([tmp_path / "elsewhere"], TOKENIZER, tmp_path / "done", held_out=0, report=None)
    for link, target in (("text/b", "../elsewhere"), ("text/z", "../elsewhere/deep"), ("text/c/up", ".."),
                         ("elsewhere/self", "."), ("text/above", "../.."), ("text/root", "/"),
                         ("text/corpus", "../done")):
        (tmp_path / link).symlink_to(target)
    names = [source.name for source in find_sources([tmp_path / "text"])]
    assert names == ["text/a.txt", "text/b/b.txt", "text/c/d.txt", "text/z/e.txt"]


# ---------------------------------------------------------------- tokens

def test_what_is_written_is_the_text(tmp_path, monkeypatch):
    content = sample_text(60)
    path = write(tmp_path / "a.txt", content)
    expected = [block.split("\n") for block in content.strip().split("\n\n")]
    for i, size in enumerate((40, 700, 1 << 20)):
        monkeypatch.setattr(prepare_module, "BATCH_CHARACTERS", size)
        prepare([path], TOKENIZER, tmp_path / f"out{i}", held_out=0, report=None)
        assert prepared_documents(tmp_path / f"out{i}") == expected
    description = json.loads((tmp_path / "out0" / "corpus.json").read_text())
    assert description["text_bytes"] == sum(len(line) + 1 for document in expected for line in document)
    assert description["sources"] == [{"name": "a.txt", "bytes": len(content)}]
    assert open_corpus(tmp_path / "out0", tokenizer=TOKENIZER).counts.sum() == len(content.split())


def test_text_that_the_tokenizer_does_not_know_is_named(tmp_path):
    known, unknown = "ba be bi bo bu " * 3 + "\n\n", "bi 字 字 Ж bo\n\n"
    for name, content, share in (("few", known * 30 + unknown, None),
                                 ("some", known * 10 + unknown * 3, "5.5%")):
        said = []
        prepare([write(tmp_path / f"{name}.txt", content)], TOKENIZER, tmp_path / name, held_out=0,
                report=said.append)
        warnings = [line for line in said if line.startswith("warning")]
        assert warnings == ([f"warning: {share} of the tokens are [UNK]: the "
                             "tokenizer does not fit the text"] if share else [])
    with pytest.raises(UserError, match="every token of the text is \\[UNK\\]"):
        path = write(tmp_path / "all.txt", "字 Ж\n字 字\n\n字\n")
        prepare([path], TOKENIZER, tmp_path / "all", report=None)
    assert not (tmp_path / "all").exists()
    prepare([write(tmp_path / "half.txt", ("字 ba " * 20 + "\n\n") * 5)], TOKENIZER, tmp_path / "half",
            held_out=0, report=None)
    assert len(open_corpus(tmp_path / "half")) == 5  # [CLS] and [SEP] count as known
    prepare([write(tmp_path / "most.txt", ("字 字 ba " * 20 + "\n\n") * 5)], TOKENIZER, tmp_path / "most",
            held_out=0, report=None)
    with pytest.raises(UserError, match="at least half of the tokens of every sequence are"):
        open_corpus(tmp_path / "most")


def test_documents_too_short_for_training_are_counted(tmp_path):
    said = []
    content = "\n\n".join(["ba " * 9, "ba " * 5 + "\n" + "be " * 4, "ba " * 10, "ba " * 5 + "\n" + "be " * 5])
    prepare([write(tmp_path / "a.txt", content)], TOKENIZER, tmp_path / "out", held_out=0, report=said.append)
    assert ("training (except --method embedding) leaves out 2 of these documents, which are shorter than "
            "12 tokens") in " ".join(said)
    assert len(open_corpus(tmp_path / "out")) == 2


def test_lines_without_tokens_do_not_count(tmp_path):
    path = write(tmp_path / "a.txt", "ba\n\x01\x02\nbe\n\n\ufffd\n\nbi\n")
    prepare([path], TOKENIZER, tmp_path / "out", held_out=0, report=None)
    assert prepared_documents(tmp_path / "out") == [["ba", "be"], ["bi"]]


def test_long_lines_are_tokenised_in_parts_with_the_same_result(monkeypatch):
    line = " ".join(np.random.default_rng(0).choice(WORDS + ["ba,be", "(bi)", "\u0301", "xyz"], 3000))
    monkeypatch.setattr(split_line, "__defaults__", (100,))
    for whole in (line, line.replace(" ", ",")):
        assert encode_documents(TOKENIZER, [[whole, "be"]]) == [TOKENIZER.pieces([whole, "be"])]
        assert max(map(len, split_line(whole))) <= 100 and "".join(split_line(whole)) == whole
    assert list(map(len, split_line("a" * 250 + " b"))) == [100, 100, 52]


def files_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# ---------------------------------------------------------------- held out

def test_held_out_documents_are_chosen_by_their_text(tmp_path):
    blocks = sample_text(400).strip().split("\n\n")
    write(tmp_path / "a.txt", "\n\n".join(blocks))
    write(tmp_path / "b.txt", "\n\n".join(blocks[::-1] + blocks[:50]))
    sides = []
    for name in "ab":
        prepare([tmp_path / f"{name}.txt"], TOKENIZER, tmp_path / name, held_out=0.25, report=None)
        sides.append([{"\n".join(document) for document in prepared_documents(tmp_path / name, part)}
                      for part in ("train", "held-out")])
    assert sides[0] == sides[1] and not sides[0][0] & sides[0][1]
    assert sides[0][1] == {block for block in blocks if hash_share(block) < 0.25}
    assert 0.15 < len(sides[0][1]) / 400 < 0.35
    assert set(training_lines([tmp_path / "b.txt"], held_out=0.25)) == \
        {line for document in sides[0][0] for line in document.split("\n")}


def test_a_very_long_document_is_read_as_several(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "DOCUMENT_CHARACTERS", 5)
    assert read(write(tmp_path / "a.txt", "ba be\nbi\nbo bu\nca\n\nce")) == [
        ["ba be", "bi"], ["bo bu", "ca"], ["ce"]]


def test_impossible_shares_are_refused(tmp_path):
    path = write(tmp_path / "a.txt", "ba be bi\n")
    for share in (-0.1, 1.0):
        with pytest.raises(UserError, match="held-out share"):
            prepare([path], TOKENIZER, tmp_path / "out", held_out=share, report=None)
    with pytest.raises(UserError, match="belong to the held-out part"):
        prepare([path], TOKENIZER, tmp_path / "out", held_out=0.9999999, report=None)


# ---------------------------------------------------------------- the folder

def test_an_existing_folder_is_refused_and_left_alone(tmp_path):
    path = write(tmp_path / "a.txt", "ba be bi\n")
    (tmp_path / "out").mkdir()
    prepare([path], TOKENIZER, tmp_path / "out", held_out=0, report=None)  # an empty one will do
    before = files_of(tmp_path / "out")
    with pytest.raises(UserError, match="out exists already"):
        prepare([path], TOKENIZER, tmp_path / "out", held_out=0, report=None)
    assert files_of(tmp_path / "out") == before
    with pytest.raises(UserError, match="cannot be written"):
        prepare([path], TOKENIZER, path / "out", report=None)


@pytest.mark.skipif(os.name != "posix", reason="links, mount points")
def test_links_are_resolved_and_mount_points_refused_at_once(tmp_path, monkeypatch):
    path = write(tmp_path / "a.txt", "ba be bi\n")
    for name, target in (("new", "x"), ("empty", "y")):
        (tmp_path / name).symlink_to(target)
    (tmp_path / "y").mkdir()
    for name, target in (("new", "x"), ("empty", "y")):
        prepare([path], TOKENIZER, tmp_path / name, held_out=0, report=None)
        assert (tmp_path / name).is_symlink() and (tmp_path / target / "corpus.json").exists()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    prepare([path], TOKENIZER, ".", held_out=0, report=None)
    assert (tmp_path / "here" / "corpus.json").exists()

    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    monkeypatch.setattr("minibert.common.disk.os.path.ismount", lambda path: path == tmp_path / "disk")
    for name, message in (("disk", "disk is a mount point.*name a folder inside it"),
                          ("link", "link is a mount point"), ("loop", "loop exists already")):
        with pytest.raises(UserError, match=message), new_folder(tmp_path / name):
            pytest.fail("the work was begun")
    assert not list(tmp_path.glob(".*"))


def run(*arguments, **options):
    return subprocess.run([sys.executable, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True,
                          **options)


def test_the_script_trains_a_vocabulary_and_prepares(tmp_path):
    content = sample_text(200)
    write(tmp_path / "a.txt", content)
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parent.parent)}
    done = run("a.txt", "--vocab-size", 90, "--out", "out", cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert "documents" in done.stdout and "[UNK]" in done.stdout and "MB/s" in done.stdout
    corpus = open_corpus(tmp_path / "out", min_length=3)
    tokenizer = minibert.load_tokenizer(tmp_path / "out" / "tokenizer")
    assert 30 < tokenizer.vocab_size == len(corpus.counts) < 90 and corpus.counts[tokenizer.unk_id] == 0
    assert f"the new vocabulary has only {tokenizer.vocab_size} pieces" in done.stdout
    again = run("gone.txt", "--vocab-size", 90, "--out", "out", cwd=tmp_path, env=environment)
    assert again.returncode == 2 and again.stderr.startswith("error: out exists already")
    assert "Traceback" not in again.stderr


@pytest.mark.skipif(os.name != "posix", reason="pipes")
def test_a_pipe_is_read_like_a_file_but_only_once(tmp_path):
    content = sample_text(20)
    prepare([write(tmp_path / "file.txt", content)], TOKENIZER, tmp_path / "a", report=None)
    os.mkfifo(tmp_path / "pipe.txt")
    writer = threading.Thread(target=(tmp_path / "pipe.txt").write_text, args=(content,))
    writer.start()
    prepare([tmp_path / "pipe.txt"], TOKENIZER, tmp_path / "b", report=None)
    writer.join()
    tokens = [(tmp_path / out / "train.tokens").read_bytes() for out in "ab"]
    assert tokens[0] == tokens[1] != b""
    with pytest.raises(UserError, match="pipe.txt is a pipe"):
        list(training_lines([tmp_path / "pipe.txt"]))


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_leaves_nothing(tmp_path, which):
    """The text comes from a pipe that never ends, so the run is stopped in the middle of the text."""
    os.mkfifo(tmp_path / "a.txt")
    TOKENIZER.save(tmp_path / "tokenizer")
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), "a.txt", "--tokenizer", "tokenizer", "--out", "out"], cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(SCRIPT.parent.parent)}, stderr=subprocess.PIPE, text=True,
        # whoever runs the tests in the background may ignore Ctrl-C, which children inherit
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    with open(tmp_path / "a.txt", "wb") as pipe:
        pipe.write(sample_text(10).encode())
        pipe.flush()
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob(".out.*/tokenizer/tokenizer_config.json")):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
        process.send_signal(which)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=2)
    # a signal that came just before the read began has waited for the read's end, which is now
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == (130 if which == signal.SIGINT else 143)
    assert "Traceback" not in stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "tokenizer"]


def test_an_interruption_right_after_the_folder_is_made_leaves_nothing(tmp_path, monkeypatch):
    def made_and_stopped(path, **options):
        os.makedirs(path, exist_ok=True)
        if path.name.startswith(".out"):
            raise KeyboardInterrupt
    monkeypatch.setattr("minibert.data.corpus_writer.Path.mkdir", made_and_stopped)
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "out"):
        pass
    monkeypatch.undo()
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path):
    with pytest.raises(UserError, match="disk is full.*out"), new_folder(tmp_path / "out"):
        with open("/dev/full", "w") as file:
            file.write("x" * 10**6)
    assert not list(tmp_path.iterdir())


def test_a_link_to_nowhere_is_one_sentence(tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").symlink_to("a.txt")
    with pytest.raises(UserError, match="a.txt cannot be read"):
        prepare([tmp_path / "text"], TOKENIZER, tmp_path / "out", report=None)
