"""data/download.py against a server of our own: cut lines, wrong files, archives.

    python -m pytest tests/tasks/test_download.py
"""

import errno
import hashlib
import http.server
import io
import os
import re
import runpy
import shutil
import sys
import tarfile
import threading
import zipfile
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import pytest

from minibert.common import disk
from minibert.common.errors import UserError, run_script
from minibert.tasks import download as module
from minibert.tasks.download import DATA_SETS, GLUE, DataSet, File, download, fetch, listing, obtain, unpack
from minibert.tasks.specs import TASKS

ROOT = Path(__file__).resolve().parents[2]
CONTENT = bytes(range(256)) * 1000


class Server(http.server.BaseHTTPRequestHandler):
    """Serves `files` by path; with `cut`, the connection ends after half of a file."""

    files: dict[str, bytes] = {}
    cut = False
    asked: list[str] = []

    def do_GET(self):
        self.asked.append(self.path)
        if self.path not in self.files:
            return self.send_error(404)
        content = self.files[self.path]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:len(content) // 2] if self.cut else content)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    """The class of the handler, which has the files to serve and the server's `address`."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    Server.files, Server.cut, Server.asked = {"/a/file": CONTENT}, False, []
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
    Server.address = f"http://127.0.0.1:{running.server_port}"
    yield Server
    running.shutdown()
    running.server_close()


def described(server, content=CONTENT, path="file", url="/a/file", folder=""):
    """A `File` with this content. The server may have the file or not."""
    return File(path, len(content), hashlib.sha256(content).hexdigest(), (server.address + url,), folder)


def zipped(*members):
    """A zip of (name, content) pairs."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(*members):
    """A tar.gz of (name, content) pairs."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def names(folder):
    """All paths below a folder, including hidden paths."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# ---- fetching ----------------------------------------------------------------------------------------------

def test_a_whole_file_and_not_again(server, tmp_path):
    target = tmp_path / "new/folder/file"
    assert fetch(described(server), target)
    assert target.read_bytes() == CONTENT and names(target.parent) == ["file"]
    assert not fetch(described(server), target)
    assert server.asked == ["/a/file"]


def test_a_cut_connection_or_another_file_leaves_nothing(server, tmp_path):
    server.cut = True
    with pytest.raises(UserError, match="file could not be .*invalid hash.*; run again later, .* put it"):
        fetch(described(server), tmp_path / "file")
    server.cut, server.files["/a/file"] = False, CONTENT[:-1] + b"x"
    with pytest.raises(UserError, match="file could not be downloaded .*invalid hash"):
        fetch(described(server), tmp_path / "file")
    assert names(tmp_path) == []


def test_a_wrong_file_of_the_user_stays(server, tmp_path):
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(UserError, match="file exists but is not the official file, .* move it away"):
        fetch(described(server), tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"mine" and server.asked == []


def test_errors_of_the_server(server, tmp_path):
    with pytest.raises(UserError, match=r"/a/other: HTTP Error 404: Not Found\); .* put it at .*/other and"):
        fetch(described(server, url="/a/other"), tmp_path / "other")
    with pytest.raises(UserError, match="refused"):
        fetch(described(server)._replace(urls=("http://127.0.0.1:9/file",)), tmp_path / "other")


def test_a_second_address(server, tmp_path):
    server.files["/b/file"], server.files["/a/file"] = CONTENT, CONTENT[::-1]
    here = server.address
    file = described(server)._replace(urls=(f"{here}/none/file", f"{here}/a/file", f"{here}/b/file"))
    assert fetch(file, tmp_path / "file")
    assert server.asked == ["/none/file", "/a/file", "/b/file"]


def test_the_disk_fails(server, tmp_path, monkeypatch):
    def full(*given):
        raise OSError(errno.ENOSPC, "no")
    monkeypatch.setattr(module, "download_url_to_file", full)
    with pytest.raises(UserError, match="the disk is full, .*file cannot be written; make room"):
        fetch(described(server), tmp_path / "file")
    (tmp_path / "plain").write_text("")
    with pytest.raises(UserError, match="plain/glue_data/CoLA.zip cannot be"):
        download(["cola"], tmp_path / "plain")


# ---- unpacking ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("pack, path", [(zipped, "glue/a.zip"), (tarred, "glue/a.tar.gz")])
def test_an_archive_is_fetched_and_unpacked_once(server, tmp_path, pack, path):
    content = pack(("CoLA/train.tsv", b"1\n"), ("__MACOSX/CoLA/x", b"junk"),
                   ("./CoLA/original/raw/a", CONTENT))
    server.files["/a.zip"] = content
    file = described(server, content, path, "/a.zip", "CoLA")
    (tmp_path / "glue/CoLA").mkdir(parents=True)  # empty, as good as none
    assert obtain(file, tmp_path) == (tmp_path / "glue/CoLA", True)
    assert names(tmp_path / "glue/CoLA") == ["original", "original/raw", "original/raw/a", "train.tsv"]
    assert (tmp_path / "glue/CoLA/original/raw/a").read_bytes() == CONTENT
    assert sorted(p.name for p in (tmp_path / "glue").iterdir()) == ["CoLA", Path(path).name]
    (tmp_path / path).unlink()
    assert obtain(file, tmp_path) == (tmp_path / "glue/CoLA", False) and len(server.asked) == 1


@pytest.mark.skipif(os.name != "posix", reason="links, mount points")
def test_where_an_archive_is_unpacked_to(server, tmp_path, monkeypatch):
    """A link to an empty folder is accepted. A mount point is refused before the download."""
    server.files["/a/file"] = content = zipped(("set/a.tsv", b"a\n"))
    file = described(server, content, "set.zip", folder="set")
    (tmp_path / "other").mkdir()
    (tmp_path / "set").symlink_to("other")
    assert obtain(file, tmp_path) == (tmp_path / "set", True)
    assert (tmp_path / "set").is_symlink() and names(tmp_path / "other") == ["a.tsv"]
    server.asked.clear()
    monkeypatch.setattr(disk.os.path, "ismount", lambda path: path.name == "set")
    with pytest.raises(UserError, match="set is a mount point"):
        obtain(file, tmp_path / "disk")
    assert not server.asked


@pytest.mark.parametrize("raised, caught, says", [
    (KeyboardInterrupt(), KeyboardInterrupt, None),
    (OSError(errno.ENOSPC, "no"), UserError, "the disk is full, .*/CoLA cannot be written")])
def test_stopped_in_the_middle_of_unpacking(tmp_path, monkeypatch, raised, caught, says):
    (tmp_path / "a.zip").write_bytes(zipped(*[(f"CoLA/{i}", b"x") for i in range(4)]))
    unpack_archive, seen = shutil.unpack_archive, []

    def stop(*given, **more):
        unpack_archive(*given, **more)
        seen.extend(names(tmp_path))
        raise raised
    monkeypatch.setattr(module.shutil, "unpack_archive", stop)
    with pytest.raises(caught, match=says):
        unpack(tmp_path / "a.zip", "CoLA")
    assert "CoLA" not in seen and any(path.endswith("CoLA/3") for path in seen), "a kill would leave no CoLA"
    assert names(tmp_path) == ["a.zip"]


# ---- the table and the script ------------------------------------------------------------------------------

def test_the_table_fits_what_reads_the_files():
    assert set(DATA_SETS) == {*TASKS, "ax", "wikitext-2", "wikitext-103"}
    assert set(GLUE) == {*TASKS, "ax"} - {"imdb", "squad"}
    for name, data in DATA_SETS.items():
        for file in data.files:
            place = PurePosixPath(file.path)
            assert not place.is_absolute() and ".." not in place.parts and file.size > 1000
            assert re.fullmatch("[0-9a-f]{64}", file.sha256) and file.urls
            assert bool(file.folder) == file.path.endswith((".zip", ".tar.gz"))
            if file.folder and name in TASKS:
                assert file.folder == TASKS[name].folder and file.urls[0] in TASKS[name].download
    every = [file for data in DATA_SETS.values() for file in data.files]
    assert len({file.path for file in every}) == len({file.sha256 for file in every}) == len(every)
    assert all(file.path.startswith("glue_data/MRPC/") for file in DATA_SETS["mrpc"].files)
    ax, = DATA_SETS["ax"].files
    assert ax.path.removeprefix("glue_data/") in TASKS["mnli"].splits["ax"].file.split("|")
    assert all(PurePosixPath(file.path).name in TASKS["squad"].download for file in DATA_SETS["squad"].files)


def test_every_address_is_asked_and_the_answer_checked(server, tmp_path):
    """The server has all files, with made-up content: each must be refused."""
    for data in DATA_SETS.values():
        for file in data.files:
            server.asked = []
            paths = [urlsplit(url).path for url in file.urls]
            server.files |= dict.fromkeys(paths, b"0123456789")
            with pytest.raises(UserError, match="could not be downloaded .*invalid hash"):
                obtain(file._replace(urls=tuple(server.address + path for path in paths)), tmp_path)
            assert server.asked == paths
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_names(server, tmp_path, monkeypatch, capsys):
    def serve(name, content, folder=""):
        file = described(server, content, f"{name}/{name}.zip", f"/{name}", folder)
        server.files[f"/{name}"] = content
        monkeypatch.setitem(DATA_SETS, name, DataSet("", "", (file,)))

    for name in GLUE:
        serve(name, name.encode())
    serve("imdb", zipped(("aclImdb/a", b"")), "aclImdb")
    download(["cola", "glue", "imdb", "cola"], tmp_path)
    assert len(server.asked) == 11
    assert capsys.readouterr().out.splitlines()[-1] == f"{tmp_path}/imdb/aclImdb: ready"
    download(["imdb"], tmp_path)
    assert capsys.readouterr().out == f"{tmp_path}/imdb/aclImdb: already there\n" and len(server.asked) == 11
    with pytest.raises(UserError, match="there is no data set 'sst-2'; known: glue, cola, sst2, "):
        download(["cola", "sst-2"], tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_the_script(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["download.py", *arguments])
        return run_script(runpy.run_path(str(ROOT / "data/download.py"))["main"])

    run("--list")
    lines = capsys.readouterr().out.splitlines()
    assert lines == listing().splitlines() and [line.split()[0] for line in lines] == ["glue", *DATA_SETS]
    assert lines[1].split()[1:3] == ["0.38", "MB"] and lines[-1].endswith("CC BY-SA; wikitext.smerity.com")
    for arguments in ([], ["cola"], ["--out", "x"], ["coca-cola", "--out", "x"]):
        with pytest.raises(SystemExit) as stop:
            run(*arguments)
        assert stop.value.code == 2 and re.fullmatch("error: .*\n", capsys.readouterr().err)
