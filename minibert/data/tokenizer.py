"""BERT's WordPiece tokenizer: reads, trains and writes the files that `transformers` reads and writes.

The splitting itself is done by the `tokenizers` library. Whatever file a vocabulary came from, the tokenizer
is built anew from (vocabulary, normaliser options, added tokens): a vocab.txt and the equivalent
tokenizer.json are the same tokenizer, with the same `sha256`, and truncation or padding stored in a
tokenizer.json have no effect.
"""

import copy
import hashlib
import json
import os
import re
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

from minibert.common.disk import disk_errors, read_json, read_text
from minibert.common.errors import UserError
from minibert.common.hub_download import local_folder

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
# the options of BERT's normaliser; strip_accents None means: as lowercase
DEFAULTS = dict(lowercase=True, strip_accents=None, handle_chinese_chars=True, clean_text=True)
# what the same options are called in tokenizer_config.json
CONFIG_NAMES = dict(lowercase="do_lower_case", strip_accents="strip_accents",
                    handle_chinese_chars="tokenize_chinese_chars")
ENCODED_AT_ONCE = 1024  # texts; what the backend returns takes far more memory than what is kept of it
MAX_ALPHABET = 1000  # characters in a vocabulary of our own; rarer ones become [UNK]


class Tokenizer:
    """WordPiece over BERT's normaliser.

    `cls_id`, `sep_id`, `mask_id`, `pad_id`, `unk_id`: int. `vocab_size` V: largest id + 1. `lowercase`: bool.
    `special` and `continuation`: bool (V,), True for the five special tokens and for pieces that start with
    '##'. `sha256`: hex digest of everything that decides the ids (pieces in id order, normaliser options,
    added tokens).
    """

    def __init__(self, vocabulary: dict[str, int], options: dict | None = None,
                 added: Iterable[AddedToken] = (), max_word: int = 100):
        self.options = DEFAULTS | (options or {})
        self.lowercase = bool(self.options["lowercase"])
        added = {token.content: token for token in added}
        for name in SPECIAL_TOKENS:
            added.setdefault(name, AddedToken(name, special=True, normalized=False))
        missing = [name for name in SPECIAL_TOKENS if name not in vocabulary]
        if missing:
            raise UserError(f"the vocabulary lacks {' '.join(missing)}; a BERT vocabulary holds all of "
                            f"{' '.join(SPECIAL_TOKENS)}")
        self.backend = tokenizers.Tokenizer(models.WordPiece(
            vocabulary, unk_token="[UNK]", max_input_chars_per_word=max_word, continuing_subword_prefix="##"))
        self.backend.normalizer = normalizers.BertNormalizer(**self.options)
        self.backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        self.backend.decoder = decoders.WordPiece(prefix="##")
        self.backend.post_processor = processors.TemplateProcessing(
            single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
            special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])])
        self.backend.add_tokens(list(added.values()))

        ids = self.backend.get_vocab(with_added_tokens=True)
        special_ids = [ids[name] for name in SPECIAL_TOKENS]
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = special_ids
        self.vocab_size = max(ids.values()) + 1
        if self.vocab_size > 2 * len(ids) + (1 << 16):  # a list of 4 billion names is no vocabulary
            raise UserError(f"the vocabulary has {len(ids)} pieces with ids up to {self.vocab_size - 1}, "
                            "nearly all of which are unused: it is damaged")
        # ids that no piece has get a name that no text can produce, so that vocab.txt keeps its line numbers
        self.vocabulary = [f"[unused id {i}]" for i in range(self.vocab_size)]
        for piece, i in ids.items():
            self.vocabulary[i] = piece
        self.special = np.zeros(self.vocab_size, dtype=np.bool_)
        self.special[special_ids] = True
        self.continuation = np.array([piece.startswith("##") for piece in self.vocabulary], dtype=np.bool_)
        strip_accents = self.options["strip_accents"]
        strip_accents = self.lowercase if strip_accents is None else strip_accents
        flags = sorted([t.content, t.single_word, t.lstrip, t.rstrip, t.normalized] for t in added.values())
        identity = [self.vocabulary, self.lowercase, strip_accents, self.options["handle_chinese_chars"],
                    self.options["clean_text"], max_word, flags]
        self.sha256 = hashlib.sha256(json.dumps(identity).encode()).hexdigest()

    def encode(self, texts: list[str], pairs: list[str] | None = None,
               max_length: int = 512) -> tuple[list[list[int]], list[list[int]]]:
        """[CLS] text [SEP], or [CLS] text [SEP] pair [SEP], the longer text cut until `max_length` fits.

        Returns ids and segments (0 for the first text and its specials, 1 for the second): lists of S lists.
        """
        specials = 2 if pairs is None else 3
        if max_length < specials:
            raise UserError(f"max_length {max_length} leaves no room for {specials} special tokens")
        first = self.pieces(texts)
        if pairs is None:
            ids = [[self.cls_id, *a[:max_length - 2], self.sep_id] for a in first]
            return ids, [[0] * len(sequence) for sequence in ids]
        if len(texts) != len(pairs):
            raise UserError(f"{len(texts)} texts but {len(pairs)} second texts")
        ids, segments = [], []
        for a, b in zip(first, self.pieces(pairs)):
            n_a, n_b = longest_first(len(a), len(b), max_length - 3)
            ids.append([self.cls_id, *a[:n_a], self.sep_id, *b[:n_b], self.sep_id])
            segments.append([0] * (n_a + 2) + [1] * (n_b + 1))
        return ids, segments

    def pieces(self, lines: list[str]) -> list[list[int]]:
        """Ids of each line, without special tokens around it and without truncation."""
        return [encoding.ids for encoding in self.encodings(lines)]

    def encodings(self, lines: list[str], offsets: bool = False) -> Iterator[tokenizers.Encoding]:
        """What the backend makes of each line, without special tokens and truncation; `offsets` if asked."""
        if isinstance(lines, str):  # it would be read as a list of its characters
            raise UserError("texts are a list, also where there is one: [text]")
        lines = list(lines)
        encode = self.backend.encode_batch if offsets else self.backend.encode_batch_fast
        for i in range(0, len(lines), ENCODED_AT_ONCE):
            yield from encode(lines[i:i + ENCODED_AT_ONCE], add_special_tokens=False)

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of the ids: pieces joined, '##' resolved, spaces before punctuation removed."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=skip_special)

    def id_to_piece(self, i: int) -> str:
        """The piece of an id; `IndexError` beyond the vocabulary."""
        return self.vocabulary[i]

    def piece_to_id(self, piece: str) -> int:
        """The id of a piece as it stands in the vocabulary; `unk_id` where it does not."""
        i = self.backend.token_to_id(piece)
        return self.unk_id if i is None else i

    def lowercased(self) -> "Tokenizer":
        """The same tokenizer with all text lower-cased first, and accents kept where this one keeps them."""
        made = copy.copy(self)
        made.backend = tokenizers.Tokenizer.from_str(self.backend.to_str())
        made.backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), self.backend.normalizer])
        return made

    def save(self, folder: str | Path, max_length: int = 512, segments: bool = True) -> None:
        """Writes tokenizer.json, vocab.txt and tokenizer_config.json as `transformers` reads them.

        `max_length` is the longest sequence of the model they belong to, which `transformers` wants to know, and
        `segments` says whether it takes token types: a DistilBERT fails there where it gets them.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        text = self.backend.to_str(pretty=True)  # written by Python, whose errors say what the disk did
        (folder / "tokenizer.json").write_text(text, encoding="utf-8", newline="\n")
        lines = "".join(f"{piece}\n" for piece in self.vocabulary)
        (folder / "vocab.txt").write_text(lines, encoding="utf-8", newline="\n")
        config = {name: self.options[option] for option, name in CONFIG_NAMES.items()}
        config |= {f"{name[1:-1].lower()}_token": name for name in SPECIAL_TOKENS}
        config |= {"model_max_length": max_length,
                   "tokenizer_class": "BertTokenizer" if segments else "DistilBertTokenizer"}
        if not segments:
            config["model_input_names"] = ["input_ids", "attention_mask"]
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def longest_first(n_a: int, n_b: int, room: int) -> tuple[int, int]:
    """Tokens kept of two texts of `n_a` and `n_b` in `room`: the longer is cut first, then both evenly."""
    if n_a + n_b <= room:
        return n_a, n_b
    short = min(n_a, n_b, room // 2)
    return (short, room - short) if n_a <= n_b else (room - short, short)


def load_tokenizer(folder_or_hub_name: str | Path) -> Tokenizer:
    """Reads tokenizer.json, else vocab.txt with the tokens added to it, of a folder or a model on the hub;
    options in tokenizer_config.json go before theirs.

    Where nothing states the casing, a vocab.txt with an upper-case letter in it is cased. Nothing is written.
    `UserError` names the file and line of whatever is missing or damaged.
    """
    folder = local_folder(folder_or_hub_name, weights=False)
    config_file = folder / "tokenizer_config.json"
    config = read_json(config_file) if config_file.exists() else {}
    stated = {option: config[name] for option, name in CONFIG_NAMES.items() if name in config}
    sources = [folder / name for name in ("tokenizer.json", "vocab.txt") if (folder / name).exists()]
    if not sources:
        raise UserError(f"{folder} holds no tokenizer: there is neither tokenizer.json nor vocab.txt")
    source = sources[0]
    try:
        if source.name == "vocab.txt":
            vocabulary = read_vocabulary(source)
            return with_added(vocabulary, {"lowercase": not is_cased(vocabulary)} | stated,
                              added_beside(folder, config))
        return from_description(read_json(source), stated)
    except UserError as error:
        raise UserError(str(error) if str(source) in str(error) else f"{source}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(f"{source}, its tokenizer_config.json or added_tokens.json is damaged "
                        f"({error!r})") from None


def from_description(description: dict, stated: dict) -> Tokenizer:
    """The tokenizer of a parsed tokenizer.json; options in `stated` go before the ones of its normaliser."""
    parts = {name: description.get(name) or {} for name in ("model", "normalizer", "pre_tokenizer")}
    model, normalizer = parts["model"], parts["normalizer"]
    kinds = [parts[name].get("type") for name in parts]
    if kinds != ["WordPiece", "BertNormalizer", "BertPreTokenizer"]:
        raise UserError(f"not a BERT WordPiece tokenizer: model, normaliser and pre-tokeniser are {kinds}")
    if model.get("unk_token") != "[UNK]" or model.get("continuing_subword_prefix") != "##":
        raise UserError("a BERT WordPiece tokenizer has unk_token '[UNK]' and continuing_subword_prefix '##'")
    if len(set(model["vocab"].values())) != len(model["vocab"]):
        raise UserError("two pieces of the vocabulary have the same id")
    options = {option: normalizer[option] for option in DEFAULTS if option in normalizer} | stated
    return with_added(model["vocab"], options, description.get("added_tokens") or [],
                      model.get("max_input_chars_per_word", 100))


def added_beside(folder: Path, config: dict) -> list[dict]:
    """Tokens that stand beside a vocab.txt, as tokenizer.json has them under "added_tokens".

    They are in tokenizer_config.json or, as slow tokenizers wrote them before, in added_tokens.json.
    """
    if "added_tokens_decoder" in config:
        return [entry | {"id": int(i)} for i, entry in config["added_tokens_decoder"].items()]
    file = folder / "added_tokens.json"
    return [{"id": i, "content": content, "special": content in SPECIAL_TOKENS}
            for content, i in (read_json(file) if file.exists() else {}).items()]


def with_added(vocabulary: dict[str, int], options: dict, entries: list[dict],
               max_word: int = 100) -> Tokenizer:
    """The tokenizer of a vocabulary with the added tokens of `entries`; `UserError` where one gets another id
    than its own.
    """
    entries = sorted(entries, key=lambda entry: entry["id"])
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    tokenizer = Tokenizer(
        vocabulary, options,
        [AddedToken(entry["content"], **{f: entry[f] for f in flags if f in entry}) for entry in entries],
        max_word)
    for entry in entries:
        if (i := tokenizer.piece_to_id(entry["content"])) != entry["id"]:
            raise UserError(f"the added token {entry['content']!r} cannot have id {entry['id']}: it gets {i}")
    return tokenizer


def is_cased(vocabulary: Iterable[str]) -> bool:
    """True if a piece other than [UNK] and its like has an upper-case letter: no lower-cased text has."""
    return any("A" <= c <= "Z" for piece in vocabulary
               if not (piece.startswith("[") and piece.endswith("]")) for c in piece)


def read_vocabulary(path: Path) -> dict[str, int]:
    """Pieces of a vocab.txt to ids: the id is the line number from 0."""
    vocabulary = {}
    for i, piece in enumerate(read_text(path).removesuffix("\n").split("\n")):
        if vocabulary.setdefault(piece, i) != i:
            raise UserError(f"{path}: lines {vocabulary[piece] + 1} and {i + 1} are both {piece!r}")
    return vocabulary


def train_tokenizer(lines: Iterable[str], vocab_size: int, lowercase: bool = True) -> Tokenizer:
    """A WordPiece vocabulary of at most `vocab_size` pieces, learned from texts.

    Ids 0 to 4 are [PAD] [UNK] [CLS] [SEP] [MASK]. The same lines give the same vocabulary: as the trainer of
    `tokenizers` numbers inner characters ('##a') in the order of a randomised hash table, they are numbered
    here first. The texts are kept in a temporary file meanwhile. `UserError` if `vocab_size` has no room for
    the alphabet.
    """
    normalizer = normalizers.BertNormalizer(**DEFAULTS | {"lowercase": lowercase})
    counts = Counter()
    specials = re.compile("|".join(map(re.escape, SPECIAL_TOKENS)))
    place = Path(tempfile.gettempdir())
    with disk_errors(place), tempfile.TemporaryDirectory() as folder:
        texts = os.path.join(folder, "texts.txt")
        with open(texts, "w", encoding="utf-8", newline="\n") as file:
            for line in lines:
                text = normalizer.normalize_str(specials.sub(" ", line))
                counts.update(text)
                file.write(text + "\n")
        by_frequency = sorted((c for c in counts if not c.isspace()), key=lambda c: (-counts[c], c))
        alphabet = sorted(by_frequency[:MAX_ALPHABET])
        first = SPECIAL_TOKENS + [f"##{c}" for c in alphabet if continues_words(c)]
        if not alphabet:
            raise UserError("there is no text to train a vocabulary on")
        if vocab_size < len(first) + len(alphabet):
            raise UserError(f"a vocabulary of {vocab_size} pieces has no room for the {len(alphabet)} "
                            f"characters of these texts: ask for {len(first) + len(alphabet)} or more")
        trainer = trainers.WordPieceTrainer(
            vocab_size=vocab_size, special_tokens=first, initial_alphabet=alphabet,
            limit_alphabet=len(alphabet), continuing_subword_prefix="##", show_progress=False)
        learner = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
        learner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        learner.train([texts], trainer)
    return Tokenizer(learner.get_vocab(with_added_tokens=False), {"lowercase": lowercase})


def continues_words(character: str) -> bool:
    """False for what BERT's pre-tokeniser makes a word of its own: punctuation and Chinese characters."""
    if character.isascii():
        return character.isalnum()
    is_punctuation = unicodedata.category(character).startswith("P")
    return not is_punctuation and "CJK" not in unicodedata.name(character, "")
