"""Published weights by name: what is here comes before the Hugging Face Hub, which no test asks."""

import sys
import types
from pathlib import Path

import pytest

from ddpm_jax.interop import hub

GOLDEN = Path(__file__).parent / "golden"
WEIGHTS = "diffusion_pytorch_model.safetensors"


def snapshots(contents, seen):
    """A stand-in for huggingface_hub, whose repositories hold these files."""

    def snapshot_download(name, allow_patterns):
        seen.append(allow_patterns)
        for file in contents.get(name, {}):
            if file.name in allow_patterns:
                return str(file.parent)
        raise OSError(f"404: no such repository\nRequest ID {name}")

    return types.SimpleNamespace(snapshot_download=snapshot_download)


def test_a_name_is_a_path_here_first_then_a_repository(tmp_path, monkeypatch):
    older, seen = tmp_path / "cache" / "diffusion_pytorch_model.bin", []
    older.parent.mkdir()
    older.touch()
    settings = older.with_name("config.json")
    monkeypatch.setitem(sys.modules, "huggingface_hub", snapshots({"google/ddpm": [settings, older]}, seen))
    monkeypatch.chdir(tmp_path)
    assert hub.fetch("google/ddpm") == older.parent
    assert [WEIGHTS in patterns for patterns in seen] == [True, False]  # what isn't there isn't asked for twice
    assert not any("*" in pattern for patterns in seen for pattern in patterns)
    older.unlink()
    with pytest.raises(FileNotFoundError, match="google/ddpm on the Hugging Face Hub has no diffusion_pytorch_model"):
        hub.fetch("google/ddpm")
    with pytest.raises(
        FileNotFoundError, match=r"no file or folder 'a/b' here, and .* didn't give it: 404: no such rep"
    ):
        hub.fetch("a/b")
    Path("google/ddpm").mkdir(parents=True)
    assert hub.fetch("google/ddpm") == Path("google/ddpm")
    assert hub.fetch(str(GOLDEN / "ho_tiny")) == GOLDEN / "ho_tiny"


def test_a_name_that_is_neither_or_needs_a_package_is_answered_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for name in ("nowhere", "../a/b", "a/b/c", "/a"):
        with pytest.raises(FileNotFoundError, match=r"there is no file or folder .* here, and it isn't OWNER/NAME"):
            hub.fetch(name)
    with pytest.raises(ImportError, match=r"pip install 'ddpm_jax\[hub\]'"):
        hub.fetch("google/ddpm")
