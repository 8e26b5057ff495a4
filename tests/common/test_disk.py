"""What is written is flushed as the system wants it."""

import os

import pytest

from minibert.common import disk


@pytest.mark.parametrize("windows", [False, True])
def test_files_are_flushed_as_the_system_wants_it(tmp_path, monkeypatch, windows):
    """Windows flushes only what is open for writing, and opens no folders."""
    modes, flushed = {}, []
    real_open, real_fsync = os.open, os.fsync

    def open_and_note(path, mode, *more):
        assert not (windows and os.path.isdir(path)), "Windows opens no folders"
        descriptor = real_open(path, mode, *more)
        modes[descriptor] = path, mode
        return descriptor

    def flush(descriptor):
        path, mode = modes[descriptor]
        assert path.is_dir() or mode & os.O_RDWR, "Windows flushes only what is open for writing"
        flushed.append(path.name)
        real_fsync(descriptor)

    monkeypatch.setattr(disk, "WINDOWS", windows)
    monkeypatch.setattr(disk.os, "open", open_and_note)
    monkeypatch.setattr(disk.os, "fsync", flush)
    disk.write_text(tmp_path / "a.json", "text\n")
    assert (tmp_path / "a.json").read_bytes() == b"text\n"
    assert flushed == ["a.json.partial"] + [tmp_path.name] * (not windows)
