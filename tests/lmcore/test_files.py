"""Files are there completely or not at all."""

import io
import os

import pytest

from lmcore import files


def write_old(path):
    return files.write_whole(path, lambda file: file.write(b"old"))


def test_a_file_is_written_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "file"
    assert write_old(path) == 3
    assert files.write_whole(str(path), lambda file: file.write(b"new one")) == 7
    assert path.read_bytes() == b"new one"
    assert os.listdir(tmp_path) == ["file"]


def test_the_old_file_stays_when_writing_fails(tmp_path):
    path = tmp_path / "file"
    write_old(path)

    def fail(file):
        file.write(b"half")
        file.flush()
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        files.write_whole(path, fail)
    assert path.read_bytes() == b"old"


def test_nobody_sees_the_new_file_before_it_is_whole(tmp_path):
    path = tmp_path / "file"
    write_old(path)

    def watch(file):
        seen = []
        for word in (b"the ", b"new ", b"one"):
            file.write(word)
            file.flush()
            seen.append(path.read_bytes())
        return seen

    assert files.write_whole(path, watch) == [b"old"] * 3
    assert path.read_bytes() == b"the new one"


def test_the_writer_may_go_back(tmp_path):
    def write(file):
        file.write(b"? words")
        file.seek(0, io.SEEK_SET)
        file.write(b"2")

    assert files.write_whole(tmp_path / "file", write) is None
    assert (tmp_path / "file").read_bytes() == b"2 words"


def test_the_content_is_on_the_disk_before_the_name(tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (done.append("disk"), fsync(fd))[1])
    monkeypatch.setattr(
        os, "replace", lambda *names: (done.append("name"), replace(*names))[1]
    )
    write_old(tmp_path / "file")
    assert done[:2] == ["disk", "name"]


def test_a_folder_that_is_not_there_is_said(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_old(tmp_path / "nowhere" / "file")
