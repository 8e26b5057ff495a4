"""Files that are whole or not there, and what goes wrong on a disk as one clear sentence."""

import contextlib
import errno
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from minibert.errors import UserError


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
