"""Tests that all published forms of tokenizer folders give the ids of transformers or an error of one
sentence (docs/formats.md).

Every form is a small folder of a made-up vocabulary. The expected ids are those of transformers 5. If
transformers is installed, the ids are compared again.

    python -m pytest tests/data/test_tokenizer_files.py
"""

import json
import warnings

import pytest
import tokenizers

from minibert.common.errors import UserError
from minibert.data.tokenizer import Tokenizer, load_tokenizer
from minibert.data.tokenizer_files import SPECIAL_TOKENS, is_cased

PIECES = ("[PAD] [unused0] [UNK] [CLS] [SEP] [MASK] hello world , . un ##aff ##able the cafe ##s 你 好 "
          "[ ] < > user "
          "name ##hello Hello WORLD café É <s> </s> <pad> <unk> <mask>").split()
N = len(PIECES)
TEXT = "Hello CAFÉ the[MASK]the [mask] [NAME]s <user> <USER>s 你好 <s>. hellohellohello <url>s café"
NAMES = {f"{name[1:-1].lower()}_token": name for name in SPECIAL_TOKENS}
FLAGS = dict(single_word=False, lstrip=False, rstrip=False, normalized=False)
OTHER_NAMES = dict(pad_token="<pad>", unk_token="<unk>", cls_token="<s>", sep_token="</s>",
                   mask_token="[unused0]")
LOWER, GENERIC = {"do_lower_case": True}, NAMES | {"tokenizer_class": "PreTrainedTokenizerFast"}
EXTRA = {"additional_special_tokens": ["[NAME]", "<user>"]}


def described(lowercase=True, added=(), names=SPECIAL_TOKENS, without=(), **changes):
    """The content of a tokenizer.json with the special tokens `names` and other added tokens, without some
    fields.
    """
    ids = {piece: i for i, piece in enumerate(PIECES)}
    tokens = [{"id": ids[name], "content": name, "special": True, **FLAGS} for name in names]
    tokens += [{"id": N + i, "special": False, **FLAGS, "normalized": True, **token}
               for i, token in enumerate(added)]
    special = {name: {"id": name, "ids": [ids[name]], "tokens": [name]} for name in names[2:4]}
    def sequence(*parts):
        return [{"SpecialToken" if part in special else "Sequence": {"id": part, "type_id": kind}}
                for part, kind in parts]
    cls, sep = names[2:4]
    content = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": tokens,
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
                       "strip_accents": None, "lowercase": lowercase},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing", "special_tokens": special,
                           "single": sequence((cls, 0), ("A", 0), (sep, 0)),
                           "pair": sequence((cls, 0), ("A", 0), (sep, 0), ("B", 1), (sep, 1))},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {"type": "WordPiece", "unk_token": names[1], "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100, "vocab": ids}}
    for path, value in changes.items():  # "model__type" is ["model"]["type"]
        *above, last = path.split("__")
        place = content
        for name in above:
            place = place[name]
        if value is None:
            del place[last]
        else:
            place[last] = value
    return content


def write(folder, vocabulary=None, model_type="bert", **files):
    """Writes a folder with json files and a vocab.txt, whose content is a list of pieces or a text."""
    folder.mkdir(exist_ok=True)
    if vocabulary is not None:
        text = vocabulary if isinstance(vocabulary, str) else "".join(f"{piece}\n" for piece in vocabulary)
        (folder / "vocab.txt").write_bytes(text.encode())
    for name, content in ({"config": {"model_type": model_type}} | files).items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def beside(config=None, vocabulary=PIECES, **files):
    return dict(vocabulary=vocabulary, tokenizer_config=LOWER | (config or {}), **files)


def decoder(*tokens):
    return {"added_tokens_decoder": {str(N + i): FLAGS | token for i, token in enumerate(tokens)}}


def file(config=NAMES | LOWER, description=None, **files):
    return dict(tokenizer=described() if description is None else description, tokenizer_config=config,
                **files)


FORMS = {
    # tokenizer.json
    "of 2019, without model.type": file(LOWER, described(model__type=None), vocabulary=PIECES),
    "of 2019, generic class": file(GENERIC, described(model__type=None)),
    "without decoder": file(description=described(decoder=None)),
    "with truncation and padding": file(description=described(
        truncation={"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        padding={"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                 "pad_type_id": 0, "pad_token": "[PAD]"})),
    "no post-processor, BERT's class": file(description=described(post_processor=None)),
    "without added tokens, BERT's class": file(description=described(added_tokens=[])),
    "without added tokens, generic, stated": file(GENERIC, described(added_tokens=[])),
    # which file decides
    "BERT's class: config over tokenizer.json": file(NAMES | {"do_lower_case": False}),
    "BERT's class: its defaults over tokenizer.json": file(NAMES, described(lowercase=False)),
    "no class, no tokenizer_config.json": dict(tokenizer=described(lowercase=False)),
    "generic class: tokenizer.json over config": file(GENERIC | {"do_lower_case": False}),
    "generic class, named as transformers 5 does": file(GENERIC | {"tokenizer_class": "TokenizersBackend"},
                                                        described(lowercase=False)),
    "generic class, all options": file(GENERIC, described(
        normalizer={"type": "BertNormalizer", "clean_text": False, "handle_chinese_chars": False,
                    "strip_accents": True, "lowercase": False}, model__max_input_chars_per_word=6)),
    "BERT's class, all options": file(NAMES, described(
        normalizer={"type": "BertNormalizer", "clean_text": False, "handle_chinese_chars": False,
                    "strip_accents": True, "lowercase": False}, model__max_input_chars_per_word=6)),
    "generic class, normaliser in a sequence": file(GENERIC, described(
        normalizer={"type": "Sequence", "normalizers": [described()["normalizer"]]})),
    "generic class, BertProcessing": file(GENERIC, described(
        post_processor={"type": "BertProcessing", "sep": ["[SEP]", 4], "cls": ["[CLS]", 3]})),
    "BERT's class, another normaliser": file(description=described(
        normalizer={"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "Lowercase"}]})),
    "class in config.json": dict(vocabulary=PIECES, tokenizer=described(lowercase=False),
                                 tokenizer_config=NAMES,
                                 config={"model_type": "bert", "tokenizer_class": "PreTrainedTokenizerFast"}),
    "ConvBERT's class is what tokenizer.json says": file(
        NAMES | {"tokenizer_class": "ConvBertTokenizer", "do_lower_case": False}),
    # added and special tokens, wherever they are kept
    "special_tokens_map.json": beside(special_tokens_map=NAMES | EXTRA),
    "special_tokens_map.json, objects": beside(special_tokens_map={
        role: FLAGS | {"content": name, "lstrip": True, "rstrip": True} for role, name in NAMES.items()}),
    "special_tokens_map.json beside tokenizer.json": file(LOWER, special_tokens_map=NAMES | EXTRA),
    "additional_special_tokens in the config": beside(EXTRA),
    "additional_special_tokens in both": beside({"additional_special_tokens": ["<url>"]},
                                                special_tokens_map=NAMES | EXTRA),
    "extra_special_tokens, a list": beside({"extra_special_tokens": ["[NAME]", "<user>"]}),
    "extra_special_tokens, an object": beside({"extra_special_tokens": {"name_token": "[NAME]"}}),
    "extra_special_tokens {} beside the other": beside(EXTRA | {"extra_special_tokens": {}}),
    "a token of the model's own": beside({"user_token": "<user>"}),
    "bos and eos": beside({"bos_token": "<s>", "eos_token": "<url>"}),
    "an object with __type": beside({"mask_token": {"__type": "AddedToken", "content": "[MASK]", **FLAGS,
                                                    "lstrip": True}}),
    "added_tokens_decoder": beside(decoder({"content": "<user>", "normalized": True}, {"content": "<url>"})),
    "added_tokens_decoder hides special_tokens_map.json": beside(decoder({"content": "<user>"}),
                                                                 special_tokens_map=NAMES | EXTRA),
    "added_tokens_decoder and more": beside(decoder({"content": "<url>", "single_word": True}) | EXTRA),
    "added_tokens_decoder over tokenizer.json": file(
        NAMES | LOWER | decoder({"content": "<url>"}),
        described(added=[{"content": "<user>"}, {"content": "[NAME]"}])),
    "added_tokens_decoder and tokenizer.json, generic": file(
        GENERIC | {"added_tokens_decoder": {str(N + 2): FLAGS | {"content": "<url>"}}},
        described(added=[{"content": "<user>"}, {"content": "[NAME]"}])),
    "added_tokens.json": beside(added_tokens={"<url>": N + 1, "<user>": N}),
    "added_tokens.json, special by the config": beside(EXTRA, added_tokens={"[NAME]": N, "<user>": N + 1}),
    "added_tokens.json, special by the map": beside(added_tokens={"[NAME]": N, "<user>": N + 1},
                                                    special_tokens_map=NAMES | EXTRA),
    "added_tokens.json beside tokenizer.json": file(LOWER, described(added=[{"content": "<user>"}]),
                                                    added_tokens={"<user>": N, "<url>": N + 1}),
    "[MASK] in added_tokens.json": beside(vocabulary=[p for p in PIECES if p != "[MASK]"],
                                          added_tokens={"[MASK]": N - 1}),
    "flags of added tokens": file(description=described(added=[
        {"content": "<user>", "lstrip": True}, {"content": "<url>", "rstrip": True, "single_word": True},
        {"id": 6, "content": "hello", "single_word": True}])),
    "other names": beside(special_tokens_map=OTHER_NAMES),
    "other names, objects": beside(special_tokens_map={
        role: FLAGS | {"content": name} for role, name in OTHER_NAMES.items()}),
    "other names, generic": file(OTHER_NAMES | {"tokenizer_class": "PreTrainedTokenizerFast"},
                                 described(names=[*OTHER_NAMES.values()])),
    # vocab.txt
    "vocab.txt": beside(),
    "vocab.txt, cased": beside({"do_lower_case": False}),
    "vocab.txt, CRLF": beside(vocabulary="\r\n".join(PIECES) + "\r\n"),
    "vocab.txt, blank lines at the end": beside(vocabulary="\n".join(PIECES) + "\n\n \n"),
    "vocab.txt, blank lines and added tokens": beside(EXTRA, "\n".join(PIECES) + "\n\n\n"),
    "vocab.txt, white space at line ends": beside(vocabulary=" \n".join(PIECES)),
    "vocab.txt, a piece twice": beside(vocabulary=[*PIECES, "hello", "end"]),
    "vocab.txt, [PAD] not at 0": beside(vocabulary=[*PIECES[1:], "[PAD]"]),
    "options of old and of slow tokenizers": beside({
        "do_basic_tokenize": False, "never_split": ["hello"], "strip_accents": False, "init_inputs": [],
        "tokenize_chinese_chars": False, "max_len": 512, "name_or_path": "/home/someone/model"}),
    "accents stripped, case kept": beside({"do_lower_case": False, "strip_accents": True}),
    "options null": beside({"strip_accents": None, "additional_special_tokens": None,
                            "tokenizer_class": None}),
    **{f"class {name}": beside({"tokenizer_class": name}) for name in (
        "BertTokenizerFast", "DistilBertTokenizer", "MobileBertTokenizerFast", "ElectraTokenizer",
        "LxmertTokenizer", "LayoutLMTokenizerFast", "SqueezeBertTokenizer", "ConvBertTokenizer",
        "DPRContextEncoderTokenizer")},
    **{f"model_type {name}": beside(model_type=name) for name in ("distilbert", "mobilebert", "electra")},
}
UNCASED = "3 6 14 13 5 13 18 2 19 18 23 19 2 20 22 21 20 22 21 2 16 17 20 2 21 9 6 24 24 20 2 21 2 14 4"
CASED = "3 25 2 13 5 13 18 2 19 18 2 19 2 20 22 21 20 2 21 2 16 17 20 2 21 9 6 24 24 20 2 21 2 27 4"
EXPECTED = dict.fromkeys(FORMS, UNCASED) | {
    "BERT's class: config over tokenizer.json": CASED,
    "generic class, named as transformers 5 does": CASED,
    "generic class, all options":
        "3 25 2 13 5 13 18 2 19 18 2 19 2 20 22 21 20 2 21 2 2 20 2 21 9 2 20 2 21 2 14 4",
    "class in config.json": CASED,
    "special_tokens_map.json":
        "3 6 14 13 5 13 18 2 19 34 2 35 20 22 21 2 16 17 20 2 21 9 6 24 24 20 2 21 2 14 4",
    "special_tokens_map.json beside tokenizer.json":
        "3 6 14 13 5 13 18 2 19 34 2 35 20 22 21 2 16 17 20 2 21 9 6 24 24 20 2 21 2 14 4",
    "additional_special_tokens in the config":
        "3 6 14 13 5 13 18 2 19 34 2 35 20 22 21 2 16 17 20 2 21 9 6 24 24 20 2 21 2 14 4",
    "additional_special_tokens in both":
        "3 6 14 13 5 13 18 2 19 18 23 19 2 20 22 21 20 22 21 2 16 17 20 2 21 9 6 24 24 34 2 14 4",
    "extra_special_tokens, a list":
        "3 6 14 13 5 13 18 2 19 34 2 35 20 22 21 2 16 17 20 2 21 9 6 24 24 20 2 21 2 14 4",
    "extra_special_tokens, an object":
        "3 6 14 13 5 13 18 2 19 34 2 20 22 21 20 22 21 2 16 17 20 2 21 9 6 24 24 20 2 21 2 14 4",
    "extra_special_tokens {} beside the other":
        "3 6 14 13 5 13 18 2 19 34 2 35 20 22 21 2 16 17 20 2 21 9 6 24 24 20 2 21 2 14 4",
    "a token of the model's own":
        "3 6 14 13 5 13 18 2 19 18 23 19 2 34 20 22 21 2 16 17 20 2 21 9 6 24 24 20 2 21 2 14 4",
    "bos and eos":
        "3 6 14 13 5 13 18 2 19 18 23 19 2 20 22 21 20 22 21 2 16 17 29 9 6 24 24 34 2 14 4",
    "added_tokens_decoder":
        "3 6 14 13 5 13 18 2 19 18 23 19 2 34 34 2 16 17 20 2 21 9 6 24 24 35 2 14 4",
    "added_tokens_decoder hides special_tokens_map.json":
        "3 6 14 13 5 13 18 2 19 18 23 19 2 34 20 22 21 2 16 17 20 2 21 9 6 24 24 20 2 21 2 14 4",
    "added_tokens_decoder and more":
        "3 6 14 13 5 13 18 2 19 35 2 36 20 22 21 2 16 17 20 2 21 9 6 24 24 20 2 21 2 14 4",
    "added_tokens_decoder over tokenizer.json":
        "3 6 14 13 5 13 18 2 19 18 23 19 2 20 22 21 20 22 21 2 16 17 20 2 21 9 6 24 24 34 2 14 4",
    "added_tokens_decoder and tokenizer.json, generic":
        "3 6 14 13 5 13 18 2 19 35 2 34 34 2 16 17 20 2 21 9 6 24 24 36 2 14 4",
    "added_tokens.json":
        "3 6 14 13 5 13 18 2 19 18 23 19 2 34 34 2 16 17 20 2 21 9 6 24 24 35 2 14 4",
    "added_tokens.json, special by the config":
        "3 6 14 13 5 13 18 2 19 34 2 35 20 22 21 2 16 17 20 2 21 9 6 24 24 20 2 21 2 14 4",
    "added_tokens.json, special by the map":
        "3 6 14 13 5 13 18 2 19 34 2 35 35 2 16 17 20 2 21 9 6 24 24 20 2 21 2 14 4",
    "added_tokens.json beside tokenizer.json":
        "3 6 14 13 5 13 18 2 19 18 23 19 2 34 34 2 16 17 20 2 21 9 6 24 24 35 2 14 4",
    "[MASK] in added_tokens.json":
        "3 5 13 12 33 12 33 17 22 18 2 19 21 20 19 21 20 2 15 16 19 2 20 8 5 23 23 19 2 20 2 13 4",
    "flags of added tokens":
        "3 6 14 13 5 13 18 2 19 18 23 19 2 34 34 2 16 17 20 2 21 9 6 24 24 20 2 21 2 14 4",
    "other names":
        "29 6 14 13 18 32 19 13 18 32 19 18 23 19 32 20 22 21 20 22 21 32 16 17 29 9 6 24 24 20 32 21 32 "
        "14 30",
    "other names, objects":
        "29 6 14 13 18 32 19 13 18 32 19 18 23 19 32 20 22 21 20 22 21 32 16 17 29 9 6 24 24 20 32 21 32 "
        "14 30",
    "other names, generic":
        "29 6 14 13 18 32 19 13 18 32 19 18 23 19 32 20 22 21 20 22 21 32 16 17 29 9 6 24 24 20 32 21 32 "
        "14 30",
    "vocab.txt, cased": CASED,
    "vocab.txt, blank lines and added tokens":
        "3 6 14 13 5 13 18 2 19 35 2 36 20 22 21 2 16 17 20 2 21 9 6 24 24 20 2 21 2 14 4",
    "vocab.txt, a piece twice":
        "3 34 14 13 5 13 18 2 19 18 23 19 2 20 22 21 20 22 21 2 16 17 20 2 21 9 34 24 24 20 2 21 2 14 4",
    "vocab.txt, [PAD] not at 0":
        "2 5 13 12 4 12 17 1 18 17 22 18 1 19 21 20 19 21 20 1 15 16 19 1 20 8 5 23 23 19 1 20 1 13 3",
    "options of old and of slow tokenizers":
        "3 6 27 13 5 13 18 2 19 18 23 19 2 20 22 21 20 22 21 2 2 20 2 21 9 6 24 24 20 2 21 2 27 4",
    "accents stripped, case kept":
        "3 25 2 13 5 13 18 2 19 18 2 19 2 20 22 21 20 2 21 2 16 17 20 2 21 9 6 24 24 20 2 21 2 14 4",
}


def ids_of(form):
    return [int(i) for i in EXPECTED[form].split()]


def load(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_tokenizer(folder)


@pytest.mark.parametrize("form", FORMS)
def test_a_form_has_its_ids_and_keeps_them_when_saved(form, tmp_path):
    loaded = load(write(tmp_path / "found", **FORMS[form]))
    assert loaded.encode([TEXT])[0][0] == ids_of(form)
    loaded.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert again.sha256 == loaded.sha256 and again.encode([TEXT])[0][0] == ids_of(form)
    assert again.names == loaded.names and again.states == loaded.states | {"model_max_length": 512}


@pytest.mark.parametrize("form", FORMS)
def test_transformers_has_the_same_ids_before_and_after(form, tmp_path):
    transformers = pytest.importorskip("transformers", minversion="5")
    folder = write(tmp_path / "found", **FORMS[form])
    load(folder).save(tmp_path / "saved")
    write(tmp_path / "saved", model_type=FORMS[form].get("model_type", "bert"))
    for place in (folder, tmp_path / "saved"):
        theirs = transformers.AutoTokenizer.from_pretrained(place)
        theirs.backend_tokenizer.no_truncation(), theirs.backend_tokenizer.no_padding()
        assert theirs(TEXT)["input_ids"] == ids_of(form), place.name
        pair = theirs(TEXT, "hello", return_token_type_ids=True)
        assert ([pair["input_ids"]], [pair["token_type_ids"]]) == load(folder).encode([TEXT], ["hello"])


ONLY = "minibert reads only BERT's WordPiece"
REFUSED = {
    "a BPE": (file(description={"model": {"type": "BPE", "vocab": {}, "merges": []}}), "['BPE', None, None]"),
    "a BPE of 2019": (file(description={"model": {"vocab": {}, "merges": [],
                                                  "continuing_subword_prefix": ""}}),
                      "[None, None, None]"),
    "a Unigram": (file(description={"model": {"type": "Unigram", "vocab": []}}), "'Unigram'"),
    "words alone": (file(GENERIC, described(model__type="WordLevel")), "'WordLevel'"),
    "generic, another normaliser": (file(GENERIC, described(normalizer={"type": "NFC"})), "'NFC'"),
    "generic, another pre-tokeniser": (file(GENERIC, described(pre_tokenizer={"type": "Whitespace"})),
                                       "'Whitespace'"),
    "generic, nothing around a text": (file(GENERIC, described(post_processor=None)),
                                       "an empty pair becomes"),
    "generic, RoBERTa around a text": (file(GENERIC, described(post_processor={
        "type": "RobertaProcessing", "sep": ["[SEP]", 4], "cls": ["[CLS]", 3], "trim_offsets": True,
        "add_prefix_space": False})), "[CLS]', '[SEP]', '[SEP]', '[SEP]"),
    "generic, special tokens unstated": (file({"tokenizer_class": "PreTrainedTokenizerFast"}, described(
        added_tokens=[])), "[PAD] [UNK] [CLS] [SEP] [MASK] among"),
    "generic, without tokenizer.json": (beside(GENERIC), "missing; download this file"),
    "another prefix": (file(description=described(model__continuing_subword_prefix="@@")), "'@@'"),
    "BertJapanese": (beside({"tokenizer_class": "BertJapaneseTokenizer", "word_tokenizer_type": "mecab"}),
                     f"BertJapaneseTokenizer with mecab, but {ONLY}"),
    "BertJapanese, characters": (beside({"tokenizer_class": "BertJapaneseTokenizer",
                                         "subword_tokenizer_type": "character"}), ONLY),
    "BertJapanese in config.json": (beside(config={"tokenizer_class": "BertJapaneseTokenizer"}), ONLY),
    "mecab without a class": (beside({"word_tokenizer_type": "mecab"}), "BertTokenizer with mecab"),
    **{name: (beside({"tokenizer_class": name}), f"its tokenizer is {name}, but {ONLY}") for name in (
        "BertweetTokenizer", "RobertaTokenizerFast", "XLMRobertaTokenizer", "GPT2Tokenizer",
        "HerbertTokenizer", "TapasTokenizer", "MPNetTokenizer", "FunnelTokenizer", "SplinterTokenizer",
        "RoFormerTokenizer",
        "DPRReaderTokenizer")},
    "a model of another tokenizer": (beside(model_type="funnel"), f"that of a funnel, but {ONLY}"),
    "split_special_tokens": (beside({"split_special_tokens": True}), "split_special_tokens"),
    "no [MASK]": (beside(vocabulary=[p for p in PIECES if p != "[MASK]"]), "lacks [MASK]"),
    "an id that it cannot have": (beside({"added_tokens_decoder": {"99": FLAGS | {"content": "<user>"}}}),
                                  f"'<user>' cannot have id 99: it gets {N}"),
    "new ids in a vocabulary with gaps": (
        beside({"additional_special_tokens": ["<user>"]}, [*PIECES, "end", "hello"]),
        "has the id of a piece"),
    "LFS pointer": (dict(vocabulary="version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
                    "vocab.txt is not the file itself but a git-LFS pointer"),
    "web page": (dict(vocabulary="\n<!DOCTYPE html>\n<html>"), "vocab.txt is a saved web page"),
    "wrong type": (beside({"do_lower_case": "maybe"}), "is damaged"),
}


@pytest.mark.parametrize("form", REFUSED)
def test_what_is_refused_says_why_and_what_to_do(form, tmp_path):
    files, why = REFUSED[form]
    with pytest.raises(UserError) as caught:
        load(write(tmp_path / "t", **files))
    assert why in str(caught.value) and str(tmp_path / "t") in str(caught.value)


@pytest.mark.parametrize("start, why", [("version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
                                        ("<!doctype html><html>", "saved web page"), ("<html>", "/resolve/")])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                                  "added_tokens.json", "config.json"])
def test_json_that_is_only_a_pointer_or_a_page_is_named(name, start, why, tmp_path):
    write(tmp_path / "t", PIECES)
    (tmp_path / "t" / name).write_text(start)
    with pytest.raises(UserError, match=f"{name} is .*{why}"):
        load(tmp_path / "t")


def test_blank_lines_and_a_byte_order_mark_are_no_pieces(tmp_path):
    """In these folders, transformers makes [PAD] a new piece, for which no model has a vector."""
    for name, text in (("blank", "\n".join(PIECES) + "\n\n\n"), ("mark", "\ufeff" + "\n".join(PIECES))):
        loaded = load(write(tmp_path / name, text, tokenizer_config=LOWER))
        assert (loaded.vocab_size, loaded.pad_id) == (N, 0)
        assert loaded.sha256 == load(write(tmp_path / "plain", PIECES, tokenizer_config=LOWER)).sha256


# --- the casing of a bare vocab.txt ---

def vocabulary(capitals, n=2000):
    words = [f"w{i}" for i in range(n - capitals)] + [f"W{i}" for i in range(capitals)]
    return dict.fromkeys([*SPECIAL_TOKENS, "[unused0]", "<URL>", "<S>", *words])


@pytest.mark.parametrize("capitals, cased", [(0, False), (2, False), (24, True), (600, True)])
def test_casing_is_decided_by_share_and_said(capitals, cased, tmp_path):
    """Real uncased vocabularies have up to 0.1 % of pieces with capitals, and cased ones at least 1.2 %."""
    with pytest.warns(UserWarning, match=f"vocab.txt: no file states whether it is cased; {capitals} of 2000 "
                                         f"pieces have capitals, so text is {'not ' * cased}lower-cased"):
        loaded = load_tokenizer(write(tmp_path / "t", vocabulary(capitals)))
    assert loaded.lowercase is not cased


@pytest.mark.filterwarnings("ignore")
def test_capitals_of_every_script_count():
    cyrillic = [chr(c) for c in range(0x410, 0x450)]  # half of them capitals
    assert is_cased(dict.fromkeys(cyrillic), "x") and not is_cased(dict.fromkeys(cyrillic[32:]), "x")
    assert not is_cased({"[UNK]": 0, "<URL>": 1, "a": 2}, "x") and is_cased({"[A": 0, "a": 1}, "x")


def test_nothing_is_said_where_all_is_stated(tmp_path, recwarn):
    load_tokenizer(write(tmp_path / "a", PIECES, tokenizer_config={"do_lower_case": False}))
    load_tokenizer(write(tmp_path / "b", **file(LOWER)))
    load_tokenizer(write(tmp_path / "c", **file(GENERIC, described(lowercase=False))))
    assert not recwarn.list


@pytest.mark.parametrize("files, what", [
    (file(NAMES, described(lowercase=False)), "lowercase is False, strip_accents is False, but"),
    (file({"strip_accents": False}), "strip_accents is True, but"),
    (FORMS["BERT's class, another normaliser"], "normaliser or pre-tokeniser is not BERT's, but"),
    (FORMS["vocab.txt, a piece twice"], rf"lines 7 and {N + 1} are both 'hello'; .* the last line counts"),
])
def test_a_contradiction_is_said_aloud(files, what, tmp_path):
    with pytest.warns(UserWarning, match=what):
        load_tokenizer(write(tmp_path / "t", **files))


# --- what a folder states survives ---

@pytest.mark.parametrize("stated, model, saved", [
    ({}, 512, 512), ({"model_max_length": 256}, 512, 256), ({"model_max_length": 512}, 128, 128),
    ({"model_max_length": 10**30}, 512, 10**30), ({"model_max_length": 1e30}, 512, 1e30),
    ({"max_len": 256}, 512, 256)])
def test_the_longest_sequence_survives(stated, model, saved, tmp_path):
    load(write(tmp_path / "t", PIECES, tokenizer_config=LOWER | stated)).save(tmp_path / "s", model)
    assert json.loads((tmp_path / "s" / "tokenizer_config.json").read_text())["model_max_length"] == saved


def test_what_else_is_stated_survives_and_paths_do_not(tmp_path):
    stated = LOWER | EXTRA | {
        "clean_up_tokenization_spaces": False, "padding_side": "left", "max_length": 128,
        "name_or_path": "/home/x", "special_tokens_map_file": "/home/y", "tokenizer_class": "BertTokenizer",
        "model_input_names": ["input_ids", "attention_mask"]}
    loaded = load(write(tmp_path / "t", PIECES, tokenizer_config=stated))
    loaded.save(tmp_path / "bert"), loaded.save(tmp_path / "distilbert", segments=False)
    bert, distilbert = (json.loads((tmp_path / name / "tokenizer_config.json").read_text())
                        for name in ("bert", "distilbert"))
    kept = ("do_lower_case", "additional_special_tokens", "clean_up_tokenization_spaces", "padding_side",
            "max_length")
    assert all(saved[key] == stated[key] for key in kept for saved in (bert, distilbert))
    assert not [key for key in bert if "path" in key or "_file" in key]
    # that is the model's, not the tokenizer's: a BERT needs its token types
    assert "model_input_names" not in bert
    assert distilbert["model_input_names"] == ["input_ids", "attention_mask"]


def test_additional_tokens_of_any_file_are_saved_as_special(tmp_path):
    for i, files in enumerate((beside(EXTRA), beside(special_tokens_map=EXTRA),
                               beside({"extra_special_tokens": EXTRA["additional_special_tokens"]}))):
        load(write(tmp_path / f"{i}", **files)).save(tmp_path / f"{i} saved")
        saved = json.loads((tmp_path / f"{i} saved" / "tokenizer_config.json").read_text())
        assert saved["additional_special_tokens"] == EXTRA["additional_special_tokens"]


def test_a_tokenizer_of_other_names_masks_with_its_own():
    names = [*OTHER_NAMES.values()]
    tokenizer = Tokenizer({piece: i for i, piece in enumerate(PIECES)}, names=names)
    special = [PIECES[i] for i in tokenizer.special.nonzero()[0]]
    assert special == ["[unused0]", "<s>", "</s>", "<pad>", "<unk>"]
    assert (tokenizer.mask_id, tokenizer.cls_id) == (1, PIECES.index("<s>"))
    added = [tokenizers.AddedToken(name, special=True) for name in (*names, *SPECIAL_TOKENS)]
    hashes = {Tokenizer({piece: i for i, piece in enumerate(PIECES)}, added=added, names=roles).sha256
              for roles in (names, SPECIAL_TOKENS, [*names[:4], "[MASK]"])}
    assert len(hashes) == 3


def test_the_library_reads_the_tokenizer_json_alone(tmp_path):
    loaded = load(write(tmp_path / "t", **FORMS["other names"]))
    loaded.save(tmp_path / "s")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "s" / "tokenizer.json"))
    assert theirs.encode(TEXT).ids == loaded.encode([TEXT])[0][0]
