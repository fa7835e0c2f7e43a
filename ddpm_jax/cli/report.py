"""A run on one page: python -m ddpm_jax.cli.report WORKDIR

Writes WORKDIR/report.html, of a run at work, finished or broken off: samples over training, curves, evaluations, the
schedule and what was run, in one file that loads nothing. train.py writes it too; this is for what came after.
"""

import sys

from ddpm_jax.cli import flags


def main(args: list[str]) -> None:
    if len(args) != 1 or args[0] in ("-h", "--help"):
        print("python -m ddpm_jax.cli.report WORKDIR")
        print("writes WORKDIR/report.html, the page of a run, as its folder is now")
        if args and args[0] not in ("-h", "--help"):
            raise ValueError(f"report takes one run's folder, got {' '.join(args)}")
        sys.exit(0)
    workdir, _ = flags.run_folder(args[0])
    from ddpm_jax.training import run_report

    print(f"wrote {run_report.write(workdir)}")


if __name__ == "__main__":
    flags.run(main)
