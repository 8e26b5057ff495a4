"""The readers that fuzz.py tests: how each one's good files are made, read and changed."""

import contextlib
import gzip
import json
import lzma
import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from mutate import (mutate_bin, mutate_bytes, mutate_json, mutate_lines, mutate_safetensors, mutate_table,
                    mutate_text)
from safetensors.torch import load_file, save_file

import minibert
from minibert.data.corpus import open_corpus
from minibert.data.prepare import prepare
from minibert.data.tokenizer import load_tokenizer, train_tokenizer
from minibert.hub.load_save import load_config
from minibert.hub.weight_files import read_tensors
from minibert.model.config import Config
from minibert.model.init import init_weights
from minibert.model.heads import Classifier, MaskedLM
from minibert.tasks import csv_files, official_files, squad_windows, squad
from minibert.tasks.specs import TASKS
from minibert.tasks.splits import read_transfer

TEXTS = ["the model reads a book", "a small student learns from the teacher", "Words, and: numbers 12!",
         "é ü ß naïve 字 😀", "one",
         "the old model writes new words today and then reads them again and again"] * 4
TINY = dict(vocab_size=90, hidden_size=8, layers=1, heads=2, intermediate_size=8, max_positions=40)


class Reader(NamedTuple):
    """`make(folder)` writes good files, `read(folder, draw)` reads them; `mutators` by pattern of names."""

    make: Callable
    read: Callable
    mutators: dict[str, Callable]


# ---- good files --------------------------------------------------------------------------------------------

def make_model(folder: Path, kind=MaskedLM, **config) -> None:
    """A tiny model with its tokenizer."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(TEXTS, 90)
    model = init_weights(kind(Config(**TINY | {"vocab_size": tokenizer.vocab_size} | config)))
    minibert.save(model, folder, tokenizer)


def make_config(folder: Path) -> None:
    make_model(folder / "hf")
    make_model(folder / "classes", Classifier, labels=("no", "yes", "perhaps"))
    make_model(folder / "own", MaskedLM, architecture="distilbert", segments=0, norm_eps=1e-5)


def make_shards(folder: Path) -> None:
    make_model(folder)
    tensors, weight_map = load_file(folder / "model.safetensors"), {}
    (folder / "model.safetensors").unlink()
    for i, names in enumerate((list(tensors)[::2], list(tensors)[1::2]), 1):
        save_file({name: tensors[name] for name in names}, folder / f"model-0000{i}-of-00002.safetensors")
        weight_map |= dict.fromkeys(names, f"model-0000{i}-of-00002.safetensors")
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def make_bin(folder: Path) -> None:
    make_model(folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def make_texts(folder: Path) -> None:
    """Text of every kind that prepare.py reads."""
    make_model(folder / "tokenizer")
    text = "\n\n".join("\n".join(TEXTS[i:i + 3]) for i in range(0, 24, 3)) + "\n"
    lines = "".join(json.dumps({"text": line}) + "\n" for line in TEXTS)
    wiki = " = Title = \n \n a well @-@ known <unk> . \n = Other = \n \n " + "\n".join(TEXTS)
    for kind, name, content in (("a", "a.txt", text), ("b", "b.jsonl", lines), ("c", "c.tokens", wiki)):
        (folder / kind).mkdir()
        (folder / kind / name).write_text(content)
    (folder / "d").mkdir()
    (folder / "d" / "d.txt.gz").write_bytes(gzip.compress(text.encode()))
    (folder / "e").mkdir()
    (folder / "e" / "e.jsonl.xz").write_bytes(lzma.compress(lines.encode()))


def make_glue(folder: Path) -> None:
    for task in TASKS.values():
        for table in task.splits.values():
            if task.name in ("imdb", "squad"):
                continue
            rows = [table.header] if table.has_header else []
            for i in range(6):
                word = task.words[i % len(task.words)] if task.words else str(i / 2)
                cells = {table.text: TEXTS[i], table.pair: TEXTS[i + 1], table.label: word}
                rows.append("\t".join(cells.get(name, str(i)) for name in table.header.split("\t")))
            path = folder / task.folder / table.file.split("|")[0]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(rows) + "\n")


def make_imdb(folder: Path) -> None:
    for part in ("train", "test"):
        for word in ("neg", "pos"):
            (folder / part / word).mkdir(parents=True)
            for i in range(3):
                (folder / part / word / f"{i}_{i}.txt").write_text(f"{TEXTS[i]}<br />{TEXTS[i + 1]}")


def make_squad(folder: Path) -> None:
    context = "The cat sat on the mat. " * 3 + "Zoë wrote 字 in 1999."
    qas = [{"id": f"q{i}", "question": "Who sat?", "answers": [{"text": "cat", "answer_start": 4 + 24 * i}]}
           for i in range(3)]
    content = {"version": "1.1", "data": [{"title": "t", "paragraphs": [{"context": context, "qas": qas}]}]}
    make_model(folder / "tokenizer")
    (folder / "train-v1.1.json").write_text(json.dumps(content))


def make_csv(folder: Path) -> None:
    words = [f"{text} {i}" for i, text in enumerate(TEXTS * 2)]
    rows = "".join(f'"{text}",{("no", "yes")[i % 2]}\n' for i, text in enumerate(words))
    (folder / "labels.csv").write_text("text,label\n" + rows)
    rows = "".join(f"{i}\t{text}\t{text}\t{i / 7}\n" for i, text in enumerate(words))
    (folder / "scores.tsv").write_text("id\ttext\tpair\tscore\n" + rows)
    (folder / "transfer.txt").write_text("\n".join(TEXTS) + "\n")


# ---- readers -----------------------------------------------------------------------------------------------

def read_model(folder: Path, draw: random.Random) -> None:
    minibert.load(folder, draw.choice((None, None, None, "encoder", "mlm", "classification", "span")))


def read_config(folder: Path, draw: random.Random) -> None:
    load_config(folder / draw.choice(("hf", "classes", "own")))
    for name in ("hf", "classes", "own"):
        read_model(folder / name, draw)


def read_tokenizer(folder: Path, draw: random.Random) -> None:
    tokenizer = load_tokenizer(folder)
    ids, _ = tokenizer.encode([*TEXTS[:6], "[MASK] x\ud7ff\U0010ffff [PAD]"], max_length=16)
    for sequence in ids:
        tokenizer.decode(sequence)


def read_vocabulary(folder: Path, draw: random.Random) -> None:
    (folder / "tokenizer.json").unlink(missing_ok=True)
    read_tokenizer(folder, draw)


def read_bin(folder: Path, draw: random.Random) -> None:
    with contextlib.chdir(folder):
        minibert.load(folder, legacy_bin=True)
        read_tensors(folder, legacy_bin=True)


def read_glue(folder: Path, draw: random.Random) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, task in TASKS.items():
            if name not in ("imdb", "squad"):
                for split in task.splits:
                    official_files.read_examples(task, folder, split)


def read_imdb(folder: Path, draw: random.Random) -> None:
    for part in ("train", "dev"):
        official_files.read_examples(TASKS["imdb"], folder, part)


def read_squad(folder: Path, draw: random.Random) -> None:
    questions = squad.read_squad(folder / "train-v1.1.json")
    squad_windows.windows(questions, read_squad.tokenizer(folder / "tokenizer"), 128, 32)


read_squad.tokenizer = load_tokenizer


def read_csv(folder: Path, draw: random.Random) -> None:
    task, _, _ = csv_files.read_csv_splits(folder / "labels.csv")
    csv_files.read_csv_splits(folder / "scores.tsv")
    read_transfer(task, (folder / "transfer.txt",), read_csv.tokenizer, False)


read_csv.tokenizer = train_tokenizer(TEXTS, 90)


def read_texts(folder: Path, draw: random.Random) -> None:
    try:
        prepare([folder / kind for kind in "abcde"], read_csv.tokenizer, folder / "out", held_out=0.1,
                report=None, wikitext=draw.choice(("auto", "yes", "no")))
        open_corpus(folder / "out", min_length=3)
    finally:
        shutil.rmtree(folder / "out", ignore_errors=True)


READERS = {
    "config": Reader(make_config, read_config, {"config.json": mutate_json}),
    "safetensors": Reader(make_model, read_model, {"model.safetensors": mutate_safetensors}),
    "shards": Reader(make_shards, read_model,
                     {"*.index.json": mutate_json, "*.safetensors": mutate_safetensors}),
    "bin": Reader(make_bin, read_bin, {"*.bin": mutate_bin}),
    "vocab": Reader(make_model, read_vocabulary,
                    {"vocab.txt": mutate_text, "tokenizer_config.json": mutate_json}),
    "tokenizer": Reader(make_model, read_tokenizer, {"tokenizer*.json": mutate_json}),
    "glue": Reader(make_glue, read_glue, {"*.tsv": mutate_table}),
    "imdb": Reader(make_imdb, read_imdb, {"*.txt": mutate_bytes}),
    "squad": Reader(make_squad, read_squad, {"*-v1.1.json": mutate_json}),
    "csv": Reader(make_csv, read_csv, {"*": mutate_table}),
    "texts": Reader(make_texts, read_texts, {"?.*": mutate_lines}),
}
