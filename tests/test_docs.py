"""The pages of docs/ say what the product does: their Python runs, their commands have the flags that they name."""

import functools
import importlib.util
import json
import re
import shlex

import pytest
from conftest import ROOT

from ddpm_jax.cli import compare, explain, flags
from ddpm_jax.diffusion import schedules
from ddpm_jax.diffusion.weightings import WEIGHTINGS
from ddpm_jax.training import own_weighting, sweep

PAGES = {path.name: path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))}
README = (ROOT / "README.md").read_text()
PROGRAMS = {"compare": compare.Flags, "explain": explain.Flags}
_SPEC = importlib.util.spec_from_file_location("notebook", ROOT / "docs" / "notebook.py")
notebook = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(notebook)


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def links(text):
    """Every file that a page links to or shows."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"\]\((?!https?:|#)([^)#]+)", prose)


def with_blocks(language):
    return [name for name, text in PAGES.items() if blocks(text, language)]


@functools.cache
def after_running(name):
    """What the page's Python leaves behind, all blocks of it in one namespace."""
    namespace = {}
    for i, block in enumerate(blocks(PAGES[name], "python")):
        exec(compile(block, f"{name}, block {i}", "exec"), namespace)
    return namespace


def files_of(text, folder):
    """Write each block that begins with the name of a file."""
    for block in blocks(text, "python"):
        if found := re.match(r"# (\w+\.py)\n", block):
            (folder / found[1]).write_text(block)


def check(words, folder):
    """Read a command as its program does, and its weightings as a run would; nothing is trained."""
    assert words.pop(0) == "python"
    if words[0].startswith("docs/"):
        assert all((ROOT / word).is_file() for word in words if not word.startswith("--"))
        return
    if words[0] == "-m":
        program, preset = words[1].removeprefix("ddpm_jax.cli."), words[2]
        default = {"workdir": folder} if program == "compare" else {"out": folder}
        default = PROGRAMS[program](**default, config=flags.load_preset(preset))
        asked = flags.parse(PROGRAMS[program], words[3:], prog=program, default=default)
    else:
        assert words[0] == "train.py"
        asked = flags.training(words[1:])
    variants = [sweep.Variant(name="as it is", config=asked.config)]
    if isinstance(asked, compare.Flags):
        axes = {name: getattr(asked, name) for name in sweep.AXES}
        variants = sweep.variants(asked.config, **axes)
    for variant in variants:
        settings = variant.config.diffusion
        own_weighting.build(settings.weighting, settings.weighting_args, schedules.build(settings))


@pytest.mark.parametrize("name", with_blocks("python"))
def test_the_python_of_a_page_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert after_running(name)


@pytest.mark.parametrize("name", with_blocks("sh"))
def test_the_commands_of_a_page_are_ones_that_the_programs_take(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files_of(PAGES[name], tmp_path)
    lines = "".join(blocks(PAGES[name], "sh")).replace("\\\n", " ").splitlines()
    assert lines
    for line in lines:
        check(shlex.split(line, comments=True), tmp_path)


@pytest.mark.parametrize("name", PAGES)
def test_what_a_page_links_to_is_there(name):
    for target in links(PAGES[name]):
        assert (ROOT / "docs" / target).exists(), target


def test_every_picture_is_shown_somewhere():
    shown = {target.removeprefix("docs/") for text in (README, *PAGES.values()) for target in links(text)}
    kept = {path.name for path in (ROOT / "docs").iterdir() if path.suffix in (".png", ".gif")}
    assert kept <= shown


def test_the_readme_names_every_page():
    assert {f"docs/{name}" for name in PAGES} <= set(links(README))


def test_the_notebook_is_what_its_page_makes_with_the_same_blocks():
    page, made = PAGES["from_scratch.md"], (ROOT / "docs" / "from_scratch.ipynb").read_text()
    assert made == notebook.notebook(page), "run python docs/notebook.py docs/from_scratch.md"
    cells = json.loads(made)["cells"]
    code = ["".join(cell["source"]) + "\n" for cell in cells if cell["cell_type"] == "code"]
    assert code == blocks(page, "python")  # which another test runs
    assert len({cell["id"] for cell in cells}) == len(cells)


def test_the_table_of_weightings_has_all_of_them_and_their_verdicts():
    rows = re.findall(r"^\| `(\w+)` .*\| (yes|no) \| (yes|no) \| (yes|no) \|$", PAGES["weightings.md"], re.MULTILINE)
    told = {name: [word == "yes" for word in words] for name, *words in rows}
    assert told == after_running("weightings.md")["monotone"]
    assert list(told) == list(WEIGHTINGS)


def test_a_command_with_a_flag_that_is_none_is_caught(tmp_path):
    with pytest.raises(ValueError, match=r"--run\.bins"):
        check(shlex.split("python train.py digits --run.bin 12"), tmp_path)
    with pytest.raises(ValueError, match="did you mean 'gamma'"):
        check(shlex.split("python -m ddpm_jax.cli.compare digits --weightings 'min_snr(gama=5)'"), tmp_path)
