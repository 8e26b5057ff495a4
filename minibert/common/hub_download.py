"""Finds the folder of a model. A model of the Hugging Face hub is downloaded once and then read from the
cache.

This module does not import torch, because a process that only tokenises does not need torch.
"""

import re
from pathlib import Path

from minibert.common.errors import UserError

CONFIG_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "added_tokens.json",
                "special_tokens_map.json", "modules.json", "sentence_*_config.json",
                "config_sentence_transformers.json", "[0-9]_*/config.json",
                # The last two files belong to formats that minibert does not read. These two files are
                # downloaded so that the error message can name the format (`what_else`).
                "adapter_config.json", "bert_config.json")
SAFETENSORS_FILES = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
BIN_FILES = ("pytorch_model.bin", "pytorch_model-*-of-*.bin", "pytorch_model.bin.index.json")
# these files have the weights of the dense layers that a sentence encoder may have
DENSE_FILES = ("[1-9]_*/model.safetensors", "[1-9]_*/pytorch_model.bin")


def local_folder(name: str | Path, weights: bool = True) -> Path:
    """Returns the path of a model's folder. `name` is this path, or the name of a model on the hub. A model
    of the hub is downloaded, and its folder in the Hugging Face cache is returned.

    `weights=False` downloads only config.json and the tokenizer. The environment variables of huggingface_hub
    are used (HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE ...). Raises `UserError` if there is no folder or model
    with this name, or if `name` is the folder of a run. The model of a run is in the subfolder model/.
    """
    if Path(name).is_dir():
        if (Path(name) / "snapshots").is_dir():
            inside = sorted(path for path in (Path(name) / "snapshots").iterdir() if path.is_dir())
            raise UserError(f"{name} is a model's folder in the Hugging Face cache; the files of the model "
                            "are in a subfolder"
                            + (f": {inside[-1]}" if inside else ", but its snapshots/ is empty"))
        if (Path(name) / "summary.json").exists() and (Path(name) / "model" / "config.json").exists():
            raise UserError(f"{name} is the folder of a run; its model is {Path(name) / 'model'}")
        return Path(name)
    if Path(name).exists() or not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", str(name)):
        raise UserError(f"{name} is neither a folder nor the name of a model on the hub")
    import huggingface_hub
    from huggingface_hub.errors import RepositoryNotFoundError

    def fetch(*patterns: str) -> Path:
        return Path(huggingface_hub.snapshot_download(str(name), allow_patterns=list(patterns)))

    try:
        folder = fetch(*CONFIG_FILES, *((*SAFETENSORS_FILES, *DENSE_FILES) if weights else ()))
        if weights and not any(folder.glob("model*.safetensors")):
            folder = fetch(*CONFIG_FILES, *BIN_FILES, *DENSE_FILES)
        return folder
    except RepositoryNotFoundError:
        raise UserError(f"there is no folder {name} here, and no model of this name on the hub that you may "
                        "read") from None
    # every exception is caught, because the HTTP client and the disk raise many different classes
    except Exception as error:
        why = str(error).strip().splitlines()
        raise UserError(f"there is no folder {name} here, and it could not be downloaded from the hub "
                        f"({why[0] if why else type(error).__name__})") from None


def what_else(folder: Path) -> str:
    """Returns the reason why the model in this folder cannot be loaded, or "" if no reason is known. The text
    is added to the end of an error message.
    """
    def holds(*names: str) -> str | None:
        return next((path.name for name in names for path in sorted(folder.glob(name))), None)

    if (folder / "0_Transformer").is_dir():
        return f"; it is a sentence encoder in the old layout; its model is in {folder / '0_Transformer'}"
    if holds("adapter_config.json") and not holds("model*.safetensors", "pytorch_model*.bin"):
        return ("; it is an adapter to another model, which adapter_config.json names: load both with peft, "
                "call merge_and_unload(), and save the result")
    if not holds("config.json") and (found := holds("bert_config.json")):
        ending = ("and the checkpoint is a TensorFlow file: convert it with transformers"
                  if holds("*.ckpt*") else "so copy it to config.json")
        return f"; {found} is the old name of config.json, {ending}"
    if holds("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin*"):
        return ""
    if found := holds("model.*.safetensors", "pytorch_model.*.bin"):
        plain = "model.safetensors" if found.endswith("safetensors") else "pytorch_model.bin"
        return f"; {found} is a variant of the weights: rename it to {plain} to load it"
    if found := holds("model-*-of-*.safetensors", "pytorch_model-*-of-*.bin"):
        return f"; {found} is one part of the weights; download the index file too, which lists all parts"
    if found := holds("tf_model*.h5", "*.ckpt*", "flax_model*.msgpack", "rust_model.ot", "*.onnx",
                      "onnx/*.onnx"):
        return (f"; {found} is not a PyTorch file: convert it with transformers (from_tf or from_flax, "
                "version 4), or look for a copy in safetensors" if "onnx" not in found else
                f"; {found} is for ONNX Runtime only: look for a copy in safetensors")
    return ""
