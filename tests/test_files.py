"""Files are there whole or not at all."""

import os
from pathlib import Path

import pytest

from ddpm_jax import files


def test_write_makes_folders_and_leaves_only_the_file(tmp_path):
    path = tmp_path / "a" / "b" / "x.png"
    files.write(path, b"one")
    files.write(str(path), b"two")
    assert path.read_bytes() == b"two"
    assert [p.name for p in path.parent.iterdir()] == ["x.png"]


@pytest.mark.parametrize("broken", ["write_bytes", "replace"])
def test_a_write_that_fails_keeps_the_old_file_and_leaves_no_rubbish(tmp_path, monkeypatch, broken):
    path = tmp_path / "config.json"
    files.write(path, b"old")

    def half(self, data):
        with open(self, "wb") as file:
            file.write(data[:1])
        raise OSError("disk full")

    def refuse(source, target):
        raise OSError("disk full")

    monkeypatch.setattr(*((Path, "write_bytes", half) if broken == "write_bytes" else (os, "replace", refuse)))
    with pytest.raises(OSError, match="disk full"):
        files.write(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_the_file_appears_in_one_move(tmp_path, monkeypatch):
    """Until the move the old content stands; the new one is whole by then."""
    path, moved = tmp_path / "x", []
    files.write(path, b"old")
    replace = os.replace

    def watch(source, target):
        moved.append((path.read_bytes(), Path(source).read_bytes()))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watch)
    files.write(path, b"new")
    assert moved == [(b"old", b"new")]
    assert path.read_bytes() == b"new"


def test_suffix_is_lower_case_and_known():
    assert files.suffix("a/b.PNG", (".png", ".gif")) == ".png"
    assert files.suffix(Path("x.gif"), (".png", ".gif")) == ".gif"
    with pytest.raises(ValueError, match=r"path must end in .png or .gif, got 'x.jpg'"):
        files.suffix("x.jpg", (".png", ".gif"))
    with pytest.raises(ValueError, match=r"path must end in .png, got 'png'"):
        files.suffix("png", (".png",))
