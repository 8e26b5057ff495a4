"""Tests that every form of folder gives the vectors of sentence-transformers, before and after `save`, and
that pooling equals formulas written out.
"""

import json
import logging
import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import minibert
from minibert.data.tokenizer import SPECIAL_TOKENS, Tokenizer
from minibert.hub.load_save import load, save
from minibert.model.config import DISTILBERT, Config
from minibert.model.encoder import Encoder
from minibert.model.heads import MaskedLM
from minibert.model.init import init_weights
from minibert.model.sentences import POOLING, SentencePooling
from scripts import convert

TINY = dict(vocab_size=64, hidden_size=16, layers=2, heads=2, intermediate_size=24, max_positions=24)
TEXTS = ["abc Bad cab", "a", "", "[MASK] x FED", "a bed a cab " * 9]
OLD, NEW = "sentence_transformers.models.", {  # the names of module classes, before and since release 6
    "Transformer": "sentence_transformers.base.modules.transformer.Transformer",
    "Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
    "Dense": "sentence_transformers.base.modules.dense.Dense",
    "Normalize": "sentence_transformers.base.modules.normalize.Normalize"}
MEAN = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False}


def tokenizer(lowercase=True):
    """A tokenizer with some small and capital letters."""
    letters = "abcdefx" if lowercase else "abcdefxABCDEF"
    pieces = [*SPECIAL_TOKENS, *letters, *(f"##{c}" for c in letters)]
    return Tokenizer({piece: i for i, piece in enumerate(pieces)}, {"lowercase": lowercase})


def encoder(config=Config(**TINY), kind=Encoder):
    """A model with every tensor random."""
    model = init_weights(kind(config), torch.Generator().manual_seed(0)).eval()
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))
    return model


def write(path, content):
    """Writes a json file and the folder that contains it."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


def sentence_folder(folder, pooling=MEAN, after=("Normalize",), names=None, own=None, shared=None, words=None,
                    model=None):
    """A folder of sentence-transformers: a model with `pooling`, then the modules `after`; ("Dense", {...})
    is one with settings. `own` is sentence_bert_config.json, `shared` config_sentence_transformers.json.
    """
    save(model or encoder(), folder, words or tokenizer())
    modules = []
    pooling = {"word_embedding_dimension": 16} | pooling
    for i, module in enumerate(["Transformer", ("Pooling", pooling), *after]):
        kind, settings = (module, None) if isinstance(module, str) else module
        path = f"{i}_{kind}" if i else ""
        modules.append({"idx": i, "name": str(i), "path": path, "type": (names or {}).get(kind, OLD + kind)})
        if settings:
            write(folder / path / "config.json", settings)
        if kind == "Dense":
            size = (settings["out_features"], settings["in_features"])
            draw = torch.Generator().manual_seed(i)
            tensors = {"linear.weight": torch.randn(size, generator=draw)}
            if settings.get("bias", True):
                tensors["linear.bias"] = torch.randn(size[0], generator=draw)
            save_file(tensors, folder / path / "model.safetensors")
    write(folder / "modules.json", modules)
    if own is not None:
        write(folder / "sentence_bert_config.json", own)
    if shared is not None:
        write(folder / "config_sentence_transformers.json", shared)
    return folder


def dense(a, b, activation="torch.nn.modules.activation.Tanh", **more):
    """A Dense module from width a to b."""
    return "Dense", dict(in_features=a, out_features=b, bias=True, activation_function=activation) | more


def vectors(folder, texts=TEXTS):
    """What `embed` makes of the folder with its own tokenizer."""
    return minibert.embed(load(folder), minibert.load_tokenizer(folder), texts)


@pytest.mark.parametrize("mode", POOLING)
def test_pooling_against_its_formula(mode):
    last = torch.randn(9, 4, generator=torch.Generator().manual_seed(1))
    batch = minibert.pack([[1] * n for n in (3, 1, 5)])
    expected = []
    for h in last.split([3, 1, 5]):
        n = len(h)
        expected.append({
            "cls": h[0], "lasttoken": h[-1], "max": h.max(0).values, "mean": sum(h) / n,
            "mean_sqrt_len_tokens": sum(h) / math.sqrt(n),
            "weightedmean": sum((i + 1) * h[i] for i in range(n)) / (n * (n + 1) / 2)}[mode])
    torch.testing.assert_close(POOLING[mode](last, batch), torch.stack(expected), rtol=0, atol=1e-6)
    alone = SentencePooling((mode,), nn.Sequential())(last, batch)
    torch.testing.assert_close(alone, torch.stack(expected), rtol=0, atol=1e-6)


FORMS = {
    "mean": {},
    "not normalised": dict(after=()),
    "CLS": dict(pooling=MEAN | {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}),
    "max": dict(pooling={"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": False}, after=()),
    "two at once": dict(pooling=MEAN | {"pooling_mode_cls_token": True}),
    "square root": dict(pooling=MEAN | {"pooling_mode_mean_sqrt_len_tokens": True,
                                        "pooling_mode_mean_tokens": False}, after=()),
    "weighted mean": dict(pooling=MEAN | {"pooling_mode_mean_tokens": False,
                                          "pooling_mode_weightedmean_tokens": True}),
    "last token": dict(pooling=MEAN | {"pooling_mode_mean_tokens": False, "pooling_mode_lasttoken": True}),
    "no kind stated": dict(pooling={"pooling_mode_cls_token": False}),
    "new spelling": dict(pooling={"pooling_mode": "cls", "include_prompt": True}),
    "new spelling of two": dict(pooling={"pooling_mode": ["max", "mean"]}),
    "Dense": dict(after=[dense(16, 5)]),
    "Dense after Normalize": dict(after=["Normalize",
                                         dense(16, 7, "torch.nn.modules.linear.Identity", bias=False)]),
    "two of Dense": dict(after=[dense(16, 7, "torch.nn.modules.activation.GELU"), dense(7, 3), "Normalize"]),
    "shorter": dict(own={"max_seq_length": 9, "do_lower_case": False}),
    "lower-cased": dict(own={"do_lower_case": True}, words=tokenizer(lowercase=False)),
    "cased": dict(own={"do_lower_case": False}, words=tokenizer(lowercase=False)),
    "a prompt": dict(shared={"prompts": {"q": "fed ", "p": "bad"}, "default_prompt_name": "q",
                             "similarity_fn_name": "dot"}),
    "a prompt that is not the default": dict(shared={"prompts": {"q": "fed "}, "default_prompt_name": None}),
    "cut": dict(shared={"truncate_dim": 6}),
    "a language model": dict(model=encoder(kind=MaskedLM)),
    "a DistilBERT": dict(model=encoder(Config(**TINY, **DISTILBERT))),
}


@pytest.mark.parametrize("form", FORMS)
def test_vectors_equal_sentence_transformers(form, tmp_path):
    """The vectors of a folder and of its saved copy are equal, also in sentence-transformers."""
    st = pytest.importorskip("sentence_transformers")
    logging.disable(logging.WARNING)
    folder = sentence_folder(tmp_path / "a", **FORMS[form])
    expected = st.SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    # the same model, but not the same vectors, so that the comparison says something
    assert form == "mean" or np.shape(vectors(folder)) != np.shape(plain(folder)) or (
        np.abs(vectors(folder) - plain(folder)).max() > 1e-3) or form in (
        "cased", "no kind stated", "a prompt that is not the default", "a language model", "a DistilBERT")
    np.testing.assert_allclose(vectors(folder), expected, rtol=0, atol=1e-5)
    save(load(folder), tmp_path / "b", minibert.load_tokenizer(folder))
    np.testing.assert_allclose(vectors(tmp_path / "b"), expected, rtol=0, atol=1e-5)
    again = st.SentenceTransformer(str(tmp_path / "b"), device="cpu")
    np.testing.assert_allclose(again.encode(TEXTS), expected, rtol=0, atol=1e-5)
    logging.disable(logging.NOTSET)


def plain(folder):
    """The vectors of the same model without the files of sentence-transformers."""
    model = load(folder)
    model.sentences = None
    return minibert.embed(model, minibert.load_tokenizer(folder), TEXTS)


def test_the_names_of_newer_releases(tmp_path):
    old = sentence_folder(tmp_path / "old", after=[dense(16, 5), "Normalize"])
    new = sentence_folder(tmp_path / "new", after=[dense(16, 5), "Normalize"], names=NEW)
    np.testing.assert_array_equal(vectors(old), vectors(new))


def test_the_old_layout_has_the_model_one_folder_below(tmp_path):
    flat = sentence_folder(tmp_path / "flat", pooling={"pooling_mode": "cls"}, own={"max_seq_length": 9})
    old = sentence_folder(tmp_path / "old", pooling={"pooling_mode": "cls"})
    (old / "0_Transformer").mkdir()
    for path in [p for p in old.iterdir() if p.is_file() and p.name != "modules.json"]:
        path.rename(old / "0_Transformer" / path.name)
    write(old / "0_Transformer" / "sentence_bert_config.json", {"max_seq_length": 9})
    modules = json.loads((old / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    write(old / "modules.json", modules)
    np.testing.assert_array_equal(vectors(old / "0_Transformer"), vectors(flat))
    save(load(old / "0_Transformer"), tmp_path / "saved", tokenizer())  # comes out flat
    np.testing.assert_array_equal(vectors(tmp_path / "saved"), vectors(flat))


def test_convert_keeps_the_files_and_unpickles_once(tmp_path, monkeypatch, capsys):
    folder = sentence_folder(tmp_path / "a", after=[dense(16, 5)], own={"max_seq_length": 9},
                             shared={"prompts": {"q": "fed "}})
    expected = vectors(folder)
    torch.save({"linear.weight": torch.randn(5, 16, generator=torch.Generator().manual_seed(2)),
                "linear.bias": torch.randn(5, generator=torch.Generator().manual_seed(2))},
               folder / "2_Dense" / "pytorch_model.bin")
    weights = (folder / "2_Dense" / "model.safetensors").read_bytes()
    (folder / "2_Dense" / "model.safetensors").unlink()
    with pytest.raises(minibert.UserError, match="2_Dense holds only pickled weights.*weights/convert.py"):
        vectors(folder)
    assert convert(monkeypatch, folder, tmp_path / "b") == 0
    assert len(vectors(tmp_path / "b")[0]) == 5
    (folder / "2_Dense" / "model.safetensors").write_bytes(weights)
    assert convert(monkeypatch, folder, tmp_path / "c") == 0
    np.testing.assert_array_equal(vectors(tmp_path / "c"), expected)
    for name in ("config_sentence_transformers", "sentence_bert_config", "1_Pooling/config"):
        assert (tmp_path / "c" / f"{name}.json").read_text() == (folder / f"{name}.json").read_text()


def test_a_cut_sentence_encoder_pools_as_before(tmp_path, monkeypatch):
    """With all layers kept, the model is the same. With fewer layers it is another model with the same files.
    """
    folder = sentence_folder(tmp_path / "a", after=[dense(16, 5), "Normalize"], own={"max_seq_length": 9})
    n = load(folder).config.layers
    for name, layers in (("all", range(n)), ("one", [n - 1])):
        assert convert(monkeypatch, folder, tmp_path / name, "--layers", ",".join(map(str, layers))) == 0
        found, given = (json.loads((one / "modules.json").read_text()) for one in (tmp_path / name, folder))
        assert found == given
    np.testing.assert_array_equal(vectors(tmp_path / "all"), vectors(folder))
    assert load(tmp_path / "one").config.layers == 1
    assert vectors(tmp_path / "one").shape == vectors(folder).shape and n > 1


REFUSED = {
    "median": (dict(pooling={"pooling_mode": "median"}), "1_Pooling uses the pooling median; embed supports "
                                                         "cls"),
    "a switch": (dict(pooling=MEAN | {"pooling_mode_median": True}), "the pooling pooling_mode_median"),
    "a module": (dict(after=["LSTM"]), "names a module LSTM, which embed does not know"),
    "a module of others": (dict(after=["Dense"], names={"Dense": "pylate.models.Dense.Dense"}) | dict(
        after=[dense(16, 5)]), "names a module pylate.models.Dense.Dense"),
    "no pooling": (dict(names={"Pooling": OLD + "WordWeights"}), "needs a Transformer and then a Pooling"),
    "an activation": (dict(after=[dense(16, 5, "mine.Act")]), "activation mine.Act, which is not a class of"),
    "a residual": (dict(after=[dense(16, 5, use_residual=True)]), "a residual connection"),
    "tokens": (dict(after=[dense(16, 5, module_input_name="token_embeddings")]), "reads token_embeddings"),
    "a size": (dict(after=[dense(15, 5)]), "2_Dense needs vectors of 15 numbers, but gets vectors of 16"),
    "a setting": (dict(own={"query_length": 5}), "sentence_bert_config.json of .* sets query_length"),
    "prompt": (dict(pooling={"pooling_mode": "mean", "include_prompt": False},
                    shared={"prompts": {"q": "a "}, "default_prompt_name": "q"}), "include_prompt"),
    "damaged": (dict(own={"max_seq_length": "long"}), "damaged"),
}


@pytest.mark.parametrize("form", REFUSED)
def test_what_embed_does_not_follow_is_refused_and_still_kept(form, tmp_path):
    settings, why = REFUSED[form]
    folder = sentence_folder(tmp_path / "a", **settings)
    model = load(folder)  # for other uses
    with pytest.raises(minibert.UserError, match=why):
        minibert.embed(model, tokenizer(), TEXTS)
    save(model, tmp_path / "b", tokenizer())
    kept = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert kept == {str(p.relative_to(tmp_path / "b")) for p in (tmp_path / "b").rglob("*") if p.is_file()}


@pytest.mark.parametrize("text", ["{}", "[", "[1]", '[{"path": "../../x", "type": "a"}]', '[{"path": ".."}]'])
def test_a_damaged_list_of_modules(text, tmp_path):
    folder = sentence_folder(tmp_path)
    (folder / "modules.json").write_text(text)
    with pytest.raises(minibert.UserError, match="modules.json"):
        vectors(folder)


def test_a_new_head_is_no_sentence_encoder(tmp_path):
    folder = sentence_folder(tmp_path / "a", pooling={"pooling_mode": "cls"})
    with pytest.warns(UserWarning, match="get new weights"):
        model = load(folder, "classification", labels=("a", "b"))
    assert model.sentences is None
    save(model, tmp_path / "b", tokenizer())
    assert not (tmp_path / "b" / "modules.json").exists()


def test_the_encoder_of_a_language_model_pools_as_the_folder_says(tmp_path):
    folder = sentence_folder(tmp_path / "a", pooling={"pooling_mode": "cls"}, model=encoder(kind=MaskedLM))
    alone = load(folder, "encoder")
    np.testing.assert_array_equal(minibert.embed(alone, tokenizer(), TEXTS), vectors(folder))
    save(alone, tmp_path / "b", tokenizer())
    np.testing.assert_array_equal(vectors(tmp_path / "b"), vectors(folder))


def test_where_no_setting_states_a_length_the_tokenizer_does(tmp_path):
    """sentence-transformers 6 saves such folders. The length is never above the model's number of positions.
    """
    folder = sentence_folder(tmp_path / "a", own={"transformer_task": "feature-extraction"})
    raw = json.loads((folder / "tokenizer_config.json").read_text())
    for stated, read in ((9, 9), (10**6, 24)):
        write(folder / "tokenizer_config.json", raw | {"model_max_length": stated})
        save(load(folder), tmp_path / "b", minibert.load_tokenizer(folder))
        for place in (folder, tmp_path / "b"):
            expected = minibert.embed(load(place), tokenizer(), TEXTS, max_length=read)
            np.testing.assert_array_equal(vectors(place), expected)


def test_a_long_limit_is_the_models(tmp_path):
    folder = sentence_folder(tmp_path, own={"max_seq_length": 512})
    expected = minibert.embed(load(folder), tokenizer(), TEXTS, max_length=24)
    np.testing.assert_array_equal(vectors(folder), expected)


def test_other_outputs_of_the_model_are_refused(tmp_path):
    folder = sentence_folder(tmp_path, own={"module_output_name": "sentence_embedding"})
    with pytest.raises(minibert.UserError, match="sets module_output_name"):
        vectors(folder)


def test_weights_that_are_not_those_of_the_settings(tmp_path):
    folder = sentence_folder(tmp_path, after=[dense(16, 5)])
    save_file({"linear.weight": torch.zeros(5, 16)}, folder / "2_Dense" / "model.safetensors")
    with pytest.raises(minibert.UserError, match="2_Dense do not fit its config.json, which needs "
                                                 "linear.bias"):
        vectors(folder)
