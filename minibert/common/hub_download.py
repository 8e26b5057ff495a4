"""Where a model is: in a folder here, or on the hub, from where it is downloaded into a folder once.

note: no torch in here, so that a process that only tokenises does not pay for it.
"""

import re
from pathlib import Path

from minibert.common.errors import UserError

CONFIG_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "added_tokens.json")
SAFETENSORS_FILES = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
BIN_FILES = ("pytorch_model.bin", "pytorch_model-*-of-*.bin", "pytorch_model.bin.index.json")


def local_folder(name: str | Path, weights: bool = True) -> Path:
    """The folder itself, or the one in the Hugging Face cache
    into which the hub model of that name was downloaded.

    `weights=False` fetches config.json and the tokenizer only. The environment variables of
    huggingface_hub count (HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE ...). `UserError` where there is
    neither a folder nor such a model, or the folder is that of a run, whose model is one below.
    """
    if Path(name).is_dir():
        if (Path(name) / "summary.json").exists() and (Path(name) / "model" / "config.json").exists():
            raise UserError(f"{name} is the folder of a run; its model is {Path(name) / 'model'}")
        return Path(name)
    if Path(name).exists() or not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", str(name)):
        raise UserError(f"{name} is not a folder, nor a model's name on the hub")
    import huggingface_hub
    from huggingface_hub.errors import RepositoryNotFoundError

    def fetch(*patterns: str) -> Path:
        return Path(huggingface_hub.snapshot_download(str(name), allow_patterns=list(patterns)))

    try:
        folder = fetch(*CONFIG_FILES, *(SAFETENSORS_FILES if weights else ()))
        if weights and not any(folder.glob("model*.safetensors")):
            folder = fetch(*CONFIG_FILES, *BIN_FILES)
        return folder
    except RepositoryNotFoundError:
        raise UserError(f"there is no folder {name} here, and no model of that name on the hub that you can "
                        "read") from None
    except Exception as error:  # whatever the HTTP client and the disk may raise
        why = str(error).strip().splitlines()
        raise UserError(f"there is no folder {name} here, and it could not be downloaded from the hub "
                        f"({why[0] if why else type(error).__name__})") from None
