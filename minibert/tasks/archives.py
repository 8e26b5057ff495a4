"""Unpacks archives of others:
nothing is written outside the folder, and the folder is there whole or not at all.
"""

import os
import shutil
import stat
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial as bind
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple

from minibert.common.disk import disk_errors, place_for, writing
from minibert.common.errors import UserError

CHUNK = 1 << 16
MAX_UNPACKED = 4 << 30  # bytes of one archive, several times what the largest here (MNLI) needs


class Member(NamedTuple):
    """Something in an archive; `kind` is file, folder, or other, which is a link or a device."""
    name: str
    kind: str
    size: int
    open: Callable


def unpack(archive: Path, folder: str, limit: int = MAX_UNPACKED) -> None:
    """Unpacks `folder` of a .zip or .tar.gz beside the archive, where it appears complete or not at all.

    Whatever else lies in the archive is left out. Nothing at all is unpacked if it holds an absolute path,
    one with `..`, a link or a device (no data set has any), or in sum more than `limit` bytes.
    """
    target = place_for(archive.parent / folder)
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder}.", dir=target.parent))
    print(f"unpacking {archive.name}", file=sys.stderr, flush=True)
    try:
        # note: not shards.new_folder, which flushes file by file; IMDb has 100,000
        total = 0
        for member in _members(archive, temporary):
            path, total = PurePosixPath(member.name), total + member.size
            why = ("leads out of the folder" if not _stays_inside(member.name) else
                   "is a link or a device" if member.kind == "other" else
                   f"makes it more than {limit:,} bytes in all" if total > limit else "")
            if why:
                raise UserError(f"{archive} is not unpacked: its member {member.name!r} {why}")
            if path.parts[:1] == (folder,):
                _write(member, temporary / path, target)
        if not (temporary / folder).is_dir():
            raise UserError(f"{archive} holds no folder {folder}")
        with disk_errors(target):
            if target.is_dir():
                target.rmdir()  # empty, as place_for saw
            os.rename(temporary / folder, target)
    except UserError:
        raise
    except Exception as error:  # a damaged archive can raise anything
        why = str(error) or type(error).__name__
        raise UserError(f"{archive} cannot be unpacked ({why}); delete it and run again") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _members(archive: Path, folder: Path) -> Iterator[Member]:
    """What is in an archive, in its order; each must be read before the next."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as file:
            for info in file.infolist():
                mode = stat.S_IFMT(info.external_attr >> 16)  # 0 where it was not packed on Unix
                kind = ("other" if mode not in (0, stat.S_IFREG, stat.S_IFDIR) else
                        "folder" if info.is_dir() else "file")
                yield Member(info.filename, kind, info.file_size, bind(file.open, info))
        return
    # Python's own check, on top of ours; before 3.11.4 there was none
    checked = getattr(tarfile, "data_filter", lambda member, _: member)
    with tarfile.open(archive, "r|gz") as file:
        for info in file:
            kind = ("folder" if info.isdir() else
                    "file" if info.isreg() and not info.issparse() else "other")
            yield Member(info.name, kind, info.size,
                         lambda info=info: file.extractfile(checked(info, str(folder))))


def _stays_inside(name: str) -> bool:
    windows = PureWindowsPath(name)  # knows / and \ as separators, and drives
    return not (windows.anchor or ".." in windows.parts)


def _write(member: Member, path: Path, target: Path) -> None:
    """Writes one member; errors name the folder that was to be, not the temporary one."""
    with disk_errors(target):
        (path if member.kind == "folder" else path.parent).mkdir(parents=True, exist_ok=True)
    if member.kind == "folder":
        return
    with member.open() as source, writing(path, "wb", target) as write:
        while data := source.read(CHUNK):
            write(data)
