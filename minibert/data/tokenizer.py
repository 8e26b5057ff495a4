"""Loads, trains and saves BERT's WordPiece tokenizer, in the file formats of `transformers`. If a
tokenizer.json has settings for truncation or padding, they are ignored.
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

from minibert.common.disk import disk_errors
from minibert.common.errors import UserError
from minibert.common.hub_download import local_folder
from minibert.data.tokenizer_files import CONFIG_NAMES, DEFAULTS, SPECIAL_TOKENS, read_tokenizer_files

# The largest number of texts in one call of `tokenizers`. It limits the memory that the results need.
ENCODED_AT_ONCE = 1024
NO_LIMIT = 10**29  # a model_max_length of this value or more means "no limit"; transformers writes int(1e30)
MAX_ALPHABET = 1000  # the largest number of different characters in a trained vocabulary


class Tokenizer:
    """A WordPiece tokenizer with BERT's normaliser.

    `options` are settings of the normaliser (default: `DEFAULTS`). `added` are tokens, such as [MASK], that
    are found in a text before the text is divided into words. A word with more than `max_word` characters
    becomes [UNK]. `names` are the texts of the special tokens, such as [PAD], in the order of
    `SPECIAL_TOKENS`. `states` are the settings of a loaded tokenizer_config.json that `save` writes again.

    `vocab_size` is the largest id plus 1. `special` and `continuation` are bool arrays with one value for
    each id: `special` is True for special tokens, and `continuation` for tokens that start with '##'.
    `sha256` is a hash of everything that can change the ids of a text.
    """

    def __init__(self, vocabulary: dict[str, int], options: dict | None = None,
                 added: Iterable[AddedToken] = (), max_word: int = 100, names: list[str] = SPECIAL_TOKENS,
                 states: dict | None = None):
        self.options = DEFAULTS | (options or {})
        self.lowercase = bool(self.options["lowercase"])
        self.max_word, self.names, self.states = max_word, list(names), states or {}
        added = {token.content: token for token in added}
        missing = [name for name in names if name not in vocabulary and name not in added]
        if missing:
            raise UserError(f"the vocabulary lacks {' '.join(missing)}; a BERT vocabulary holds all of "
                            f"{' '.join(names)}")
        for name in names:
            added.setdefault(name, AddedToken(name, special=True, normalized=False))
        self.backend = tokenizers.Tokenizer(models.WordPiece(
            vocabulary, unk_token=names[1], max_input_chars_per_word=max_word,
            continuing_subword_prefix="##"))
        self.backend.normalizer = normalizers.BertNormalizer(**self.options)
        self.backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        self.backend.decoder = decoders.WordPiece(prefix="##")
        self.backend.add_tokens(list(added.values()))

        ids = {piece: i for piece, i in self.backend.get_vocab(with_added_tokens=True).items() if piece}
        cls, sep = names[2], names[3]
        self.backend.post_processor = processors.TemplateProcessing(
            single=f"{cls}:0 $A:0 {sep}:0", pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
            special_tokens=[(cls, ids[cls]), (sep, ids[sep])])
        special_ids = [ids[name] for name in names]
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = special_ids
        self.vocab_size = max(ids.values()) + 1
        # without this check, a very large id in a damaged file would fill the memory
        if self.vocab_size > 2 * len(ids) + (1 << 16):
            raise UserError(f"the vocabulary has {len(ids)} pieces with ids up to {self.vocab_size - 1}, "
                            "nearly all of which are unused: it is damaged")
        if len(set(ids.values())) < len(ids):
            raise UserError("an added token has the id of a piece, because ids of the vocabulary are missing")
        # An unused id gets a name, because the line number of a token in vocab.txt must be its id.
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
        identity += [self.names] if self.names != SPECIAL_TOKENS else []
        self.sha256 = hashlib.sha256(json.dumps(identity).encode()).hexdigest()

    def encode(self, texts: list[str], pairs: list[str] | None = None,
               max_length: int = 512) -> tuple[list[list[int]], list[list[int]]]:
        """Tokenises texts as [CLS] text [SEP], or as [CLS] text [SEP] pair [SEP]. Texts are cut so that each
        sequence has at most `max_length` tokens (see `longest_first`). Returns two lists of lists. The first
        list has the token ids of each sequence. The second list has the segments of these tokens: 0 in
        "[CLS] text [SEP]", and 1 in "pair [SEP]".
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
        """Returns a list with the token ids of each line, without [CLS] and [SEP]. Lines are not cut."""
        return [encoding.ids for encoding in self.encodings(lines)]

    def encodings(self, lines: list[str], offsets: bool = False) -> Iterator[tokenizers.Encoding]:
        """Yields an `Encoding` of the library `tokenizers` for each line, without [CLS] and [SEP]. The
        offsets of the encodings are computed only with `offsets=True`.
        """
        if isinstance(lines, str):
            raise UserError("texts must be a list, even if there is only one text: [text]")
        lines = list(lines)
        encode = self.backend.encode_batch if offsets else self.backend.encode_batch_fast
        for i in range(0, len(lines), ENCODED_AT_ONCE):
            yield from encode(lines[i:i + ENCODED_AT_ONCE], add_special_tokens=False)

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Returns the text of token ids. A piece with '##' is joined to the piece before it, and spaces
        before common punctuation marks are removed. With `skip_special`, special tokens are left out.
        """
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=skip_special)

    def id_to_piece(self, i: int) -> str:
        """Returns the piece with the id `i`. Raises `IndexError` if `i` is `vocab_size` or more."""
        return self.vocabulary[i]

    def piece_to_id(self, piece: str) -> int:
        """Returns the id of a piece, or `unk_id` if the piece is not in the vocabulary."""
        i = self.backend.token_to_id(piece)
        return self.unk_id if i is None else i

    def lowercased(self) -> "Tokenizer":
        """Returns a copy of this tokenizer that lower-cases each text first. The copy removes accents only if
        this tokenizer does.
        """
        made = copy.copy(self)
        made.backend = tokenizers.Tokenizer.from_str(self.backend.to_str())
        made.backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), self.backend.normalizer])
        return made

    def save(self, folder: str | Path, max_length: int = 512, segments: bool = True) -> None:
        """Writes tokenizer.json, vocab.txt and tokenizer_config.json, which `transformers` can read.

        `max_length` is the number of positions of the model. If the loaded tokenizer_config.json has a
        model_max_length that is smaller or means "no limit", this value is written again. Otherwise,
        `max_length` is written as model_max_length.

        `segments` is True if the model has token types. With `segments=False`, the saved tokenizer returns no
        token types in `transformers`, because a DistilBERT in `transformers` would raise an error for them.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        # `self.backend.save` is not used, because its error message does not say why writing failed
        text = self.backend.to_str(pretty=True)
        (folder / "tokenizer.json").write_text(text, encoding="utf-8", newline="\n")
        lines = "".join(f"{piece}\n" for piece in self.vocabulary)
        (folder / "vocab.txt").write_text(lines, encoding="utf-8", newline="\n")
        stated = self.states.get("model_max_length", max_length)
        config = self.states | {name: self.options[option] for option, name in CONFIG_NAMES.items()}
        config |= {f"{role[1:-1].lower()}_token": name for role, name in zip(SPECIAL_TOKENS, self.names)}
        config["model_max_length"] = stated if stated <= max_length or stated >= NO_LIMIT else max_length
        config["tokenizer_class"] = "BertTokenizer" if segments else "DistilBertTokenizer"
        # If max_word or clean_text does not have its default, the class is PreTrainedTokenizerFast, because
        # the class BertTokenizer of transformers ignores these settings of tokenizer.json.
        if self.max_word != 100 or not self.options["clean_text"]:
            config["tokenizer_class"] = "PreTrainedTokenizerFast"
        if not segments or config["tokenizer_class"] == "PreTrainedTokenizerFast":
            config["model_input_names"] = ["input_ids", *["token_type_ids"] * segments, "attention_mask"]
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def longest_first(n_a: int, n_b: int, room: int) -> tuple[int, int]:
    """Cuts two texts, of `n_a` and `n_b` tokens, to at most `room` tokens together. Returns the new lengths
    (length of the first text, length of the second text). At first, only the longer text is cut. If it gets
    as short as the other text, both texts are cut equally.
    """
    if n_a + n_b <= room:
        return n_a, n_b
    short = min(n_a, n_b, room // 2)
    return (short, room - short) if n_a <= n_b else (room - short, short)


def load_tokenizer(folder_or_hub_name: str | Path) -> Tokenizer:
    """Loads the tokenizer of a folder or of a model on the hub. docs/formats.md lists the file formats.

    A text gets the same ids as in `transformers` 5, with one exception. If no file says whether a vocab.txt
    is cased, `is_cased` guesses this and prints a warning, but `transformers` reads such a vocabulary as
    uncased. Raises `UserError` if a file is missing or damaged, or if the tokenizer is not a BERT tokenizer.
    """
    folder = source = local_folder(folder_or_hub_name, weights=False)
    try:
        files = read_tokenizer_files(folder)
        source = files.source
        tokenizer = Tokenizer(files.vocabulary, files.options, [token for token, _ in files.added],
                              files.max_word, files.names, files.states)
        for token, i in files.added:
            if i is not None and (own := tokenizer.piece_to_id(token.content)) != i:
                raise UserError(f"the added token {token.content!r} cannot have id {i}: it gets {own}")
        if files.generic:
            check_generic(tokenizer, files.generic)
        return tokenizer
    except UserError as error:
        raise UserError(str(error) if str(folder) in str(error) else f"{source}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(f"{source}: this file is damaged, or tokenizer_config.json, special_tokens_map.json "
                        f"or added_tokens.json is ({error!r})") from None


def check_generic(tokenizer: Tokenizer, description: dict) -> None:
    """Checks `description`, the content of a tokenizer.json, for a generic tokenizer class (`_is_generic`).
    In `transformers`, such a class reads the post-processor and the unk_token from tokenizer.json. Raises
    `UserError` if the post-processor does not add BERT's special tokens to a pair of texts, or if the
    unk_token is not that of `tokenizer`.
    """
    try:
        stored = tokenizers.Tokenizer.from_str(
            json.dumps(description | {"truncation": None, "padding": None}))
    except Exception as error:  # `tokenizers` raises `Exception`, not a subclass of it
        raise UserError(f"tokenizer.json is damaged ({error})") from None
    pair = stored.encode("", "")
    sep = tokenizer.sep_id
    if (pair.ids, pair.type_ids) != ([tokenizer.cls_id, sep, sep], [0, 0, 1]):
        raise UserError("its post-processor does not add BERT's special tokens: an empty pair becomes "
                        f"{pair.tokens} with the token types {pair.type_ids}; encode the texts with "
                        "transformers, and give the model the ids")
    if description["model"].get("unk_token") != tokenizer.names[1]:
        raise UserError(f"unk_token is {description['model'].get('unk_token')!r} in tokenizer.json, but "
                        f"{tokenizer.names[1]!r} in tokenizer_config.json")


def train_tokenizer(lines: Iterable[str], vocab_size: int, lowercase: bool = True) -> Tokenizer:
    """Trains a WordPiece vocabulary of at most `vocab_size` pieces on `lines`, and returns its `Tokenizer`.

    The trainer of `tokenizers` would give ids to characters inside words ('##a') in random order. This
    function chooses the ids of these characters, so that the same texts always give the same vocabulary.
    Raises `UserError` if there is no text, or if `vocab_size` is too small for the special tokens and the
    single characters. 'a' and '##a' count as two characters.
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
        trained = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
        trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trained.train([texts], trainer)
    return Tokenizer(trained.get_vocab(with_added_tokens=False), {"lowercase": lowercase})


def continues_words(character: str) -> bool:
    """Returns True if a piece '##' + `character` can exist. The result is False for punctuation marks and
    Chinese characters, because BERT's tokenizer makes each of these characters a separate word.
    """
    if character.isascii():
        return character.isalnum()
    is_punctuation = unicodedata.category(character).startswith("P")
    return not is_punctuation and "CJK" not in unicodedata.name(character, "")
