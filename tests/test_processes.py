"""Several processes, several devices, and a run that is asked to stop: real processes on this machine."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, TINY
from together import free_port

from ddpm_jax.cli import flags
from ddpm_jax.config import Launch
from ddpm_jax.training import last_words, mesh, processes

LAST_WORDS = """
import os, signal, sys
from ddpm_jax.cli import flags
from ddpm_jax.config import Launch

_, case, port, i, saves = sys.argv
sys.argv = ["train.py"]

def main(arguments):
    from ddpm_jax.training import processes

    launch = Launch(coordinator=f"localhost:{port}", num_processes=2, process_id=int(i), timeout=10)
    processes.join(launch, saves=saves)
    processes.meet("at work")
    if case == f"death of {i}":
        os.kill(os.getpid(), signal.SIGKILL)
    if case == f"error of {i}":
        raise FileNotFoundError("--data.path has no images")
    processes.meet("where the other one never comes")

flags.run(main)
"""
REPORT = """\
I1122 05:31:01.000000 1 some_other.cc:1] passed on
E1122 05:31:06.507715 10344 coordination_service.cc:1549] Use error polling to propagate the following error:
2
F1122 05:31:06.509169 10355 client.h:80] Terminating process because the JAX distributed service detected fatal \
errors. absl::Status: UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):
2
5
The tasks have crashed. Check the task logs for an earlier error.
*** Check failure stack trace: ***
    @     0x7f2692a40634  SendToLog()
"""


def start(workdir, *arguments, devices=1):
    env = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "train.py", TINY, "--workdir", workdir, *arguments]
    return subprocess.Popen(
        list(map(str, command)), cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def losses(workdir):
    return [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_lost_process_ends_the_other_with_one_line(tmp_path):
    """Killed, the first or another, while the other one waits in a collective; or ended by an error of its own."""
    for step in (20, 40):
        (tmp_path / str(step)).mkdir()
    (tmp_path / "60.orbax-checkpoint-tmp").mkdir()
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    running = {}
    for case in ("death of 0", "death of 1", "error of 1"):
        port = str(free_port())
        for i in range(2):
            command = [sys.executable, "-c", LAST_WORDS, case, port, str(i), str(tmp_path)]
            running[case, i] = subprocess.Popen(command, cwd=ROOT, env=env, stdout=-3, stderr=-1, text=True)
    said = {key: process.communicate(timeout=200)[1] for key, process in running.items()}
    saved = "the run is saved up to step 40: start all processes again with the same command to go on\n"
    dead = "\ntrain.py: process 1 of 2 stopped answering within 10 s and is taken to be dead; "
    expected = {
        ("death of 0", 0): "",
        ("death of 0", 1): f"\ntrain.py: process 0 of 2, through which the processes meet, is gone; {saved}",
        ("death of 1", 0): dead + saved,
        ("death of 1", 1): "",
        ("error of 1", 0): f"\ntrain.py: process 1 of 2 has ended (--data.path has no images); {saved}",
        ("error of 1", 1): "train.py: --data.path has no images\n",
    }
    assert said == expected
    statuses = [process.returncode for process in running.values()]
    assert [128 - n if n < 0 else n for n in statuses] == [137, processes.LOST, processes.LOST, 137, processes.LOST, 2]


@pytest.mark.parametrize("size", [1, 100, 10_000])
def test_only_the_report_of_a_lost_process_is_put_in_other_words(size):
    def listen(text):
        chunks, written = iter([text[i : i + size].encode() for i in range(0, len(text), size)]), []
        last_words.listen(
            lambda: next(chunks, b""),
            written.append,
            last=lambda report: last_words.reason(report, count="8", timeout="20"),
        )
        return "".join(written)

    before = REPORT.partition("F1122")[0]
    assert listen(before + "end without a newline") == before + "end without a newline"
    first = "I1122 05:31:01.000000 1 some_other.cc:1] passed on\n"
    assert listen(REPORT) == first + "processes 2, 5 of 8 stopped answering within 20 s and are taken to be dead"


def test_a_run_that_is_told_to_end_is_saved_and_ends_well(tmp_path):
    every = ["--run.log-every", "1", "--run.checkpoint-every", "4000", "--run.sample-every", "4000"]
    process = start(tmp_path / "run", "--steps", "4000", *every)
    deadline = time.monotonic() + 200
    while not (tmp_path / "run" / "metrics.jsonl").exists() or len(losses(tmp_path / "run")) < 3:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    found = re.search(r"was asked to stop, and is saved at step (\d+); the same command goes on", said)
    assert found, said
    kept = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert kept == [found[1]]


def test_arrays_are_cut_along_their_longest_axis_that_divides():
    class Four:
        shape = {"data": 1, "fsdp": 4}  # noqa: RUF012

    whole = {"bias": (512,), "odd": (3, 3, 15, 9)}
    cut = {"kernel": (3, 3, 64, 128), "wide": (3, 3, 256, 6), "dense": (30, 1024)}
    axes = {"kernel": 3, "wide": 2, "dense": 1}
    for shape in whole.values():
        assert mesh.cut_axis(Four, shape) is None  # pyright: ignore[reportArgumentType]
    for name, shape in cut.items():
        assert mesh.cut_axis(Four, shape) == axes[name]  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("launch", "message"),
    [
        (Launch(coordinator="localhost:1"), "go together, got 'localhost:1', 0 and -1"),
        (Launch(num_processes=2, process_id=0), "go together, got '', 2 and 0"),
        (Launch(coordinator="localhost:1", num_processes=2, process_id=2), "process-id must lie in 0 .. 1, got 2"),
        (Launch(timeout=0), "--launch.timeout must be at least 1 second, got 0"),
    ],
)
def test_half_a_launch_is_refused(launch, message):
    with pytest.raises(ValueError, match=message):
        processes.join(launch)


def test_where_there_is_no_cluster_one_line_says_what_to_do(program, tmp_path):
    done = program("train.py", TINY, "--workdir", tmp_path / "run", "--launch.auto")
    assert done.returncode == 2
    assert done.stderr.startswith("train.py: --launch.auto: JAX knows no cluster here (coordinator_address should be")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_mesh_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"--devices\.fsdp must divide the 1 devices, got 3; try one of 1"):
        mesh.make_mesh(3)
    with pytest.raises(ValueError, match="by the 1 devices times 3 parts, got 8; try 6 or 9"):
        mesh.check_batch(8, mesh.make_mesh(), parts=3)


def test_how_processes_meet_is_no_part_of_a_run(tmp_path):
    asked = flags.training(["digits", "--launch.timeout", "7", "--devices.accumulate", "2"])
    assert asked.launch.timeout == 7
    assert asked.config.devices.accumulate == 2
    assert not hasattr(asked.config, "launch")
