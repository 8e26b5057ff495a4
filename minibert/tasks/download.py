"""Lists public data sets and downloads them. The sha256 of every downloaded file is checked, so it does not
matter from which address a file comes.
"""

import errno
import http.client
import os
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from torch.hub import download_url_to_file

from minibert.common.disk import disk_errors, place_for, sha256_of
from minibert.common.errors import UserError
from minibert.tasks.specs import GLUE_URL, TASKS


class File(NamedTuple):
    """One file: its path in the output folder, its size in bytes, its sha256, and its addresses in the order
    in which they are tried. If the file is an archive, `folder` is the folder to unpack from the archive.
    """
    path: str
    size: int
    sha256: str
    urls: tuple[str, ...]
    folder: str = ""


class DataSet(NamedTuple):
    """One data set: its description, its owner or terms of use, and its files."""
    what: str
    terms: str
    files: tuple[File, ...]


def _glue(task: str, size: int, sha256: str) -> tuple[File, ...]:
    url = TASKS[task].download.split()[0]
    return File(f"glue_data/{Path(url).name}", size, sha256, (url,), TASKS[task].folder),


def _plain(folder: str, url: str, size: int, sha256: str) -> File:
    return File(f"{folder}/{Path(url).name}", size, sha256, (url,))


SENTEVAL_URL = "https://dl.fbaipublicfiles.com/senteval/senteval_data/"
SQUAD_URL = "https://rajpurkar.github.io/SQuAD-explorer/dataset/"
SMERITY_URL = "https://wikitext.smerity.com/"
HUB_URL = "https://huggingface.co/datasets/"

# the sizes and the sha256 are from dataset_infos.json in Hugging Face's library `datasets`, commit 040102f1
DATA_SETS = {
    "cola": DataSet("GLUE CoLA, acceptability", "sentences from linguistics books, for research", _glue(
        "cola", 376_971, "f212fcd832b8f7b435fb991f101abf89f96b933ab400603bf198960dfc32cbff")),
    "sst2": DataSet("GLUE SST-2, sentiment", "Stanford, Rotten Tomatoes reviews, for research", _glue(
        "sst2", 7_439_277, "d67e16fb55739c1b32cdce9877596db1c127dc322d93c082281f64057c16deaa")),
    # two files of Microsoft, and GLUE's list of the dev pairs (see `_read_msr` in official_files.py)
    "mrpc": DataSet("GLUE MRPC, paraphrases", "Microsoft Research licence", (
        _plain("glue_data/MRPC", SENTEVAL_URL + "msr_paraphrase_train.txt", 1_047_044,
               "60a9b09084528f0673eedee2b69cb941920f0b8cd0eeccefc464a98768457f89"),
        _plain("glue_data/MRPC", SENTEVAL_URL + "msr_paraphrase_test.txt", 441_275,
               "a04e271090879aaba6423d65b94950c089298587d9c084bf9cd7439bd785f784"),
        _plain("glue_data/MRPC", GLUE_URL + "mrpc_dev_ids.tsv", 6_222,
               "971d7767d81b997fd9060ade0ec23c4fc31cbb226a55d1bd4a1bac474eb81dc7"))),
    "stsb": DataSet("GLUE STS-B, similarity", "mixed, mostly CC BY-SA 4.0 (its LICENSE.txt)", _glue(
        "stsb", 802_872, "e60a6393de5a8b5b9bac5020a1554b54e3691f9d600b775bd131e613ac179c85")),
    "qqp": DataSet("GLUE QQP, duplicate questions", "Quora's terms, not commercial", _glue(
        "qqp", 41_696_084, "40e7c862c04eb26ee04b67fd900e76c45c6ba8e6d8fab4f8f1f8072a1a3fbae0")),
    "mnli": DataSet("GLUE MNLI, entailment", "OANC licence, some CC BY(-SA) 3.0 fiction", _glue(
        "mnli", 312_783_507, "e7c1d896d26ed6caf700110645df426cc2d8ebf02a5ab743d5a5c68ac1c83633")),
    "qnli": DataSet("GLUE QNLI v2, answers in sentences", "CC BY-SA 4.0, made from SQuAD", _glue(
        "qnli", 10_627_589, "e634e78627a29adaecd4f955359b22bf5e70f2cbd93b493f2d624138a0c0e5f5")),
    "rte": DataSet("GLUE RTE, entailment", "for research", _glue(
        "rte", 697_150, "6bf86de103ecd335f3441bd43574d23fef87ecc695977a63b82d5efb206556ee")),
    "wnli": DataSet("GLUE WNLI, pronouns", "CC BY 4.0", _glue(
        "wnli", 28_999, "ae0e8e4d16f4d46d4a0a566ec7ecceccfd3fbfaa4a7a4b4e02848c0f2561ac46")),
    "ax": DataSet("GLUE AX, diagnostics for MNLI models", "no licence stated", (
        File("glue_data/diagnostic/diagnostic.tsv", 222_257,
             "0e13510b1bb14436ff7e2ee82338f0efb0133ecf2e73507a697dc210db3f05fd", (GLUE_URL + "AX.tsv",)),)),
    "imdb": DataSet("IMDb reviews, sentiment", "Maas et al. 2011, for research with citation", (
        File("aclImdb_v1.tar.gz", 84_125_825,
             "c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe",
             (TASKS["imdb"].download,), TASKS["imdb"].folder),)),
    "squad": DataSet("SQuAD 1.1, answer spans", "CC BY-SA 4.0", (
        _plain("squad", SQUAD_URL + "train-v1.1.json", 30_288_272,
               "3527663986b8295af4f7fcdff1ba1ff3f72d07d61a20f487cb238a6ef92fd955"),
        _plain("squad", SQUAD_URL + "dev-v1.1.json", 4_854_279,
               "95aa6a52d5d6a735563366753ca50492a658031da74f301ac5238b03966972c9"))),
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
    """Returns a text with one line for all of GLUE, and one line for each data set."""
    lines = {"glue": (sum(file.size for name in GLUE for file in DATA_SETS[name].files),
                      f"all of GLUE: {', '.join(GLUE)}")}
    for name, data in DATA_SETS.items():
        host = urlsplit(data.files[0].urls[0]).hostname
        lines[name] = sum(file.size for file in data.files), f"{data.what}; {data.terms}; {host}"
    return "\n".join(f"{name:13}{size / 1e6:7.2f} MB  {what}" for name, (size, what) in lines.items())


def download(names: Iterable[str], out: str | Path) -> None:
    """Downloads the data sets `names` to the folder `out`. The name "glue" means all data sets of GLUE. A
    file that is already in `out` is not downloaded again if its sha256 is right. An archive is not downloaded
    again if its unpacked folder exists and is not empty.
    """
    names = [each for name in names for each in (GLUE if name == "glue" else (name,))]
    if unknown := [name for name in names if name not in DATA_SETS]:
        raise UserError(f"there is no data set {unknown[0]!r}; known: glue, {', '.join(DATA_SETS)}")
    for name in dict.fromkeys(names):
        for file in DATA_SETS[name].files:
            with disk_errors(Path(out) / file.path, "read"):
                place, new = obtain(file, Path(out))
            print(f"{place}: {'ready' if new else 'already there'}", flush=True)


def obtain(file: File, out: Path) -> tuple[Path, bool]:
    """Downloads a file to the folder `out`, and unpacks the file if it is an archive. Returns a tuple (path,
    new). `path` is the path of the file, or of an archive's unpacked folder. `new` is False if nothing was
    downloaded or unpacked.
    """
    archive = out / file.path
    if not file.folder:
        return archive, fetch(file, archive)
    folder = archive.parent / file.folder
    if folder.is_dir() and any(folder.iterdir()):
        return folder, False
    place_for(folder)  # checks before the long download that the folder can be created
    fetch(file, archive)
    unpack(archive, file.folder)
    return folder, True


def fetch(file: File, target: Path) -> bool:
    """Downloads a file to `target`, from the first of its addresses that has the file with the right sha256.
    Returns True, or returns False if `target` was already the right file. Raises `UserError` if no address
    has the right file, or if `target` exists and has another sha256.
    """
    if target.exists():
        if sha256_of(target) == file.sha256:
            return False
        raise UserError(f"{target} exists but is not the official file, which has the sha256 {file.sha256}; "
                        "move it away and run again")
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    failures = []
    for url in file.urls:
        print(f"downloading {url}", file=sys.stderr, flush=True)
        try:
            download_url_to_file(url, str(target), file.sha256)
            return True
        # `download_url_to_file` raises RuntimeError if the sha256 of the file is wrong
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
                with disk_errors(target):
                    raise
            failures.append(f"{url}: {error}")
    raise UserError(f"{target.name} could not be downloaded ({'; '.join(failures)}); run again later, or "
                    f"download it by hand, put it at {target} and run again")


def unpack(archive: Path, folder: str) -> None:
    """Unpacks `folder` from a .zip or .tar.gz archive, and puts this folder beside the archive. If the
    unpacking fails, no incomplete folder is left.
    """
    target = place_for(archive.parent / folder)
    print(f"unpacking {archive.name}", file=sys.stderr, flush=True)
    # With `filter`, tarfile refuses unsafe paths. Python before 3.11.4 does not have this argument.
    safe = {"filter": "data"} if archive.suffix == ".gz" and hasattr(tarfile, "data_filter") else {}
    with (disk_errors(target),
          tempfile.TemporaryDirectory(prefix=f".{folder}.", dir=target.parent) as temporary):
        shutil.unpack_archive(archive, temporary, **safe)
        if target.is_dir():
            # `place_for` allows an empty folder, but Windows cannot rename a folder to an existing folder
            target.rmdir()
        os.rename(Path(temporary) / folder, target)
