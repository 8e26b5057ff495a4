"""Fetches the official files of the data sets, checks each against its sha256, and has the archives unpacked.

A file grows under the name NAME.partial and gets its own only when its sha256 is right, and an archive is
unpacked into a hidden folder that is renamed at the end: what has its final name is complete. Since every sum
is known, it does not matter which address a file came from, or that one of them is plain http.
"""

import http.client
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

from minibert.common.console import Progress
from minibert.common.disk import disk_errors, place_for, sha256_of, writing
from minibert.common.errors import UserError
from minibert.tasks.archives import unpack
from minibert.tasks.datasets import DATA_SETS, GLUE, File

CHUNK = 1 << 16
TIMEOUT = 30  # seconds without a byte
ATTEMPTS = 4  # in a row that bring nothing new, for each address
PAUSE = 1.0  # seconds before the next attempt, doubled each time
USER_AGENT = "Mozilla/5.0 (compatible; minibert)"  # wikitext.smerity.com refuses urllib's own


def download(names: Iterable[str], out: str | Path, base_url: str | None = None) -> None:
    """Lays the data sets of these names, or `glue` for all of GLUE, below `out` as the official downloads do.

    What is there is left alone: a folder that is not empty, and a file whose sha256 is right. `base_url`
    takes the place of scheme and host in every address. One line a file on stdout, progress on stderr.
    """
    names = list(names)
    unknown = [name for name in names if name not in DATA_SETS and name != "glue"]
    if unknown:
        raise UserError(f"there is no data set {unknown[0]!r}; known: glue, {', '.join(DATA_SETS)}")
    for name in dict.fromkeys(each for name in names for each in (GLUE if name == "glue" else (name,))):
        for file in DATA_SETS[name].files:
            with disk_errors(Path(out) / file.path, "read"):
                place, new = obtain(file, Path(out), base_url)
            print(f"{place}: {'ready' if new else 'already there'}", flush=True)


def obtain(file: File, out: Path, base_url: str | None = None) -> tuple[Path, bool]:
    """Sees to it that a file, or an archive's folder, is below `out`: its path, and whether it is new."""
    archive = out / file.path
    if not file.folder:
        return archive, fetch(file, archive, base_url)
    folder = archive.parent / file.folder
    if folder.is_dir() and any(folder.iterdir()):
        return folder, False
    place_for(folder)  # what cannot be unpacked is said before it is downloaded
    fetch(file, archive, base_url)
    unpack(archive, file.folder)
    return folder, True


def fetch(file: File, target: Path, base_url: str | None = None) -> bool:
    """Downloads one file to `target`; False if it is there already.

    Each address is tried in turn, from where an earlier attempt or run stopped. What is complete but has
    another sha256 is removed. A wrong file that was at `target` before is an error and stays: it may be the
    user's own.
    """
    if target.exists():
        if sha256_of(target) == file.sha256:
            return False
        raise UserError(f"{target} exists but is not the official file, which has the sha256 {file.sha256}; "
                        "move it away and run again")
    partial = target.with_name(target.name + ".partial")
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    failures = []
    for url in file.urls:
        if base_url is not None:
            url = base_url.rstrip("/") + urlsplit(url).path
        failure = _fetch_from(url, file, partial)
        if not failure:
            with disk_errors(target):
                os.replace(partial, target)
            return True
        failures.append(f"{url}: {failure}")
    raise UserError(f"{target.name} could not be downloaded ({'; '.join(failures)}); run again later, which "
                    f"goes on where this stopped, or download it by hand, put it at {target} and run again")


def _fetch_from(url: str, file: File, partial: Path) -> str:
    """Completes `partial` from one address: "" when its sha256 is right, else why it is not."""
    name, best, fruitless = partial.name.removesuffix(".partial"), _size(partial), 0
    while True:
        begun = _size(partial)
        try:
            failure = "" if begun >= file.size else _request(url, file, partial, begun)
            if failure:
                return failure
            if _size(partial) < file.size:
                failure = f"the connection was cut after {_size(partial):,} of {file.size:,} bytes"
            else:
                found = sha256_of(partial)
                if found == file.sha256:
                    return ""
                failure = (f"what came is not the official file, with the sha256 {found} instead of "
                           f"{file.sha256}, and was removed")
                _remove(partial)
                if not begun:
                    return failure
                # it was put together of parts, perhaps of two versions: once more, in one piece
        except urllib.error.HTTPError as error:
            failure = f"HTTP {error.code} {error.reason}"
            error.close()
            if error.code == 416:  # what we have is longer than the file there
                _remove(partial)
            elif error.code < 500 and error.code not in (408, 429):  # trying again would not help
                return failure
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)  # what urllib wraps
            failure = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
        have = _size(partial)
        best, fruitless = max(best, have), 0 if have > best else fruitless + 1
        if fruitless >= ATTEMPTS:
            return failure
        print(f"{name}: {failure}; trying again", file=sys.stderr, flush=True)
        time.sleep(PAUSE * 2 ** fruitless)


def _request(url: str, file: File, partial: Path, begun: int) -> str:
    """One request for what `partial` lacks after `begun` bytes: "", or why this is not the file at all."""
    headers = {"User-Agent": USER_AGENT} | ({"Range": f"bytes={begun}-"} if begun else {})
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as response:
        resumed = response.status == 206
        if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {begun}-"):
            _remove(partial)  # another part than asked for: from the start, then
            return ""
        have = begun if resumed else 0  # a server that knows no ranges answers 200 with all of it
        if response.length is not None and have + response.length != file.size:
            return f"the file there has {have + response.length:,} bytes instead of {file.size:,}"
        with (Progress(partial.name.removesuffix(".partial"), file.size / 1e6, "MB", have / 1e6) as progress,
              writing(partial, "ab" if resumed else "wb", partial) as write):
            while have <= file.size and (data := response.read(CHUNK)):
                write(data)
                have += len(data)
                progress(len(data) / 1e6)
    return ""


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _remove(path: Path) -> None:
    with disk_errors(path):
        path.unlink(missing_ok=True)
