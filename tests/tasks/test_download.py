"""data/download.py against a server of our own: cut lines, wrong files, damaged archives.

    python -m pytest tests/tasks/test_download.py
"""

import contextlib
import errno
import hashlib
import http.server
import io
import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import pytest

from minibert.common import disk
from minibert.common.errors import UserError, run_script
from minibert.tasks import download as module
from minibert.tasks.datasets import DATA_SETS, GLUE, DataSet, File, listing
from minibert.tasks.download import download, fetch, obtain, unpack
from minibert.tasks.specs import TASKS

ROOT = Path(__file__).resolve().parents[2]
CONTENT = bytes(range(256)) * 1000


class Server(http.server.BaseHTTPRequestHandler):
    """Serves `files` by path, in the ways that `manner` names."""

    files: dict[str, bytes] = {}
    manner: set[str] = set()
    asked: list[tuple[str, str | None]] = []  # path, Range

    def do_GET(self):
        self.asked.append((self.path, self.headers.get("Range")))
        content = self.files.get(self.path)
        if "slow" in self.manner:
            time.sleep(0.1)
        if "busy" in self.manner:
            self.manner.discard("busy")
            return self.send_error(503)
        if content is None:
            return self.send_error(404)
        begin = 0
        if (asked := self.headers.get("Range")) and "no ranges" not in self.manner:
            begin = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
            if begin >= len(content):
                return self.send_error(416)
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        if "no length" not in self.manner:
            self.send_header("Content-Length", str(len(content) - begin))
        self.end_headers()
        end = len(content)
        if self.manner & {"cut", "cut always"}:
            self.manner.discard("cut")
            end = len(content) // 2
        with contextlib.suppress(OSError):  # who has waited long enough is gone
            self.wfile.write(content[begin:end])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    """The handler's class, to be told what to serve and how, and `address`."""
    monkeypatch.setattr(module, "PAUSE", 0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    Server.files, Server.manner, Server.asked = {"/a/file": CONTENT}, set(), []
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
    Server.address = f"http://127.0.0.1:{running.server_port}"
    yield Server
    running.shutdown()
    running.server_close()


def described(server, content=CONTENT, path="file", url="/a/file", folder=""):
    """The `File` of this content, which the server may serve or not."""
    return File(path, len(content), hashlib.sha256(content).hexdigest(), (server.address + url,), folder)


def zipped(*members, path=None):
    """A zip of (name or ZipInfo, content) pairs."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return written(buffer.getvalue(), path)


def tarred(*members, path=None):
    """A tar.gz of (name, content) pairs; instead of content, a dictionary of the member's fields."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, dict):
                for key, value in content.items():
                    setattr(info, key, value)
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return written(buffer.getvalue(), path)


def written(content, path):
    if path is None:
        return content
    path.write_bytes(content)
    return path


def names(folder):
    """All paths below a folder, hidden ones, too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def counted(writing, written):
    """`disk.writing` that notes the length of each part."""
    @contextlib.contextmanager
    def open_and_note(*arguments):
        with writing(*arguments) as write:
            yield lambda data: (written.append(len(data)), write(data))
    return open_and_note


# ---- fetching ----------------------------------------------------------------------------------------------

def test_a_whole_file_and_not_again(server, tmp_path, capsys):
    target = tmp_path / "new/folder/file"
    assert fetch(described(server), target)
    assert target.read_bytes() == CONTENT and names(target.parent) == ["file"]
    assert not fetch(described(server), target)
    assert server.asked == [("/a/file", None)]


@pytest.mark.parametrize("length", ["no length", "with length"])
def test_a_cut_connection_is_taken_up_again(server, tmp_path, length, capsys):
    server.manner = {"cut", length}
    assert fetch(described(server), tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.asked == [("/a/file", None), ("/a/file", "bytes=128000-")]
    assert "cut after 128,000 of 256,000 bytes" in capsys.readouterr().err


def test_a_later_run_goes_on(server, tmp_path):
    server.manner = {"cut always", "no ranges"}  # it never gets further than half
    says = (r"^file could not be downloaded \(http://127.*/a/file: the connection was cut after 128,000 of "
            r"256,000 bytes\); run again later, .* put it at .*/file and run again$")
    with pytest.raises(UserError, match=says):
        fetch(described(server), tmp_path / "file")
    assert len(server.asked) == module.ATTEMPTS and names(tmp_path) == ["file.partial"]
    server.manner, server.asked = set(), []
    assert fetch(described(server), tmp_path / "file")
    assert server.asked == [("/a/file", "bytes=128000-")] and names(tmp_path) == ["file"]


def test_a_server_without_ranges_starts_from_zero(server, tmp_path):
    server.manner = {"no ranges"}
    (tmp_path / "file.partial").write_bytes(CONTENT[:1000])
    assert fetch(described(server), tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT and server.asked == [("/a/file", "bytes=1000-")]


def test_a_partial_that_is_complete_needs_no_server(server, tmp_path):
    (tmp_path / "file.partial").write_bytes(CONTENT)
    assert fetch(described(server), tmp_path / "file")
    assert server.asked == [] and names(tmp_path) == ["file"]


@pytest.mark.parametrize("partial", [b"another version" * 100, b"x" * len(CONTENT), b"x" * 2 * len(CONTENT)])
def test_parts_of_another_version_are_noticed(server, tmp_path, partial):
    (tmp_path / "file.partial").write_bytes(partial)
    assert fetch(described(server), tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_another_content_is_removed(server, tmp_path, monkeypatch):
    server.files["/a/file"] = CONTENT[:-1] + b"x"
    with pytest.raises(UserError, match="what came is not the official file, with the sha256 .* was removed"):
        fetch(described(server), tmp_path / "file")
    assert names(tmp_path) == [] and len(server.asked) == 1
    server.manner, written = {"no length"}, []
    server.files["/a/file"] = CONTENT * 20
    monkeypatch.setattr(module, "writing", counted(module.writing, written))
    with pytest.raises(UserError, match="is not the official file"):
        fetch(described(server), tmp_path / "file")
    assert names(tmp_path) == [] and sum(written) <= len(CONTENT) + module.CHUNK, "it read on without end"


def test_a_shorter_file_is_not_the_one(server, tmp_path):
    server.files["/a/file"] = CONTENT[:2000]
    with pytest.raises(UserError, match="HTTP 416"):
        fetch(described(server), tmp_path / "file")
    assert (tmp_path / "file.partial").read_bytes() == CONTENT[:2000], "another address may still continue it"


def test_a_wrong_file_of_the_user_stays(server, tmp_path):
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(UserError, match="file exists but is not the official file, .* move it away"):
        fetch(described(server), tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"mine" and server.asked == []


def test_errors_of_the_server(server, tmp_path, monkeypatch):
    server.manner = {"busy"}
    assert fetch(described(server), tmp_path / "file") and len(server.asked) == 2
    with pytest.raises(UserError, match=r"/a/other: HTTP 404 Not Found\); .* put it at .*/other and run"):
        fetch(described(server, url="/a/other"), tmp_path / "other")
    assert len(server.asked) == 3, "404 was tried again"
    closed = described(server)._replace(urls=("http://127.0.0.1:9/file",))
    with pytest.raises(UserError, match="refused"):
        fetch(closed, tmp_path / "other")
    server.manner, server.asked = {"slow"}, []
    monkeypatch.setattr(module, "TIMEOUT", 0.05)
    with pytest.raises(UserError, match="timed out"):
        fetch(described(server), tmp_path / "other")
    assert len(server.asked) == module.ATTEMPTS


def test_a_second_address(server, tmp_path):
    server.files["/b/file"], server.files["/a/file"] = CONTENT, CONTENT[::-1]
    here = server.address
    file = described(server)._replace(urls=(f"{here}/none/file", f"{here}/a/file", f"{here}/b/file"))
    assert fetch(file, tmp_path / "file")
    assert [path for path, _ in server.asked] == ["/none/file", "/a/file", "/b/file"]


@pytest.mark.parametrize("code, says", [
    (errno.ENOSPC, "the disk is full, .*file.partial cannot be written; make room"),
    (errno.EIO, "file.partial cannot be written")])
def test_the_disk_fails(server, tmp_path, monkeypatch, code, says):
    class Full(io.FileIO):
        def write(self, data):
            raise OSError(code, "no")
    monkeypatch.setattr(disk, "open", lambda path, mode: Full(path, mode), raising=False)
    with pytest.raises(UserError, match=says):
        fetch(described(server), tmp_path / "file")
    assert len(server.asked) == 1, "a full disk was taken for a cut connection"


def test_out_that_cannot_be(server, tmp_path, monkeypatch):
    (tmp_path / "plain").write_text("")
    with pytest.raises(UserError, match="plain/glue_data/CoLA.zip cannot be"):
        download(["cola"], tmp_path / "plain", server.address)


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
    assert obtain(file, tmp_path) == (tmp_path / "glue/CoLA", False) and len(server.asked) == 1
    (tmp_path / path).unlink()
    assert obtain(file, tmp_path) == (tmp_path / "glue/CoLA", False) and len(server.asked) == 1


@pytest.mark.skipif(os.name != "posix", reason="links, mount points")
def test_where_an_archive_is_unpacked_to(server, tmp_path, monkeypatch):
    """Behind a link to an empty folder; on a mount point not at all, which is said before the download."""
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


@pytest.mark.parametrize("pack, name", [(zipped, "a.zip"), (tarred, "a.tar.gz")])
def test_nothing_is_written_outside_the_folder(tmp_path, pack, name):
    """The sha256 of an archive is known, so this is Python's part alone: it refuses, or stays inside."""
    inner = tmp_path / "a/b"
    inner.mkdir(parents=True)
    archive = pack(("set/good", b"good"), ("set/../../../evil", b"x"), path=inner / name)
    with contextlib.suppress(UserError):
        unpack(archive, "set")
    assert not (tmp_path / "evil").exists() and not (tmp_path / "a/evil").exists()
    assert [path.name for path in inner.iterdir() if path.name.startswith(".")] == []


def test_archives_that_are_no_such_thing(tmp_path):
    whole = tarred(("CoLA/a", CONTENT), ("CoLA/b", CONTENT))
    for content in (b"", b"<html>", whole[:len(whole) // 2]):
        for name in "a.zip", "a.tar.gz":
            (tmp_path / name).write_bytes(content)
            with pytest.raises(UserError, match=f"{name} (cannot be unpacked .* delete it|holds no folder)"):
                unpack(tmp_path / name, "CoLA")
            (tmp_path / name).unlink()
    with pytest.raises(UserError, match="holds no folder CoLA"):
        unpack(zipped(("CoLA", b"a file"), ("cola/a", b""), path=tmp_path / "a.zip"), "CoLA")
    assert names(tmp_path) == ["a.zip"]


@pytest.mark.parametrize("pack, name", [(zipped, "a.zip"), (tarred, "a.tar.gz")])
@pytest.mark.parametrize("raised, caught, says", [
    (KeyboardInterrupt(), KeyboardInterrupt, None),
    (OSError(errno.ENOSPC, "no"), UserError, "the disk is full, .*/CoLA cannot be written")])
def test_stopped_in_the_middle_of_unpacking(tmp_path, monkeypatch, pack, name, raised, caught, says):
    archive = pack(*[(f"CoLA/{i}", b"x") for i in range(4)], path=tmp_path / name)
    unpack_archive, seen = shutil.unpack_archive, []

    def stop(*given, **more):
        unpack_archive(*given, **more)
        seen.extend(names(tmp_path))
        raise raised
    monkeypatch.setattr(module.shutil, "unpack_archive", stop)
    with pytest.raises(caught, match=says):
        unpack(archive, "CoLA")
    assert "CoLA" not in seen and any(path.endswith("CoLA/3") for path in seen), "a kill would leave no CoLA"
    assert names(tmp_path) == [name]


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
    """The server has all files, with made-up content of the right length: each must be refused."""
    for name, data in DATA_SETS.items():
        for file in data.files:
            small = file._replace(size=10)
            server.asked = []
            for url in file.urls:
                server.files[urlsplit(url).path] = b"0123456789"
            with pytest.raises(UserError, match="is not the official file"):
                obtain(small, tmp_path, server.address + "/")
            assert [path for path, _ in server.asked] == [urlsplit(url).path for url in file.urls]
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_names(server, tmp_path, monkeypatch, capsys):
    def serve(name, content, folder=""):
        file = described(server, content, f"{name}/{name}.zip", f"/{name}", folder)
        server.files[f"/{name}"] = content
        monkeypatch.setitem(DATA_SETS, name, DataSet("", "", (file,)))

    for name in GLUE:
        serve(name, name.encode())
    serve("imdb", zipped(("aclImdb/a", b"")), "aclImdb")
    download(["cola", "glue", "imdb", "cola"], tmp_path, server.address)
    assert len(server.asked) == 11
    assert capsys.readouterr().out.splitlines()[-1] == f"{tmp_path}/imdb/aclImdb: ready"
    download(["imdb"], tmp_path, server.address)
    assert capsys.readouterr().out == f"{tmp_path}/imdb/aclImdb: already there\n" and len(server.asked) == 11
    with pytest.raises(UserError, match="there is no data set 'sst-2'; known: glue, cola, sst2, "):
        download(["cola", "sst-2"], tmp_path / "none", server.address)
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


def test_it_starts_without_torch():
    code = "import sys, minibert.tasks.download; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "False False\n", done.stderr
