"""A page to look at: sections of text, tables, figures and pictures in one HTML file that loads nothing from elsewhere.

Blocks are functions that return markup; everything that they are given is escaped. Figures become inline SVG, drawn
once: INK, PAPER, MUTED and COLOURS turn into the page's own, which differ between light and dark.
"""

import base64
import dataclasses
import functools
import io
import os
import re
from collections.abc import Mapping, Sequence
from xml.etree import ElementTree

import jinja2
import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

from ddpm_jax import files

INK, PAPER, MUTED = "#000000", "#ffffff", "#6b7280"
COLOURS = {
    "#2f64de": "#8eaef5",
    "#d47222": "#d07f35",
    "#3f9676": "#32eba8",
    "#7e3270": "#fc3c8e",
    "#6b5800": "#f1cd54",
    "#449ecb": "#0eadb1",
    "#570dea": "#9f5ef0",
}
"""A line's colour on white -> on the dark page. They differ for colour-blind readers, too, and stand out from both."""

MINUS = "\N{MINUS SIGN}"

WIDTH = 9.0
"""Of a figure that fills the page, in inches; its text is then as large as the page's small print at 9 points."""

_VARIABLES = {INK: "currentColor", PAPER: "var(--paper)", MUTED: "var(--muted)"}
_VARIABLES |= {light: f"var(--line-{i})" for i, light in enumerate(COLOURS)}
_NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """An entry of a table."""

    text: str
    note: str = ""
    """In small print below it."""
    best: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """Pixels with a name: uint8 [H, W, 1 or 3]."""

    name: str
    pixels: np.ndarray
    alt: str
    """What is to be seen, for who can't see it."""
    zoom: float = 1
    """Width on the page over width in pixels, where there is room."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frame:
    """A picture of a film: a PNG as its file has it."""

    label: str
    """When it was taken: "step 1,500"."""
    png: bytes
    width: int
    height: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """A name, its value, and the usual one if that is another."""

    name: str
    value: str
    usual: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    title: str
    blocks: tuple[Markup, ...]

    @property
    def anchor(self) -> str:
        return slug(self.title)


def render(title: str, lead: str, sections: Sequence[Section]) -> str:
    """The whole page. `lead` is a sentence under the title; titles of sections differ.

    Raises:
        ValueError: if two sections share an address.
    """
    anchors = [section.anchor for section in sections]
    if len({*anchors}) < len(anchors):
        raise ValueError(f"titles of sections must differ, got {', '.join(section.title for section in sections)}")
    return (
        _templates()
        .get_template("page.html.jinja")
        .render(title=title, lead=lead, sections=sections, colours=[*COLOURS.items()])
    )


def write(path: str | os.PathLike, html: str) -> None:
    """Write the page whole or not at all."""
    files.suffix(path, [".html"])
    files.write(path, html.encode())


def text(*paragraphs: str) -> Markup:
    return _block("text", paragraphs)


def heading(title: str) -> Markup:
    """Within a section."""
    return _block("heading", title)


def points(items: Sequence[tuple[str, str, str]]) -> Markup:
    """A list of sentences, each (kind, mark, sentence); kind "better", "worse" or another gives the mark its colour."""
    return _block("points", items)


def facts(pairs: Mapping[str, str]) -> Markup:
    """Names and what belongs to them, in two columns."""
    return _block("facts", pairs)


def command(line: str) -> Markup:
    return _block("command", line)


def table(
    caption: str,
    head: Sequence[str],
    rows: Sequence[Sequence[str | Cell]],
    *,
    words: bool = False,
    wraps: bool = False,
) -> Markup:
    """Rows under their heads. The first entry of each is its name, the others are numbers, or words, of which the last
    may take several lines."""
    cells = [[cell if isinstance(cell, Cell) else Cell(text=cell) for cell in row] for row in rows]
    return _block("table", caption, head, cells, words, wraps)


def plot(name: str, figure: Figure, caption: str) -> Markup:
    """A figure as inline SVG. `name` says what it shows, and no other figure of the page has it."""
    return _block("plot", name, Markup(_svg(figure, slug(name))), caption, round(96 * figure.get_figwidth()))


def pictures(items: Sequence[Picture], caption: str) -> Markup:
    """Pictures side by side, as many in a row as there is room for; their pixels stay squares."""
    shown = [(item, _data(item.pixels), round(item.zoom * item.pixels.shape[1])) for item in items]
    return _block("pictures", shown, caption)


def film(name: str, frames: Sequence[Frame], caption: str, *, zoom: float = 1) -> Markup:
    """Pictures one at a time, the last at first: a slider for the others, and a button that plays them.

    `name` says what is to be seen, and no other film of the page has it. Nothing moves before it is asked to.

    Raises:
        ValueError: if there are no pictures.
    """
    if not frames:
        raise ValueError("frames must hold at least one picture, got none")
    shown = [(frame.label, _address(frame.png), round(zoom * frame.width)) for frame in frames]
    return _block("film", name, slug(name), shown, caption, max(width for *_, width in shown))


def settings(summary: str, groups: Mapping[str, Sequence[Setting]]) -> Markup:
    """Settings folded away in groups; those that aren't as usual are marked, and counted."""
    counted = [(name, rows, sum(row.usual is not None for row in rows)) for name, rows in groups.items()]
    return _block("settings", summary, counted)


def slug(title: str) -> str:
    """ "What was run" -> "what-was-run", to be used as an address."""
    return re.sub(r"\W+", "-", title.lower()).strip("-")


def _block(name: str, *given: object) -> Markup:
    return getattr(_templates().get_template("blocks.html.jinja").module, name)(*given)


@functools.cache
def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("ddpm_jax.figures"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _data(pixels: np.ndarray) -> str:
    """A PNG as an address that holds the file itself."""
    pixels = pixels[..., 0] if pixels.shape[2:] == (1,) else pixels
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, format="PNG", optimize=True)
    return _address(encoded.getvalue())


def _address(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _svg(figure: Figure, prefix: str) -> str:
    """The figure in the page's colours and letters, its ids under a prefix.

    Inside HTML an SVG's ids and styles are the page's: matplotlib's style sheet goes, and so do ids that nobody uses.
    """
    drawn = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": prefix}):
        figure.savefig(drawn, format="svg", transparent=True, metadata=_NO_METADATA)
    root = ElementTree.fromstring(drawn.getvalue())
    used = {*re.findall(r'(?:href="|url\()#([^")]+)', drawn.getvalue().decode())}
    for element in root.iter():
        element.tag = _local(element.tag)
        for child in [child for child in element if _local(child.tag) == "style"]:
            element.remove(child)
        for name, value in [*element.attrib.items()]:
            del element.attrib[name]
            if name != "id" or value in used:
                element.set(_local(name), _attribute(_local(name), value, prefix))
        if not (element.text or "").strip():
            element.text = None
        element.tail = None
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("aria-hidden", "true")  # the figure's name and caption speak for it
    return ElementTree.tostring(root, encoding="unicode")


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _attribute(name: str, value: str, prefix: str) -> str:
    if name == "id":
        return f"{prefix}-{value}"
    if name == "href":
        return f"#{prefix}-{value[1:]}" if value.startswith("#") else value
    if name == "clip-path":
        return value.replace("url(#", f"url(#{prefix}-")
    if name in ("d", "x", "y", "transform"):
        return re.sub(r"(\.\d\d)\d+", r"\1", " ".join(value.split()))  # a hundredth of a point is enough
    if name == "style":
        value = re.sub(r"font-family: [^;]*;? ?", "", value)
        return re.sub(r"#[0-9a-f]{6}", lambda found: _VARIABLES.get(found.group(), found.group()), value)
    return value
