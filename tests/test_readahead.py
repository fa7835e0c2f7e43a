"""Worker processes: how long they live, and what is sent to them."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT

from ddpm_jax import data
from ddpm_jax.data import readahead

PROGRAM = """
import contextlib, functools, multiprocessing, sys
import numpy as np
from ddpm_jax import data
from ddpm_jax.data import pipeline, readahead

if __name__ == "__main__":
    source = readahead.for_workers(data.Source(images=np.load(sys.argv[1], mmap_mode="r")))
    at = functools.partial(pipeline.read_at, source, seed=0, batch_size=4)
    with contextlib.closing(iter(readahead.read_ahead(at, threads=1, workers=1))) as stream:
        next(stream)
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        for line in sys.stdin:  # told that its worker got a SIGTERM
            for _ in range(20):
                next(stream)
            print("still there", flush=True)
"""


@pytest.fixture
def images(tmp_path):
    """Thirteen images of noise in a mapped file."""
    np.save(tmp_path / "set.npy", np.random.default_rng(0).integers(0, 256, (13, 4, 3, 2), np.uint8))
    return np.load(tmp_path / "set.npy", mmap_mode="r")


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="looks at processes through /proc")
def test_a_worker_outlives_a_request_to_end_but_not_its_run(images, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, str(program), str(images.filename)]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as main:
        workers = [int(pid) for pid in main.stdout.readline().split()]
        assert len(workers) == 1
        os.kill(workers[0], signal.SIGTERM)
        main.stdin.write("\n")
        main.stdin.flush()
        assert main.stdout.readline() == "still there\n"
        main.kill()
    deadline = time.monotonic() + 60
    while any(map(is_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_alive, workers))


def test_a_part_of_a_mapped_file_goes_to_workers_by_its_name(images):
    """Pickled whole, it would be a copy in each of them."""
    rows = np.array([4, 0, 2])
    for part in (images, images[3:11], images[5:, ..., None]):
        sent = readahead.mapped(part)
        assert sent.path == str(images.filename)
        assert len(sent) == len(part)
        np.testing.assert_array_equal(sent[rows], part[rows])
    assert readahead.mapped(np.array(images)) is None
    assert readahead.mapped(images[:, ::2]) is None


def test_images_in_memory_are_not_sent_to_workers(images):
    with pytest.raises(ValueError, match=r"--data.workers 0 is for images in memory"):
        readahead.for_workers(data.Source(images=np.array(images)))
