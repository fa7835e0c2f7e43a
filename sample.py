"""Draw images from a run's folder: python sample.py WORKDIR [--num N] [--sampler NAME] [--steps N] ... (see --help).

Writes a grid, and beside it a strip and a GIF of how the first images came out of the noise.
"""

import dataclasses
import sys
from typing import Annotated, Literal

import tyro

from ddpm_jax.cli import flags
from ddpm_jax.cli.edit_flags import Editing
from ddpm_jax.config import Launch, Sampling


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """Draw images from a run's folder."""

    num: int = 64
    """How many images."""
    seed: int = 0
    out: flags.Place | None = None
    """The grid, a .png; WORKDIR/samples/sample.png if not given. Other files are named after it."""
    sampling: Annotated[Sampling, tyro.conf.arg(name="")] = Sampling()
    batch_size: int = 64
    label: int | None = None
    """Draw this class only, if the network takes classes; else every class in turn."""
    raw: bool = False
    """Use the weights of the last step, not their average over training."""
    ema_sigma_rel: float | None = None
    """Use the average of this length, a share of the run so far below 0.2887, in place of the one that was kept: made
    of the snapshots of a run with --optimizer.ema-sigma-rels."""
    checkpoint: int | Literal["best"] | None = None
    """The step to read, or best (of those that training evaluated); the newest if not given."""
    frames: int = 51
    """Moments of the denoising to show in the strip (every fifth) and the GIF; 0 for neither."""
    interpolate: int = 0
    """Also walk between this many pairs of real images, read from the run's data, through their noised versions."""
    interpolate_from: float | None = None
    """The step of the schedule to which they are noised; the middle of the way if not given."""
    singles: flags.Place | None = None
    """Also write every image as a PNG of its own into this folder."""
    npz: flags.Place | None = None
    """Also write all images into this .npz: `images`, uint8 [N, H, W, C], and `labels` if there are classes."""
    editing: Annotated[Editing, tyro.conf.arg(name="")] = Editing()
    launch: Launch = Launch()


def main(args: list[str]) -> None:
    if not args or args[0] in ("-h", "--help"):
        print("python sample.py WORKDIR [--num N] [--sampler NAME] [--steps N] [--seed S] [--out FILE.png] ...")
        print("WORKDIR is a run's folder, as train.py leaves it; WORKDIR --help lists every flag.")
        sys.exit(0)
    workdir, config = flags.run_folder(args[0])
    asked = flags.parse(Flags, args[1:], prog=f"sample.py {workdir}", default=Flags(sampling=config.sampling))
    out = asked.out or workdir / "samples" / "sample.png"
    if out.suffix != ".png":
        raise ValueError(f"--out must end in .png, got {out}")
    if asked.npz is not None and asked.npz.suffix != ".npz":
        raise ValueError(f"--npz must end in .npz, got {asked.npz}")
    if asked.frames < 0 or asked.frames == 1:
        raise ValueError(f"--frames must be 0 or at least 2, got {asked.frames}")
    if asked.raw and asked.ema_sigma_rel is not None:
        raise ValueError(f"--raw is no average, --ema-sigma-rel {asked.ema_sigma_rel} is one: give one of the two")
    # Imported late: a mistyped flag should not have to wait for JAX.
    from ddpm_jax.cli import drawing, editing
    from ddpm_jax.training import draw, guided, power_ema, processes, run, snapshots

    if asked.ema_sigma_rel is not None:
        power_ema.gamma_of(asked.ema_sigma_rel, "--ema-sigma-rel")
    flags.begin(asked.launch)
    parts, state = run.load(workdir, step=asked.checkpoint)
    params = state.params if asked.raw else state.ema
    if asked.ema_sigma_rel is not None:
        [made] = snapshots.reconstruct(workdir, state, [asked.ema_sigma_rel])
        params = made.params
        if processes.writes():
            found = f"{made.num_snapshots} snapshots before step {int(state.step)}; it misses {made.misfit:.1%}"
            print(f"average of sigma_rel {asked.ema_sigma_rel} from {found} of its profile")
    parts, params = draw.in_dtype(parts, params, asked.sampling.dtype, under="--")
    of = drawing.Drawing(
        parts=parts,
        params=params,
        settings=guided.within(asked.sampling, workdir),
        seed=asked.seed,
        label=asked.label,
        out=out,
    )
    drawing.check(of)
    if asked.editing.edit:
        editing.edit(of, asked.editing)
        return processes.meet("the picture is written")
    halfway = drawing.halfway(of, asked.interpolate_from) if asked.interpolate else 0.0
    drawing.images(of, num=asked.num, batch_size=asked.batch_size, singles=asked.singles, npz=asked.npz)
    if asked.frames:
        drawing.denoising(of, num=min(asked.num, 8), frames=asked.frames)
    if asked.interpolate:
        drawing.interpolation(of, pairs=asked.interpolate, t=halfway)
    processes.meet("the pictures are written")


if __name__ == "__main__":
    flags.run(main)
