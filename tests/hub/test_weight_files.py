"""Tests of weight files: unknown names, damaged values, and files of other kinds (docs/formats.md).

    python -m pytest tests/hub/test_weight_files.py
"""

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from minibert.common.errors import UserError
from minibert.hub.load_save import load, save
from minibert.hub.weight_files import read_bin
from minibert.model.config import Config
from minibert.model.heads import Classifier, MaskedLM

TINY = dict(vocab_size=40, hidden_size=16, layers=2, heads=2, intermediate_size=24, max_positions=20)
BERT = Config(**TINY)


def saved(folder, kind=MaskedLM, config=BERT):
    """A random model, saved."""
    torch.manual_seed(0)
    model = kind(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    save(model, folder)
    return model


def retensor(folder, function):
    tensors = function(load_file(folder / "model.safetensors"))
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / "model.safetensors")


def refused(folder, *args, **options):
    with pytest.raises(UserError) as caught:
        load(folder, *args, **options)
    return str(caught.value)


def same(a, b):
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


# --- names ---

def test_names_with_a_prefix_are_unexpected(tmp_path):
    """The message has the first unexpected names, and the number of the other ones."""
    saved(tmp_path, Classifier)
    retensor(tmp_path, lambda tensors: {"loss.weight": torch.ones(2)}
             | {f"net.{name}": tensor for name, tensor in tensors.items()})
    said = refused(tmp_path)
    assert "unexpected: loss.weight, net.bert.embeddings.LayerNorm.bias, " in said and len(said) < 1200
    assert said.index("unexpected: ") < said.index("and 37 more; missing: bert.") < said.index("and 36 more")
    saved(tmp_path)
    retensor(tmp_path, lambda tensors: {f"{name}_q": tensor for name, tensor in tensors.items()})
    assert "has no mlm head: unexpected: bert.embeddings.LayerNorm.bias_q, " in refused(tmp_path)


# --- values ---

@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_is_named(value, tmp_path):
    saved(tmp_path)

    def damage(tensors):
        tensors["bert.encoder.layer.1.output.dense.weight"][3, 3] = value
        tensors["cls.predictions.bias"][0] = value
        return tensors
    retensor(tmp_path, damage)
    assert ("bert.encoder.layer.1.output.dense.weight, cls.predictions.bias holds values that are not finite"
            in refused(tmp_path))
    # an encoder does not use the other tensor
    assert "layer.1.output.dense.weight holds" in refused(tmp_path, "encoder")


def test_large_finite_values_load(tmp_path):
    model = saved(tmp_path)
    with torch.no_grad():
        model.encoder.word.weight.fill_(3e38)  # whose sum is infinite
    save(model, tmp_path)
    assert same(load(tmp_path), model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("wrap", [torch.nn.Parameter, torch.Tensor.clone])
def test_a_bin_of_other_precisions_or_of_parameters(dtype, wrap, tmp_path):
    model = saved(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save({name: wrap(tensor.to(dtype)) for name, tensor in tensors.items()},
               tmp_path / "pytorch_model.bin")
    loaded = load(tmp_path, legacy_bin=True)
    assert same(loaded, model.to(dtype).float())
    assert all(p.is_leaf and p.grad_fn is None for p in loaded.parameters())


# --- files that are something else ---

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
PAGE = b"\n<!DOCTYPE html>\n<html>"


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "config.json"])
def test_a_pointer_or_a_page_in_place_of_a_file(name, tmp_path):
    saved(tmp_path)
    if name == "pytorch_model.bin":
        (tmp_path / "model.safetensors").unlink()
    for content, why in ((POINTER, "git lfs pull"), (PAGE, "is a saved web page")):
        (tmp_path / name).write_bytes(content)
        said = refused(tmp_path, legacy_bin=True)
        assert said.startswith(str(tmp_path / name)) and why in said


class Whole(torch.nn.Linear):
    """A module that is pickled as a whole, with its class."""


@pytest.mark.parametrize("content, why", [
    (Whole(2, 2), r"it would run \S+\.Whole, and minibert runs no code from a file; .*model\.state_dict\(\)"),
    ({"a": pickle.dumps}, "it would run pickle.dumps"),
    ({"epoch": 3, "state_dict": {"a": torch.ones(1)}, "optimizer": {}},
     r"training checkpoint: its tensors are under 'state_dict', 'optimizer'; .*\['state_dict'\]"),
    ([torch.ones(1)], "is not a dictionary of tensors"), ({"a": 1}, "is not a dictionary of tensors")])
def test_a_pickle_of_something_else(content, why, tmp_path):
    path = tmp_path / "pytorch_model.bin"
    torch.save(content, path)
    with pytest.raises(UserError, match=why) as caught:
        read_bin(path)
    said = str(caught.value)
    assert said.startswith(str(path)) and "\n" not in said
    assert not [word for word in ("safe_globals", "Re-running", "to `False`", "arbitrary") if word in said]


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04zz", b"\x80\x02zz"])
def test_a_damaged_pickle(content, tmp_path):
    (tmp_path / "x.bin").write_bytes(content)
    with pytest.raises(UserError, match="x.bin is damaged, or was not written by torch.save; download it"):
        read_bin(tmp_path / "x.bin")


# --- folders that are something else ---

@pytest.mark.parametrize("files, why", [
    (["bert_config.json", "bert_model.ckpt.index"],
     "holds no config.json; it holds bert_config.json, bert_model"),
    (["adapter_config.json", "adapter_model.safetensors"],
     "holds no config.json; it holds adapter_config.json"),
    (["0_Transformer/config.json", "modules.json"],
     "holds no config.json; it holds 0_Transformer, modules.json"),
    (["snapshots/abc/config.json", "refs/main"], "holds no config.json; it holds refs, snapshots$"),
    (["config.json", "tf_model.h5"],
     "no model.safetensors, which transformers can make from other formats; it holds config.json, tf_"),
    ([], "holds no config.json; it holds no file$"),
    (["README.md", *"abcdefghijk"], "holds no config.json; it holds README.md, .* and others$"),
])
def test_a_folder_of_something_else_says_what_it_holds(files, why, tmp_path):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match=why):
        load(tmp_path)


def test_a_shard_that_is_missing_is_named(tmp_path):
    saved(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(
        {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}))
    assert ("holds no model-00001-of-00002.safetensors, which model.safetensors.index.json names"
            in refused(tmp_path))
