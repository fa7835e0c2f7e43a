"""One comparison against as many separate runs: python benchmarks/compare.py [--steps 200] [--out FILE.json]

Both do the same training: six weightings, three seeds, `digits`, each with its log, checkpoints and pictures; the
comparison also measures every network and writes its page. One after the other, each as a program of its own, nothing
compiled beforehand. Then every member's logged losses are held against its own run's.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WEIGHTINGS = {
    "simple": ("simple", {}),
    "min_snr(gamma=5)": ("min_snr", {"gamma": 5}),
    "soft_min_snr(gamma=5)": ("soft_min_snr", {"gamma": 5}),
    "p2": ("p2", {}),
    "sigmoid(bias=2)": ("sigmoid", {"bias": 2}),
    "debiased": ("debiased", {}),
}
SEEDS = range(3)


def timed(command: list[str]) -> float:
    """Seconds that a program takes, with no compilation kept from before."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COMPILATION_CACHE")}
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    return time.perf_counter() - begin


def losses(folder: Path, name: str = "loss") -> dict[int, float]:
    """Logged step -> loss."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line[name] for line in lines if name in line}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--folder", type=Path, help="where the runs go; a temporary folder if not given")
    asked = parser.parse_args()
    folder = asked.folder or Path(tempfile.mkdtemp())
    common = ["--steps", str(asked.steps), "--run.log-every", "10"]
    together = ["-m", "ddpm_jax.cli.compare", "digits", "--workdir", str(folder / "together"), *common]
    seconds = {"together": timed([*together, "--weightings", *WEIGHTINGS, "--seeds", str(len(SEEDS))])}
    print(f"together {seconds['together']:.0f} s", flush=True)
    apart, differences = [], {}
    for name, (weighting, arguments) in WEIGHTINGS.items():
        flags = ["--diffusion.weighting", weighting]
        if arguments:
            flags += ["--diffusion.weighting-args", *(str(word) for pair in arguments.items() for word in pair)]
        for seed in SEEDS:
            own = folder / f"{weighting}_{seed}"
            apart.append(timed(["train.py", "digits", "--workdir", str(own), "--seed", str(seed), *flags, *common]))
            alone, member = losses(own), losses(folder / "together", f"{name}, seed {seed}/loss")
            differences[f"{name}, seed {seed}"] = {step: abs(member[step] / alone[step] - 1) for step in alone}
            worst = max(differences[f"{name}, seed {seed}"].values())
            print(f"{name}, seed {seed}: {apart[-1]:.0f} s, losses differ by {worst:.1e}", flush=True)
    steps = next(iter(differences.values()))
    result = {
        "steps": asked.steps,
        "members": len(differences),
        "seconds_together": seconds["together"],
        "seconds_apart": sum(apart),
        "ratio": sum(apart) / seconds["together"],
        "largest_relative_difference_of_losses": {
            str(step): max(found[step] for found in differences.values()) for step in steps
        },
        "load": os.getloadavg()[1],
        "cores": os.cpu_count(),
    }
    print(json.dumps(result, indent=1))
    if asked.out:
        asked.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
