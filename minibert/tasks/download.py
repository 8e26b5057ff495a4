"""Downloads the official files of the data sets, checks the sha256 of each file, and unpacks the archives.

A file is written as NAME.partial and gets its final name only if its sha256 is right. An archive is unpacked
into a hidden folder that is renamed at the end. So every file or folder with its final name is complete. The
sha256 of every file is known, so it does not matter from which address a file comes, and one address uses
http without encryption. The sha256 proves that an archive is the one of its authors, so Python's own
functions may unpack it without more checks.
"""

import http.client
import os
import shutil
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

from minibert.common.console import Progress
from minibert.common.disk import disk_errors, place_for, sha256_of, writing
from minibert.common.errors import UserError
from minibert.tasks.datasets import DATA_SETS, GLUE, File

CHUNK = 1 << 16
TIMEOUT = 30  # an attempt ends if no byte arrives for this number of seconds
ATTEMPTS = 4  # the number of attempts for each address
PAUSE = 1.0  # the pause before the second attempt in seconds; each later pause is twice as long
USER_AGENT = "Mozilla/5.0 (compatible; minibert)"  # wikitext.smerity.com refuses the default name of urllib


def download(names: Iterable[str], out: str | Path, base_url: str | None = None) -> None:
    """Downloads the data sets `names` into `out`, in the folders of the official downloads. `glue` means all
    data sets of GLUE.

    Folders that are not empty and files with the right sha256 are kept. `base_url` replaces the scheme and
    the host of every address. Prints one line for each file to stdout, and the progress to stderr.
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
    """Downloads a file to `out` if it is not there. An archive is also unpacked. Returns the path of the file
    or of the unpacked folder, and whether it is new.
    """
    archive = out / file.path
    if not file.folder:
        return archive, fetch(file, archive, base_url)
    folder = archive.parent / file.folder
    if folder.is_dir() and any(folder.iterdir()):
        return folder, False
    place_for(folder)  # raises the error before the download and not after it
    fetch(file, archive, base_url)
    unpack(archive, file.folder)
    return folder, True


def fetch(file: File, target: Path, base_url: str | None = None) -> bool:
    """Downloads one file to `target`. Returns False if the file is already there.

    The addresses are tried one after another. Each attempt continues the partial file of an earlier attempt
    or run. A complete download with a wrong sha256 is removed. If `target` already exists with a wrong
    sha256, `UserError` is raised, and the file is kept, because it may belong to the user.
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
        for attempt in range(ATTEMPTS):
            failure, again = _attempt(url, file, partial)
            if not failure:
                with disk_errors(target):
                    os.replace(partial, target)
                return True
            if not again:
                break
            print(f"{target.name}: {failure}", file=sys.stderr, flush=True)
            time.sleep(PAUSE * 2 ** attempt)
        failures.append(f"{url}: {failure}")
    raise UserError(f"{target.name} could not be downloaded ({'; '.join(failures)}); run again later, which "
                    f"goes on where this stopped, or download it by hand, put it at {target} and run again")


def _attempt(url: str, file: File, partial: Path) -> tuple[str, bool]:
    """Makes one attempt to complete `partial`. Returns the reason why the attempt failed, or "" if `partial`
    is now the right file, and whether another attempt is useful.
    """
    begun = _size(partial)
    try:
        if begun < file.size:
            _request(url, file, partial, begun)
    except (OSError, ValueError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
            return f"HTTP {error.code} {error.reason}", error.code >= 500 or error.code in (408, 429)
        reason = getattr(error, "reason", error)  # urllib puts the original error into `reason`
        return getattr(reason, "strerror", None) or str(reason) or type(reason).__name__, True
    if _size(partial) < file.size:
        return f"the connection was cut after {_size(partial):,} of {file.size:,} bytes", True
    found = sha256_of(partial)
    if found == file.sha256:
        return "", False
    with disk_errors(partial):
        partial.unlink()
    # A file that two requests wrote may mix two versions. So it is downloaded again in one request.
    return (f"what came is not the official file, with the sha256 {found} instead of {file.sha256}, and was "
            "removed"), begun > 0


def _request(url: str, file: File, partial: Path, begun: int) -> None:
    """Requests the bytes that are missing in `partial`, which has `begun` bytes, and appends them."""
    headers = {"User-Agent": USER_AGENT} | ({"Range": f"bytes={begun}-"} if begun else {})
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as response:
        have = begun if response.status == 206 else 0  # with status 200 the server sends the whole file
        with (Progress(partial.name.removesuffix(".partial"), file.size / 1e6, "MB", have / 1e6) as progress,
              writing(partial, "ab" if have else "wb", partial) as write):
            while have <= file.size and (data := response.read(CHUNK)):
                write(data)
                have += len(data)
                progress(len(data) / 1e6)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def unpack(archive: Path, folder: str) -> None:
    """Unpacks `folder` from a .zip or .tar.gz file and puts it beside the archive. The folder is complete or
    does not exist.

    Other contents of the archive are left out.
    """
    target = place_for(archive.parent / folder)
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder}.", dir=target.parent))
    print(f"unpacking {archive.name}", file=sys.stderr, flush=True)
    # tarfile has filters since Python 3.11.4.
    safe = {"filter": "data"} if archive.suffix == ".gz" and hasattr(tarfile, "data_filter") else {}
    try:
        with disk_errors(target):
            try:
                shutil.unpack_archive(archive, temporary, **safe)
            except Exception as error:  # a damaged archive can raise anything
                if getattr(error, "errno", None):
                    raise  # disk_errors reports errors of the disk
                raise UserError(f"{archive} cannot be unpacked ({error}); delete it and run again") from None
            if not (temporary / folder).is_dir():
                raise UserError(f"{archive} holds no folder {folder}")
            if target.is_dir():
                target.rmdir()  # place_for has checked that the folder is empty
            os.rename(temporary / folder, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
