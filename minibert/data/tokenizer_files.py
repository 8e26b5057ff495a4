"""Reads the files of a tokenizer folder. docs/formats.md lists the file formats. If several files state the
same setting, the value is taken from the same file as in `transformers` 5.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken

from minibert.common.disk import check_is_the_file, read_json, read_text
from minibert.common.errors import UserError
from minibert.common.hub_download import what_it_holds

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
# the default options of BERT's normaliser; if strip_accents is None, it has the value of lowercase
DEFAULTS = dict(lowercase=True, strip_accents=None, handle_chinese_chars=True, clean_text=True)
# the names that three of these options have in tokenizer_config.json
CONFIG_NAMES = dict(lowercase="do_lower_case", strip_accents="strip_accents",
                    handle_chinese_chars="tokenize_chinese_chars")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")

# The three sets below have the names of tokenizer classes in transformers. A name with Fast at the end, such
# as BertTokenizerFast, is treated like the name without Fast.
# - BERT_CLASSES: only the vocabulary and the added tokens of a tokenizer.json are used.
# - FILE_CLASSES: the options of the normaliser are from tokenizer.json, too. Without this file, vocab.txt is
#   read.
# - GENERIC_CLASSES: as FILE_CLASSES, but without a tokenizer.json, the class is refused.
BERT_CLASSES = {f"{name}Tokenizer" for name in (
    "Bert", "DistilBert", "MobileBert", "Electra", "SqueezeBert", "LayoutLM", "Lxmert")}
FILE_CLASSES = {f"{name}Tokenizer" for name in (
    "ConvBert", "DPRContextEncoder", "DPRQuestionEncoder", "Realm", "RetriBert")}
GENERIC_CLASSES = {"PreTrainedTokenizer", "TokenizersBackend"}
# the model_types whose default tokenizer class is BertTokenizer; None: an old config.json has no model_type
MODEL_TYPES = (None, "bert", "distilbert", "mobilebert", "electra", "convbert", "squeezebert", "layoutlm",
               "lxmert", "retribert", "realm", "ernie", "megatron-bert", "nezha", "nomic_bert", "qdqbert",
               "visual_bert", "vilt")
FIVE = [f"{name[1:-1].lower()}_token" for name in SPECIAL_TOKENS]
# the roles of special tokens, in the order in which transformers adds missing special tokens to a vocabulary
NAMED = [f"{role}_token" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")]
# A vocabulary is treated as cased if more than this share of its tokens have capitals. Of the vocabularies
# from the hub that were checked, the uncased ones have capitals in at most 0.12 % of their tokens, and the
# cased ones in at least 1.18 %.
CASED_SHARE = 0.004
# The characters that the library `tokenizers` removes at the end of a line of vocab.txt. Python's rstrip()
# would also remove other characters.
WHITE_SPACE = ("\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
               "\u2028\u2029\u202f\u205f\u3000")
# `Tokenizer.save` does not copy these settings of a loaded tokenizer_config.json: they get new values, or
# have a meaning only in the old folder.
NOT_KEPT = {*NAMED, *CONFIG_NAMES.values(), "added_tokens_decoder", "tokenizer_class", "model_input_names",
            "auto_map", "init_inputs", "name_or_path", "backend", "is_local", "local_files_only",
            "tokenizer_file", "vocab_file", "special_tokens_map_file", "max_len", "extra_special_tokens"}


@dataclass(frozen=True)
class TokenizerFiles:
    """The content of a tokenizer folder. `source` is the file of the vocabulary. `added` has pairs (added
    token, id). If the id is None, the token has its id in `vocabulary`. If the token is not in `vocabulary`,
    it gets the next free id. `generic` is the content of tokenizer.json if the tokenizer class is generic
    (`_is_generic`), otherwise None. The other fields are arguments of `Tokenizer`.
    """
    source: Path
    vocabulary: dict[str, int]
    options: dict
    names: list[str]
    added: list[tuple[AddedToken, int | None]]
    max_word: int
    states: dict
    generic: dict | None


def read_tokenizer_files(folder: Path) -> TokenizerFiles:
    """Reads the tokenizer of a folder.

    The vocabulary is read from tokenizer.json if this file exists, and otherwise from vocab.txt. If the
    folder's tokenizer class is generic (`_is_generic`), the options of the normaliser are read from
    tokenizer.json. If the class is not generic, the options are read from tokenizer_config.json, even if
    tokenizer.json has other values. Raises `UserError` if a file is missing or damaged, or if the tokenizer
    is not a BERT tokenizer.
    """
    places = (folder / "tokenizer.json", folder / "vocab.txt")
    source = next((place for place in places if place.exists()), None)
    if source is None:
        raise UserError(f"{folder} holds no tokenizer: there is neither tokenizer.json nor vocab.txt"
                        f"{what_it_holds(folder)}")
    try:
        config, model = (_json(folder / name) for name in ("tokenizer_config.json", "config.json"))
        description = read_json(source) if source.name == "tokenizer.json" else None
        generic = _is_generic(config, model, description is not None)
        inside = (description or {}).get("added_tokens") or []
        names, added, extra = _special_and_added(folder, config, inside, generic)
        options = DEFAULTS | {option: config[name] for option, name in CONFIG_NAMES.items()
                              if config.get(name) is not None}
        max_word = 100
        if description is None:
            vocabulary = read_vocabulary(source)
            if config.get("do_lower_case") is None:
                options["lowercase"] = not is_cased(vocabulary, source)
        else:
            model, normalizer = _bert_parts(description, generic)
            vocabulary = model["vocab"]
            if generic:
                options = {option: normalizer[option] for option in DEFAULTS if option in normalizer}
                max_word = model.get("max_input_chars_per_word", 100)
            else:
                _say_differences(source, options, normalizer)
        # If no file has an id for one of the five special tokens, the token is left out, because the model
        # has no word vector for a new id. `Tokenizer` then reports that the token is missing.
        added = [(token, i) for token, i in added
                 if i is not None or token.content in vocabulary or token.content not in names]
        # In transformers, all blank lines of vocab.txt are one token "". If an added token is not in the
        # vocabulary, its id depends on the size of the vocabulary, so "" must stay. Otherwise "" is removed.
        if all(token.content in vocabulary for token, _ in added):
            vocabulary = {piece: i for piece, i in vocabulary.items() if piece}
        states = {key: value for key, value in config.items() if key not in NOT_KEPT} | extra
        if config.get("model_max_length", config.get("max_len")) is not None:
            states["model_max_length"] = config.get("model_max_length", config.get("max_len"))
        return TokenizerFiles(source, vocabulary, options, names, added, max_word, states,
                              description if generic else None)
    except UserError as error:
        raise UserError(str(error) if str(folder) in str(error) else f"{source}: {error}") from None


def _json(path: Path) -> dict:
    return read_json(path) if path.exists() else {}


def _is_generic(config: dict, model: dict, described: bool) -> bool:
    """Returns True if the tokenizer class of a folder is generic. A class is generic if it reads the options
    of the normaliser from tokenizer.json in transformers, and if the folder has a tokenizer.json (`described`
    is True). `config` and `model` are the contents of tokenizer_config.json and config.json. Raises
    `UserError` for an unknown class, and for unsupported settings.
    """
    kind = model.get("model_type")
    name = config.get("tokenizer_class") or model.get("tokenizer_class")
    if name is None:
        name = "BertTokenizer" if kind in MODEL_TYPES else f"that of a {kind}"
    if config.get("word_tokenizer_type") not in (None, "basic"):
        name = f"{name} with {config['word_tokenizer_type']}"
    short = str(name).removesuffix("Fast")
    if short not in BERT_CLASSES | FILE_CLASSES | GENERIC_CLASSES:
        raise UserError(f"its tokenizer is {name}, but minibert reads only BERT's WordPiece; encode the "
                        "texts with transformers, and give the model the ids")
    if short in GENERIC_CLASSES and not described:
        raise UserError(f"a {name} is read from tokenizer.json, which is missing; download this file too")
    if config.get("split_special_tokens"):
        raise UserError("tokenizer_config.json sets split_special_tokens, which minibert does not support; "
                        "remove this setting, and special tokens in a text are read as special tokens")
    return described and short not in BERT_CLASSES


def _bert_parts(description: dict, generic: bool) -> tuple[dict, dict | None]:
    """Returns the pair of the entries "model" and "normalizer" of a tokenizer.json. Raises `UserError` if the
    model is not BERT's WordPiece. If the normaliser or the pre-tokeniser is not BERT's, raises `UserError`
    for a generic class. For any other class, returns None in place of the normaliser, because such a class
    ignores the normaliser of tokenizer.json.
    """
    model, normalizer, splitter = (description.get(name) or {}
                                   for name in ("model", "normalizer", "pre_tokenizer"))
    kind = model.get("type")
    if kind is None and "continuing_subword_prefix" in model and "merges" not in model:
        kind = "WordPiece"  # files from 2019 do not name the type
    if normalizer.get("type") == "Sequence" and len(normalizer["normalizers"]) == 1:
        normalizer = normalizer["normalizers"][0]
    kinds = [kind, normalizer.get("type"), splitter.get("type")]
    known = kinds == ["WordPiece", "BertNormalizer", "BertPreTokenizer"]
    if kind != "WordPiece" or generic and not known:
        raise UserError(f"not a BERT WordPiece tokenizer: model, normaliser and pre-tokeniser are {kinds}; "
                        "encode the texts with transformers, and give the model the ids")
    if model.get("continuing_subword_prefix", "##") != "##":
        raise UserError(f"continuing_subword_prefix is {model['continuing_subword_prefix']!r}, but must be "
                        "'##'")
    if len(set(model["vocab"].values())) != len(model["vocab"]):
        raise UserError("two pieces of the vocabulary have the same id")
    return model, normalizer if known else None


def _say_differences(source: Path, options: dict, normalizer: dict | None) -> None:
    """Prints a warning if tokenizer.json has another normaliser than BERT's (`normalizer` is None), or if its
    normaliser has other options than `options`, which are used.
    """
    used, stated = ({name: d["lowercase"] if d[name] is None else d[name] for name in CONFIG_NAMES}
                    for d in (options, options | (normalizer or {})))
    differ = [f"{name} is {stated[name]}" for name in CONFIG_NAMES if stated[name] != used[name]]
    if normalizer is None:
        differ = ["its normaliser or pre-tokeniser is not BERT's"]
    if differ:
        taken = ", ".join(f"{CONFIG_NAMES[name]} {value}" for name, value in used.items())
        warnings.warn(f"{source}: {', '.join(differ)}, but as in transformers a BERT tokenizer's options are "
                      f"those of tokenizer_config.json or the defaults: {taken}. If these are wrong, set "
                      "them in tokenizer_config.json",
                      stacklevel=4)


def _special_and_added(folder: Path, config: dict, inside: list[dict], generic: bool
                       ) -> tuple[list[str], list[tuple[AddedToken, int | None]], dict]:
    """Returns a tuple (names, added tokens, field). The names are the texts of the five special tokens, for
    example [CLS]. The added tokens are pairs (token, id). The id is None if it is only in the vocabulary or
    in no file. The field is a dict with the entry "additional_special_tokens" or "extra_special_tokens" for a
    new tokenizer_config.json. If there are no additional special tokens, this dict is empty.

    If tokenizer_config.json has the field "added_tokens_decoder", the added tokens are read from this field.
    For a generic class, added tokens are also read from `inside`, the field "added_tokens" of tokenizer.json.
    If there is no "added_tokens_decoder", the added tokens are read from `inside`, special_tokens_map.json
    and added_tokens.json. All special tokens are added tokens, too.
    """
    stated, beside, old = config, {}, {}
    entries = {entry["id"]: entry for entry in inside}
    if "added_tokens_decoder" in config:
        decoder = {int(i): entry for i, entry in config["added_tokens_decoder"].items()}
        entries = entries | decoder if generic else decoder
    else:
        beside = _json(folder / "special_tokens_map.json")
        if "additional_special_tokens" in config or config.get("extra_special_tokens"):
            beside = {key: value for key, value in beside.items() if key != "additional_special_tokens"}
        stated = config | beside
        old = _json(folder / "added_tokens.json")
    extra = stated.get("extra_special_tokens") or stated.get("additional_special_tokens") or []
    named = {key: stated.get(key) for key in NAMED}
    named |= {key: value for key, value in stated.items()
              if key.endswith("_token") and isinstance(value, (str, dict)) and key not in NAMED}
    kept = {}
    if isinstance(extra, dict):
        named, kept = named | extra, {"extra_special_tokens": extra}
    elif extra:
        kept = {"additional_special_tokens": [_content(token) for token in extra]}
    # `apart` is used only for the tokens of added_tokens.json. As in transformers, a token in `apart` is
    # found in a text before the text is lower-cased, and any other token after the text is lower-cased. The
    # tokens in additional_special_tokens of special_tokens_map.json are not added to `apart`, because
    # transformers finds them after the text is lower-cased.
    apart = [stated[key] for key in NAMED if stated.get(key)]
    apart += [] if isinstance(extra, dict) or extra is beside.get("additional_special_tokens") else extra
    apart = {_content(token) for token in apart}
    if not generic:  # BertTokenizer has a default, such as [CLS], for each of the five special tokens
        named |= {role: named[role] or name for role, name in zip(FIVE, SPECIAL_TOKENS)}
    special = {_content(value): value
               for value in [*named.values(), *(() if isinstance(extra, dict) else extra)] if value}
    added = {i: {"content": content, "special": content in apart, "normalized": content not in apart}
             for content, i in old.items()} | entries
    tokens = _in_order(added, special)
    names = [_content(named[role] or name) for role, name in zip(FIVE, SPECIAL_TOKENS)]
    if absent := [name for name in names if name not in tokens]:
        raise UserError(f"the files of this PreTrainedTokenizerFast do not name {' '.join(absent)} among the "
                        "special and added tokens; name all five special tokens in tokenizer_config.json")
    return names, list(tokens.values()), kept


def _in_order(added: dict[int, dict], special: dict[str, str | dict]
              ) -> dict[str, tuple[AddedToken, int | None]]:
    """Returns a dict from the text of each added token to the pair (token, id), in the order in which
    transformers adds the tokens. The id is None if `added` does not have the token. Tokens without an id in
    `added` or in the vocabulary later get new ids, in the order of the dict.
    """
    tokens = {}
    for i, entry in sorted(added.items()):
        flags = {flag: entry[flag] for flag in FLAGS if flag in entry}
        tokens[entry["content"]] = AddedToken(entry["content"], **flags), i
    for content, value in special.items():
        flags = {flag: value[flag] for flag in FLAGS if flag in value} if isinstance(value, dict) else {}
        token, i = tokens.get(content) or (AddedToken(content, **flags), None)
        token.special = True  # `Tokenizer.decode` can leave out only the tokens with this flag
        tokens[content] = token, i
    return tokens


def _content(token: str | dict) -> str:
    return token if isinstance(token, str) else token["content"]


def is_cased(vocabulary: dict[str, int], source: Path) -> bool:
    """Guesses whether a vocabulary is cased, and returns True if it is. Prints a warning with the guess. The
    share of tokens with a capital letter decides. Tokens like [UNK] and <URL> are not counted.
    """
    words = [piece for piece in vocabulary if piece[:1] + piece[-1:] not in ("[]", "<>")]
    capitals = sum(any(c.isupper() for c in piece) for piece in words)
    cased = capitals > CASED_SHARE * len(words)
    warnings.warn(f"{source}: no file states whether it is cased; {capitals} of {len(words)} pieces have "
                  f"capitals, so text is {'not ' * cased}lower-cased. \"do_lower_case\": true or false in "
                  "tokenizer_config.json states it", stacklevel=4)
    return cased


def read_vocabulary(path: Path) -> dict[str, int]:
    """Returns a dict from the tokens of a vocab.txt to their ids. The id of a token is its line number,
    counted from 0. White space at the end of a line is ignored, as in `transformers`. All blank lines
    together are the token "". A token on several lines gets the id of the last of these lines. If this token
    is not "", a warning is printed.
    """
    vocabulary, doubled, text = {}, [], read_text(path)
    check_is_the_file(path, text[:100].encode())
    for i, line in enumerate(text.removesuffix("\n").split("\n")):
        piece = line.rstrip(WHITE_SPACE)
        if piece in vocabulary and piece:
            doubled.append(f"lines {vocabulary[piece] + 1} and {i + 1} are both {piece!r}")
        vocabulary[piece] = i
    if doubled:
        warnings.warn(f"{path}: {doubled[0]}{f', and {len(doubled) - 1} more' * (len(doubled) > 1)}; as in "
                      "transformers, the last line counts", stacklevel=5)
    return vocabulary
