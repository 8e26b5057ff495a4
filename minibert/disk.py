"""Writing files of which the disk may have too little room: what goes wrong there is one clear sentence."""

import contextlib
import errno
from collections.abc import Callable, Iterator
from pathlib import Path

from minibert.errors import UserError


@contextlib.contextmanager
def disk_errors(path: Path, verb: str = "written") -> Iterator[None]:
    """Makes what goes wrong on the disk a `UserError`, apart from what goes wrong on the network."""
    try:
        yield
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
