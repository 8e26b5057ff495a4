"""Small files read, files that are whole or not there, and what goes wrong on a disk as one sentence."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from minibert.common.errors import UserError


@contextlib.contextmanager
def disk_errors(path: Path, verb: str = "written") -> Iterator[None]:
    """Makes what goes wrong on the disk a `UserError`, apart from what goes wrong on the network."""
    try:
        yield
    except BrokenPipeError:
        raise  # of the terminal or of what reads the output, not of a disk
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"the disk is full, {path} cannot be written; make room and run again, which "
                            "goes on with what is there") from None
        raise UserError(f"{path} cannot be {verb} ({error.strerror or error})") from None


@contextlib.contextmanager
def writing(path: Path, mode: str, name: Path) -> Iterator[Callable[[bytes], None]]:
    """Opens a file and gives the function that writes to it; what the disk does wrong is a `UserError`."""
    with disk_errors(name):
        file = open(path, mode)

    def write(data: bytes) -> None:
        with disk_errors(name):
            file.write(data)
    try:
        yield write
    finally:
        with disk_errors(name):
            file.close()  # writes what is left


def fsync(path: Path) -> None:
    """Flushes a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Writes to a temporary name, flushes and renames: the file is whole or as before."""
    partial = path.with_name(path.name + ".partial")
    with disk_errors(path):
        partial.write_text(text, encoding="utf-8", newline="\n")
        fsync(partial)
        os.replace(partial, path)
        fsync(path.parent)


def write_json(path: Path, value) -> None:
    """`write_text` of an indented JSON document."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def place_for(folder: Path) -> Path:
    """Where a folder is to be renamed to `folder`, links resolved; `UserError` unless it is new or empty.

    Nor can a mount point be replaced, which would show only at the end of all the work.
    """
    place = Path(os.path.realpath(folder))
    with disk_errors(folder):
        if os.path.lexists(place) and not (place.is_dir() and not any(place.iterdir())):
            raise UserError(f"{folder} exists already; name another folder, or remove it first")
    if os.path.ismount(place):
        raise UserError(f"{folder} is a mount point, which no folder can replace; name a folder inside it")
    return place


@contextlib.contextmanager
def folder_within(folder: Path) -> Iterator[Path]:
    """A new folder inside `folder`, which is made, too; removed at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    for left_over in folder.glob(".saving-*"):  # by a process that was killed
        shutil.rmtree(left_over)
    made = Path(tempfile.mkdtemp(prefix=".saving-", dir=folder))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def read_text(path: Path) -> str:
    """A small UTF-8 file as text with '\\n' line ends; errors name the file.

    What is no file, like a link to a device that never ends, is an error, too.
    """
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is not a file")
        with open(path, encoding="utf-8-sig") as file:
            return file.read()
    except UnicodeDecodeError as error:
        line = path.read_bytes()[:error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line}: not UTF-8 text") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def check_is_the_file(path: Path, start: bytes) -> None:
    """`UserError` where a file that was downloaded is only a git-LFS pointer or a web page about it."""
    if start.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is not the file itself but a git-LFS pointer to it; fetch it with `git lfs pull`, "
                        "or download it again")
    if start.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        raise UserError(f"{path} is a saved web page, not the file itself; download it again, from an address with "
                        "/resolve/ in place of /blob/")


def read_json(path: Path) -> dict:
    """A json object from a file; errors name the file and line."""
    text = read_text(path)
    check_is_the_file(path, text[:100].encode())
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not valid json ({error.msg})") from None
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, thousands of brackets
        raise UserError(f"{path}: json that cannot be read ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a json object")
    return content


def sha256_of(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with disk_errors(path, "read"), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
