"""Fetches the official files of the data sets, checks each against its sha256, and unpacks the archives.

A file grows under the name NAME.partial and gets its own only when its sha256 is right, and an archive is
unpacked into a hidden folder that is renamed at the end: what has its final name is complete. Since every sum
is known, it does not matter which address a file came from, or that one of them is plain http.
"""

import contextlib
import errno
import hashlib
import http.client
import os
import shutil
import stat
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from functools import partial as bind
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple
from urllib.parse import urlsplit

from minibert.errors import UserError
from minibert.tasks import GLUE_URL, TASKS

CHUNK = 1 << 16
TIMEOUT = 30  # seconds without a byte
ATTEMPTS = 4  # in a row that bring nothing new, for each address
PAUSE = 1.0  # seconds before the next attempt, doubled each time
MAX_UNPACKED = 4 << 30  # bytes of one archive, several times what the largest here (MNLI) needs
USER_AGENT = "Mozilla/5.0 (compatible; minibert)"  # wikitext.smerity.com refuses urllib's own


# ---- what there is -----------------------------------------------------------------------------------------

class File(NamedTuple):
    """One file: where it lies below the output folder, its size and sha256, and its addresses, best first.

    If it is an archive, `folder` is what is unpacked from it, into the folder that the archive lies in.
    """
    path: str
    size: int
    sha256: str
    urls: tuple[str, ...]
    folder: str = ""


class DataSet(NamedTuple):
    """What it is, whose it is and under which terms as far as known, and its files."""
    what: str
    terms: str
    files: tuple[File, ...]


SENTEVAL_URL = "https://dl.fbaipublicfiles.com/senteval/senteval_data/"
SQUAD_URL = "https://rajpurkar.github.io/SQuAD-explorer/dataset/"
SMERITY_URL = "https://wikitext.smerity.com/"  # of WikiText's author; the first home, an S3 bucket, is gone
HUB_URL = "https://huggingface.co/datasets/"


def _glue(task: str, archive: str, size: int, sha256: str) -> tuple[File, ...]:
    return File(f"glue_data/{archive}", size, sha256, (GLUE_URL + archive,), TASKS[task].folder),


def _plain(path: str, size: int, sha256: str, url: str) -> File:
    return File(path, size, sha256, (url,))


# Sizes and sums are those that Hugging Face datasets recorded (dataset_infos.json @040102f1).
DATA_SETS = {
    "cola": DataSet("GLUE CoLA, acceptability", "sentences from linguistics books, for research", _glue(
        "cola", "CoLA.zip", 376_971, "f212fcd832b8f7b435fb991f101abf89f96b933ab400603bf198960dfc32cbff")),
    "sst2": DataSet("GLUE SST-2, sentiment", "Stanford, Rotten Tomatoes reviews, for research", _glue(
        "sst2", "SST-2.zip", 7_439_277, "d67e16fb55739c1b32cdce9877596db1c127dc322d93c082281f64057c16deaa")),
    # as Microsoft has it, with the labels of test; readers.py makes train and dev of it by the list of pairs
    "mrpc": DataSet("GLUE MRPC, paraphrases", "Microsoft Research licence", (
        _plain("glue_data/MRPC/msr_paraphrase_train.txt", 1_047_044,
               "60a9b09084528f0673eedee2b69cb941920f0b8cd0eeccefc464a98768457f89",
               SENTEVAL_URL + "msr_paraphrase_train.txt"),
        _plain("glue_data/MRPC/msr_paraphrase_test.txt", 441_275,
               "a04e271090879aaba6423d65b94950c089298587d9c084bf9cd7439bd785f784",
               SENTEVAL_URL + "msr_paraphrase_test.txt"),
        _plain("glue_data/MRPC/mrpc_dev_ids.tsv", 6_222,
               "971d7767d81b997fd9060ade0ec23c4fc31cbb226a55d1bd4a1bac474eb81dc7",
               GLUE_URL + "mrpc_dev_ids.tsv"))),
    "stsb": DataSet("GLUE STS-B, similarity", "mixed, mostly CC BY-SA 4.0 (its LICENSE.txt)", _glue(
        "stsb", "STS-B.zip", 802_872, "e60a6393de5a8b5b9bac5020a1554b54e3691f9d600b775bd131e613ac179c85")),
    "qqp": DataSet("GLUE QQP, duplicate questions", "Quora's terms, not commercial", _glue(
        "qqp", "QQP-clean.zip", 41_696_084,
        "40e7c862c04eb26ee04b67fd900e76c45c6ba8e6d8fab4f8f1f8072a1a3fbae0")),
    "mnli": DataSet("GLUE MNLI, entailment", "OANC licence, some CC BY(-SA) 3.0 fiction", _glue(
        "mnli", "MNLI.zip", 312_783_507, "e7c1d896d26ed6caf700110645df426cc2d8ebf02a5ab743d5a5c68ac1c83633")),
    "qnli": DataSet("GLUE QNLI v2, answers in sentences", "CC BY-SA 4.0, made from SQuAD", _glue(
        "qnli", "QNLIv2.zip", 10_627_589,
        "e634e78627a29adaecd4f955359b22bf5e70f2cbd93b493f2d624138a0c0e5f5")),
    "rte": DataSet("GLUE RTE, entailment", "for research", _glue(
        "rte", "RTE.zip", 697_150, "6bf86de103ecd335f3441bd43574d23fef87ecc695977a63b82d5efb206556ee")),
    "wnli": DataSet("GLUE WNLI, pronouns", "CC BY 4.0", _glue(
        "wnli", "WNLI.zip", 28_999, "ae0e8e4d16f4d46d4a0a566ec7ecceccfd3fbfaa4a7a4b4e02848c0f2561ac46")),
    "ax": DataSet("GLUE AX, diagnostics for MNLI models", "no licence stated", (
        _plain("glue_data/diagnostic/diagnostic.tsv", 222_257,
               "0e13510b1bb14436ff7e2ee82338f0efb0133ecf2e73507a697dc210db3f05fd", GLUE_URL + "AX.tsv"),)),
    "imdb": DataSet("IMDb reviews, sentiment", "Maas et al. 2011, for research with citation", (
        File("aclImdb_v1.tar.gz", 84_125_825,
             "c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe",
             (TASKS["imdb"].download,), TASKS["imdb"].folder),)),
    "squad": DataSet("SQuAD 1.1, answer spans", "CC BY-SA 4.0", (
        _plain("squad/train-v1.1.json", 30_288_272,
               "3527663986b8295af4f7fcdff1ba1ff3f72d07d61a20f487cb238a6ef92fd955",
               SQUAD_URL + "train-v1.1.json"),
        _plain("squad/dev-v1.1.json", 4_854_279,
               "95aa6a52d5d6a735563366753ca50492a658031da74f301ac5238b03966972c9",
               SQUAD_URL + "dev-v1.1.json"))),
    "wikitext-2": DataSet("WikiText-2 raw, articles", "Wikipedia, CC BY-SA", (
        File("wikitext-2-raw-v1.zip", 4_721_645,
             "ef7edb566e3e2b2d31b29c1fdb0c89a4cc683597484c3dc2517919c615435a11",
             (SMERITY_URL + "wikitext-2-raw-v1.zip",
              HUB_URL + "ggml-org/ci/resolve/main/wikitext-2-raw-v1.zip"), "wikitext-2-raw"),)),
    "wikitext-103": DataSet("WikiText-103 raw, articles", "Wikipedia, CC BY-SA", (
        File("wikitext-103-raw-v1.zip", 191_984_949,
             "91c00ae287f0d699e18605c84afc9e45c192bc6b7797ff8837e5474655a33794",
             (SMERITY_URL + "wikitext-103-raw-v1.zip",
              HUB_URL + "mattdangerw/wikitext-103-raw/resolve/main/wikitext-103-raw-v1.zip"),
             "wikitext-103-raw"),)),
}
GLUE = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli", "ax")


def listing() -> str:
    """One line for each name: size of the download, what it is, terms as far as known, source."""
    def line(name: str, names: Iterable[str], what: str) -> str:
        size = sum(file.size for each in names for file in DATA_SETS[each].files)
        return f"{name:13}{size / 1e6:7.2f} MB  {what}"

    lines = [line("glue", GLUE, f"all of GLUE: {', '.join(GLUE)}")]
    for name, data in DATA_SETS.items():
        host = urlsplit(data.files[0].urls[0]).hostname
        lines.append(line(name, [name], f"{data.what}; {data.terms}; {host}"))
    return "\n".join(lines)


# ---- fetching ----------------------------------------------------------------------------------------------

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
            with _disk(Path(out) / file.path, "read"):
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
        if _sha256(target) == file.sha256:
            return False
        raise UserError(f"{target} exists but is not the official file, which has the sha256 {file.sha256}; "
                        "move it away and run again")
    partial = target.with_name(target.name + ".partial")
    with _disk(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    failures = []
    for url in file.urls:
        if base_url is not None:
            url = base_url.rstrip("/") + urlsplit(url).path
        failure = _fetch_from(url, file, partial)
        if not failure:
            with _disk(target):
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
                found = _sha256(partial)
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
        show = _progress(partial.name.removesuffix(".partial"), have, file.size)
        try:
            with _writing(partial, "ab" if resumed else "wb", partial) as write:
                while have <= file.size and (data := response.read(CHUNK)):
                    write(data)
                    have += len(data)
                    show(have)
        finally:
            if sys.stderr.isatty() and have < file.size:
                print(file=sys.stderr)  # the line of progress is not finished
    return ""


def _progress(name: str, begun: int, size: int) -> Callable[[int], None]:
    """A function that shows how far it is, twice a second on a terminal, every ten seconds elsewhere."""
    terminal = sys.stderr.isatty()
    start = shown = time.monotonic()

    def show(have: int) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown < (0.5 if terminal else 10) and have < size:
            return
        shown = now
        rate = max(have - begun, 1) / max(now - start, 1e-3)
        left = timedelta(seconds=round(max(size - have, 0) / rate))
        line = f"{name}  {have / 1e6:,.1f} of {size / 1e6:,.1f} MB  {rate / 1e6:,.2f} MB/s  {left} left"
        print(f"\r\033[K{line}" if terminal else line, end="" if terminal and have < size else "\n",
              file=sys.stderr, flush=True)
    return show


def _sha256(path: Path) -> str:
    with _disk(path, "read"), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _remove(path: Path) -> None:
    with _disk(path):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _disk(path: Path, verb: str = "written") -> Iterator[None]:
    """Makes what goes wrong on the disk a `UserError`, apart from what goes wrong on the network."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"the disk is full, {path} cannot be written; make room and run again, which "
                            "goes on with what is there") from None
        raise UserError(f"{path} cannot be {verb} ({error.strerror or error})") from None


@contextlib.contextmanager
def _writing(path: Path, mode: str, name: Path) -> Iterator[Callable[[bytes], None]]:
    """Opens a file and gives the function that writes to it; what the disk does wrong is a `UserError`."""
    with _disk(name):
        file = open(path, mode)

    def write(data: bytes) -> None:
        with _disk(name):
            file.write(data)
    try:
        yield write
    finally:
        with _disk(name):
            file.close()  # writes what is left


# ---- unpacking ---------------------------------------------------------------------------------------------

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
    target = archive.parent / folder
    with _disk(target):
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder}.", dir=archive.parent))
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
        with _disk(target):
            if target.is_dir():
                target.rmdir()  # empty: obtain() keeps any other
            os.rename(temporary / folder, target)
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, tarfile.TarError, RuntimeError,
            ValueError) as error:
        raise UserError(f"{archive} cannot be unpacked ({error}); delete it and run again") from None
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
    with _disk(target):
        (path if member.kind == "folder" else path.parent).mkdir(parents=True, exist_ok=True)
    if member.kind == "folder":
        return
    with member.open() as source, _writing(path, "wb", target) as write:
        while data := source.read(CHUNK):
            write(data)
