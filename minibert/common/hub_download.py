"""Finds the folder of a model on the disk, or downloads the model from the Hugging Face hub. This module does
not import torch, so that a process that only tokenises starts fast.
"""

import re
from pathlib import Path

from minibert.common.errors import UserError

CONFIG_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "added_tokens.json",
                "special_tokens_map.json", "modules.json", "sentence_*_config.json",
                "config_sentence_transformers.json", "[0-9]_*/config.json")
SAFETENSORS_FILES = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
BIN_FILES = ("pytorch_model.bin", "pytorch_model-*-of-*.bin", "pytorch_model.bin.index.json")
# the files with the weights of dense layers, which some sentence encoders have after the BERT encoder
DENSE_FILES = ("[1-9]_*/model.safetensors", "[1-9]_*/pytorch_model.bin")


def local_folder(name: str | Path, weights: bool = True) -> Path:
    """Returns the path of a model's folder. `name` is this path, or the name of a model on the hub. A model
    on the hub is downloaded into the Hugging Face cache. `weights=False` downloads only the configuration and
    the tokenizer. Raises `UserError` if there is no folder or model named `name`, or if the download fails.
    Also raises `UserError` if `name` is the folder of a run, whose model is in the subfolder model/.
    """
    if Path(name).is_dir():
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
    # every exception is caught, because the HTTP client raises exceptions of many classes
    except Exception as error:
        why = str(error).strip().splitlines()
        raise UserError(f"there is no folder {name} here, and it could not be downloaded from the hub "
                        f"({why[0] if why else type(error).__name__})") from None


def what_it_holds(folder: Path, most: int = 10) -> str:
    """Returns the end of an error message, which names at most `most` files and folders in `folder`."""
    names = sorted(path.name for path in folder.glob("*"))
    shown = ", ".join(names[:most]) or "no file"
    return f"; it holds {shown} and others" if len(names) > most else f"; it holds {shown}"
