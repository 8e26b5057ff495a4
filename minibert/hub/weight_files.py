"""Functions that read the weights of a model folder, and a function that writes weights to a file."""

import hashlib
import os
import re
import warnings
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from minibert.common.disk import check_is_the_file, disk_errors, fsync, read_json, sha256_of
from minibert.common.errors import UserError
from minibert.common.hub_download import BIN_FILES, SAFETENSORS_FILES, local_folder, what_it_holds


def read_tensors(folder: Path, legacy_bin: bool = False) -> dict[str, Tensor]:
    """Returns all tensors of a model folder, as a dict from their names in the files. If there is no
    safetensors file, pickled .bin files are read with `legacy_bin`, and refused without it.
    """
    for stem, ending, read in (("model", ".safetensors", read_safetensors),
                               ("pytorch_model", ".bin", read_bin)):
        whole, index = folder / f"{stem}{ending}", folder / f"{stem}{ending}.index.json"
        if not (whole.exists() or index.exists()):
            continue
        if ending == ".bin" and not legacy_bin:
            raise UserError(f"{folder} holds only pickled weights (.bin), which are not loaded; convert them "
                            f"once: python weights/convert.py {folder} TARGET")
        return read(whole) if whole.exists() else _read_shards(index, read)
    raise UserError(f"{folder} holds no weights: there is no model.safetensors, which transformers can make "
                    f"from other formats{what_it_holds(folder)}")


def _read_shards(index: Path, read) -> dict[str, Tensor]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise UserError(f"{index}: weight_map is not an object from tensors to files")
    tensors = {}
    for file in sorted(set(weight_map.values())):
        if Path(file).name != file:  # a name with "/" could lead to any file of the machine
            raise UserError(f"{index}: {file!r} is not the name of a file in the same folder")
        shard = read(existing(index.parent / file, f"{file}, which {index.name} names"))
        absent = [name for name, home in weight_map.items() if home == file and name not in shard]
        if absent:
            raise UserError(f"{index.parent / file} lacks {', '.join(absent)}, which {index.name} lists")
        tensors |= shard
    return tensors


def weights_hash(name: str | Path) -> str:
    """Returns a hash of the names and contents of a model's weight files, as 16 hexadecimal digits."""
    folder, digest = local_folder(name), hashlib.sha256()
    for pattern in (*SAFETENSORS_FILES, *BIN_FILES):
        for file in sorted(folder.glob(pattern)):
            digest.update(f"{file.name} {sha256_of(file)} ".encode())
    return digest.hexdigest()[:16]


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file and flushes it to the disk. Raises `UserError` if the file cannot be written.
    """
    with disk_errors(path):
        try:
            save_file(tensors, path, metadata)
        except safetensors.SafetensorError as error:  # its message usually has the number of an OSError
            number = re.search(r"(?:os error|code:) (\d+)", str(error))
            raise (OSError(int(number[1]), os.strerror(int(number[1]))) if number else OSError(str(error))
                   ) from None
        fsync(path)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Returns all tensors of one safetensors file. Raises `UserError` if the file is damaged."""
    _check_first_bytes(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}
    except (safetensors.SafetensorError, OSError, ValueError, TypeError, RuntimeError,
            AttributeError) as error:  # the last three: torch does not have the dtype of a tensor
        raise UserError(f"{path} is damaged or is no safetensors file ({error})") from None


def _check_first_bytes(path: Path) -> None:
    """Raises `UserError` if the file is a git-LFS pointer or a web page."""
    with disk_errors(path, "read"), open(path, "rb") as file:
        check_is_the_file(path, file.read(100))


def read_bin(path: Path) -> dict[str, Tensor]:
    """Returns all tensors of one pickled file. Raises `UserError` if the file is damaged, or if it is not a
    dict of plain tensors.
    """
    _check_first_bytes(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # hides torch's warnings about old file formats
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can cause any error
        # torch's own message is not shown, because it recommends running the code in the file
        if code := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise UserError(f"{path} holds more than tensors: reading it would run {code[1]}, and minibert "
                            "runs no code from a file; write the file again with "
                            "torch.save(model.state_dict(), FILE)") from None
        raise UserError(f"{path} is damaged, or was not written by torch.save; download it again") from None
    if isinstance(tensors, dict) and (nested := [key for key, t in tensors.items() if isinstance(t, dict)]):
        raise UserError(f"{path} is a training checkpoint: its tensors are under "
                        f"{', '.join(map(repr, nested[:5]))}; save only the tensors of the model: "
                        f"torch.save(torch.load(FILE, weights_only=True)[{nested[0]!r}], NEW)")
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise UserError(f"{path} is not a dictionary of tensors")
    for name, t in tensors.items():
        # Each element needs bytes of its own. In a damaged file, a million rows can share 4 bytes, and a copy
        # of this tensor would fill the memory.
        if t.layout != torch.strided or t.device.type != "cpu" or t.is_quantized or (
                t.untyped_storage().nbytes() < t.numel() * t.element_size()):
            raise UserError(f"{path}: {name} is not a plain tensor with all its values in the file")
    return tensors


def existing(path: Path, what: str | None = None) -> Path:
    """Returns `path`. Raises `UserError` if there is no file at `path`. The message calls the file `what`
    (None: the file's name).
    """
    if not os.path.isfile(path):  # not Path.is_file, which raises an error if the name is too long
        raise UserError(f"{path.parent} holds no {what or path.name}{what_it_holds(path.parent)}")
    return path
