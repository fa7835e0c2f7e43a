"""The house's one direction: a module imports only what stands before it. Read from the source, nothing is run."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ddpm_jax"
ORDER = (
    ("types", "files"),
    ("torch_files",),
    ("records", "networks"),
    ("config", "heap", "xla"),
    ("diffusion",),
    ("nets",),
    ("sampling",),
    ("data",),
    ("evaluation",),
    ("figures",),
    ("training",),
    ("planning",),
    ("interop",),
    ("cli",),
)
STOREY = {name: number for number, names in enumerate(ORDER) for name in names}
MODULES = sorted(PACKAGE.rglob("*.py"))
FRAMEWORKS = {"flax", "haiku", "equinox"}
GONE = ("jax.experimental.maps", "jax.experimental.pjit", "jax.pmap", "jax.interpreters.pxla")


def imports(tree: ast.AST, package: str) -> Iterator[str]:
    """Every dotted name that a module imports, at its top or inside a function; `package` is what holds it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")
            above = above[: len(above) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def violations(source: str, path: str) -> list[str]:
    """What is wrong with a module that lies at `path` inside ddpm_jax ("nets/unet.py")."""
    tree, parts = ast.parse(source), path.removesuffix(".py").split("/")
    room, package = parts[0], ".".join(["ddpm_jax", *parts[:-1]])
    found = []
    if room != "__init__" and room not in STOREY:
        found.append(f"{path}: {room} has no place in the order")
    for name in imports(tree, package):
        root, *rest = name.split(".")
        if root in FRAMEWORKS and room != "nets":
            found.append(f"{path} imports {name}: only nets may")
        if name.startswith(GONE):
            found.append(f"{path} imports {name}, which is on its way out")
        if root != "ddpm_jax":
            continue
        of = rest[0] if rest else ""
        if of not in STOREY:
            found.append(f"{path} imports {name}, which has no place in the order")
        elif room == "__init__" or (STOREY.get(room, 0), room == of) < (STOREY[of], False):
            found.append(f"{path} imports {name}: a step back")
        elif STOREY.get(room) == STOREY[of] and room != of:
            found.append(f"{path} imports {name}, which stands beside it")
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            found.append(f"{path} imports from __future__: annotations must be objects for `checked`")
        if isinstance(node, ast.Attribute) and node.attr in ("pmap", "xmap"):
            found.append(f"{path} uses {node.attr}: jit with shardings does its work")
    return found


def test_every_module_imports_only_what_stands_before_it():
    assert len(MODULES) > 20
    found = [v for path in MODULES for v in violations(path.read_text(), path.relative_to(PACKAGE).as_posix())]
    assert found == []


@pytest.mark.parametrize(
    ("path", "source", "complaint"),
    [
        ("diffusion/loss.py", "from ddpm_jax.nets import UNet", "a step back"),
        ("diffusion/loss.py", "import ddpm_jax.sampling.loop", "a step back"),
        ("nets/unet.py", "from ddpm_jax import sampling", "a step back"),
        ("types.py", "from ddpm_jax.records import pick", "a step back"),
        ("types.py", "from ddpm_jax import files", "stands beside it"),
        ("sampling/loop.py", "def late():\n    from ddpm_jax.training.mesh import make", "a step back"),
        ("sampling/loop.py", "from ..training import mesh", "a step back"),
        ("sampling/loop.py", "from ddpm_jax import utils", "no place in the order"),
        ("utils.py", "import os", "no place in the order"),
        ("__init__.py", "from ddpm_jax.types import checked", "a step back"),
        ("sampling/loop.py", "import flax.linen as nn", "only nets may"),
        ("training/state.py", "from flax import struct", "only nets may"),
        ("nets/unet.py", "from jax.experimental.maps import xmap", "on its way out"),
        ("nets/unet.py", "from jax import pmap", "on its way out"),
        ("training/step.py", "import jax\njax.pmap(f)", "uses pmap"),
        ("nets/unet.py", "from __future__ import annotations", "__future__"),
    ],
)
def test_a_bad_import_is_caught(path, source, complaint):
    found = violations(source, path)
    assert len(found) >= 1
    assert complaint in found[0]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("sampling/loop.py", "from ddpm_jax.sampling.steps import ddpm\nfrom ddpm_jax.types import checked"),
        ("sampling/loop.py", "from .steps import ddpm\nfrom ..diffusion import schedules"),
        ("nets/unet.py", "import flax.linen as nn\nimport jax"),
        ("cli/plan.py", "from ddpm_jax import config as config_lib\nfrom ddpm_jax.interop import weights"),
        ("__init__.py", "__version__ = '1'"),
    ],
)
def test_a_good_import_passes(path, source):
    assert violations(source, path) == []


def test_no_file_is_longer_than_300_lines():
    files = [*MODULES, *(ROOT / "tests").glob("*.py"), *(ROOT / "configs").glob("*.py"), *ROOT.glob("*.py")]
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in files}
    assert {name: length for name, length in lengths.items() if length > 300} == {}
