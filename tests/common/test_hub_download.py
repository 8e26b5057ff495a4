"""What is fetched of a model on the hub: the small files that change its results, and its weights once.

    python -m pytest tests/common/test_hub_download.py
"""

import huggingface_hub
import pytest
from huggingface_hub.utils import filter_repo_objects

from minibert.common.errors import UserError
from minibert.common.hub_download import local_folder

SMALL = ["config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json",
         "added_tokens.json", "modules.json", "1_Pooling/config.json", "2_Dense/config.json",
         "sentence_bert_config.json", "config_sentence_transformers.json"]
OTHERS = ["README.md", "tf_model.h5", "flax_model.msgpack", "rust_model.ot", "onnx/model.onnx",
          "openvino/model.bin", "model.fp16.safetensors", "onnx/config.json", "checkpoint-500/config.json",
          "training_args.bin",
          "checkpoint-500/model.safetensors", "coreml/model.mlpackage", "data/train.json"]


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub whose model has the files in the list; names what is fetched."""
    files, fetched = [*SMALL, *OTHERS], []

    def snapshot_download(name, allow_patterns):
        chosen = list(filter_repo_objects(files, allow_patterns=allow_patterns))
        for file in chosen:
            (tmp_path / file).parent.mkdir(exist_ok=True)
            (tmp_path / file).write_text("")
        fetched.extend(file for file in chosen if file not in fetched)
        return str(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return files, fetched


@pytest.mark.parametrize("weights, fetched", [
    (["model.safetensors", "pytorch_model.bin"], ["model.safetensors"]),
    (["pytorch_model.bin"], ["pytorch_model.bin"]),
    (["model.safetensors", "2_Dense/pytorch_model.bin"], ["model.safetensors", "2_Dense/pytorch_model.bin"]),
    (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
      "model.safetensors.index.json"],) * 2,
])
def test_what_is_fetched(hub, weights, fetched):
    hub[0].extend(weights)
    local_folder("someone/model")
    assert sorted(hub[1]) == sorted(SMALL + fetched)


def test_a_tokenizer_alone_fetches_no_weights(hub):
    hub[0].extend(["model.safetensors", "pytorch_model.bin", "2_Dense/model.safetensors"])
    local_folder("someone/model", weights=False)
    assert sorted(hub[1]) == sorted(SMALL)


def test_a_name_that_is_none(hub):
    with pytest.raises(UserError, match="is neither a folder nor the name of a model"):
        local_folder("../elsewhere")
    assert not hub[1]
