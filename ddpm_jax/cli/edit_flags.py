"""The flags of sample.py's --edit: what `cli.editing` is asked for."""

import dataclasses

from ddpm_jax.cli.flags import Place


@dataclasses.dataclass(frozen=True, kw_only=True)
class Editing:
    """Edit real images in place of drawing new ones."""

    edit: str = ""
    """Edit real images, and draw nothing else: inpaint, colourise, deblur, superresolve, sdedit, invert, interpolate or
    cascade. The picture is OUT_EDIT.png. invert and interpolate walk by ddim, whatever the sampler."""
    image: tuple[str, ...] = ("0",)
    """The images to edit: numbers of the run's data (see --data-split), or files, which are brought to its shape."""
    data_split: str = ""
    """The split that numbers count in; the run's own if not given."""
    versions: int = 4
    """How many results for each image, which differ in their noise."""
    method: str = ""
    """replace, repaint, dps or pigdm for inpaint (repaint if not given); dps or pigdm for colourise, deblur and
    superresolve (pigdm), which a network of --net.enlarges does by itself."""
    mask: str = "right"
    """What to inpaint: left, right, top, bottom, box or surround, half of the side; or a file, white where to."""
    jump: int = 10
    """For repaint: levels to go up at a time."""
    resamples: int = 10
    """For repaint: how often each stretch is walked."""
    factor: int = 2
    """For superresolve: pixels of a side that were averaged into one."""
    blur: float = 1.0
    """For deblur: deviation in pixels."""
    noise: float = 0.0
    """Deviation of noise that is added to what is measured, in a range of [-1, 1]."""
    scale: float = 1.0
    """For dps: the size of a step."""
    strength: float = 0.5
    """For sdedit: the part of the way from noise that is walked, 0 (the image itself) to 1 (nothing left of it)."""
    to_label: int | None = None
    """For invert: the class to draw the latents under, in place of the image's own."""
    base: Place | None = None
    """For cascade: the folder of the run that draws the small images."""
    augment: float = 0.1
    """For networks of --net.enlarges: how far up the schedule the small image is noised, 0 to 1."""


TASKS = {
    "inpaint": ("versions", "method", "mask"),
    "colourise": ("versions", "method"),
    "deblur": ("versions", "method", "blur"),
    "superresolve": ("versions", "method", "factor"),
    "sdedit": ("versions", "strength"),
    "invert": ("to_label",),
    "interpolate": (),
    "cascade": ("versions", "base", "augment"),
}
"""The flags that have a part in each task, besides --image and --data-split."""
METHODS = {"replace": (), "repaint": ("jump", "resamples"), "dps": ("noise", "scale"), "pigdm": ("noise",)}
"""Those that a method adds."""


def unused(asked: Editing, *, enlarges: bool) -> str:
    """The first flag that was given, and has no part in the task or its method; empty if there is none."""
    takes = TASKS.get(asked.edit)
    if takes is None:
        return ""
    if "method" in takes and enlarges:
        takes = ("versions", "augment")
    elif "method" in takes:
        takes += METHODS.get(asked.method or ("repaint" if asked.edit == "inpaint" else "pigdm"), tuple(vars(asked)))
    for name, value in vars(asked).items():
        if name not in ("edit", "image", "data_split", *takes) and value != getattr(Editing(), name):
            return f"--{name.replace('_', '-')} {value}"
    return ""
