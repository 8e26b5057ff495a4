"""Reads small files, writes files completely or not at all, and reports errors of the disk."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from minibert.common.errors import UserError

WINDOWS = os.name == "nt"


@contextlib.contextmanager
def disk_errors(path: Path, verb: str = "written") -> Iterator[None]:
    """A context manager that raises `UserError` in place of an OSError in the `with` block. A BrokenPipeError
    stays a BrokenPipeError. `path` and `verb` are the file and the failed action in the message.
    """
    try:
        yield
    except BrokenPipeError:
        raise  # the program that reads this script's output has ended, which is no error of the disk
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"the disk is full, and {path} cannot be written; make room on the disk and run "
                            "the command again") from None
        raise UserError(f"{path} cannot be {verb} ({error.strerror or error})") from None


def fsync(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on the disk."""
    if path.is_dir() and WINDOWS:  # Windows cannot open a folder
        return
    # a file is opened for writing, too, because Windows cannot flush a file that is only open for reading
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Writes a file under a temporary name, flushes it to the disk and renames it to `path`. After a crash,
    `path` has either the whole new text or its old content.
    """
    partial = path.with_name(path.name + ".partial")
    with disk_errors(path):
        partial.write_text(text, encoding="utf-8", newline="\n")
        fsync(partial)
        os.replace(partial, path)
        fsync(path.parent)


def write_json(path: Path, value) -> None:
    """Writes `value` to a file as indented JSON."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def place_for(folder: Path) -> Path:
    """Checks that a new folder can be renamed to the path `folder`. Returns this path with all links
    resolved. Raises `UserError` if the path is a mount point, or exists and is not an empty folder.
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
    """A context manager that makes a temporary folder inside `folder`, and yields the path of the temporary
    folder. At the end of the `with` block, the temporary folder is removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for left_over in folder.glob(".saving-*"):  # temporary folders that killed processes did not remove
        shutil.rmtree(left_over)
    made = Path(tempfile.mkdtemp(prefix=".saving-", dir=folder))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def read_text(path: Path) -> str:
    """Returns the text of a small UTF-8 file, with '\\n' for every line end. Raises `UserError` if the file
    cannot be read or is not UTF-8. A device or a pipe is also refused, because it may have no end.
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
    """Raises `UserError` if a file is a git-LFS pointer or a web page. `start` has the file's first bytes."""
    if start.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is not the file itself but a git-LFS pointer to it; fetch it with `git lfs "
                        "pull`, or download it again")
    if start.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        raise UserError(f"{path} is a saved web page, not the file itself; download it again, from an "
                        "address with /resolve/ in place of /blob/")


def read_json(path: Path) -> dict:
    """Returns the JSON object in a file. Raises `UserError` if the content is not a JSON object."""
    text = read_text(path)
    check_is_the_file(path, text[:100].encode())
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not valid json ({error.msg})") from None
    # json.loads raises RecursionError for thousands of nested brackets, and ValueError for a number with
    # thousands of digits
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: this json cannot be read ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a json object")
    return content


def sha256_of(path: Path) -> str:
    """Returns the sha256 of a file, as a hexadecimal text."""
    with disk_errors(path, "read"), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
