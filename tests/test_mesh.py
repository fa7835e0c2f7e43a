"""How devices are laid out: one slice and several, a torus, and which rows of a batch fall to a process."""

import dataclasses

import numpy as np
import pytest

from ddpm_jax.training import mesh


@dataclasses.dataclass(frozen=True)
class Chip:
    """What JAX says of a TPU chip, of a host of four."""

    id: int
    coords: tuple[int, int, int]
    slice_index: int = 0
    core_on_chip: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"

    @property
    def process_index(self) -> int:
        x, y, _ = self.coords
        return 4 * self.slice_index + y // 2 * 2 + x // 2


def torus(slices: int = 1, side: int = 4) -> list[Chip]:
    """`slices` of side x side chips."""
    places = [(x, y, 0) for y in range(side) for x in range(side)]
    return [Chip(1000 * s + i, place, s) for s in range(slices) for i, place in enumerate(places)]


def test_several_slices_lie_one_after_the_other_and_share_no_state():
    found = mesh.make_mesh(4, torus(slices=2))
    assert dict(found.shape) == {"data": 8, "fsdp": 4}
    slices = np.vectorize(lambda chip: chip.slice_index)(found.devices)
    np.testing.assert_array_equal(slices, np.repeat([[0], [1]], 4, axis=0) * np.ones((1, 4), int))


def test_those_that_share_a_copy_of_the_state_are_neighbours_on_the_torus():
    found = mesh.make_mesh(4, torus())
    for group in found.devices:
        corner = np.array([chip.coords for chip in group])
        assert np.prod(np.ptp(corner, axis=0) + 1) == 4  # they fill a row, a column or a square


def test_part_of_a_slice_and_chips_of_two_devices_keep_their_order():
    assert [chip.id for chip in mesh.make_mesh(1, torus()[:3]).devices.flat] == [0, 1, 2]
    cores = [dataclasses.replace(chip, id=2 * chip.id + c, core_on_chip=c) for chip in torus(side=2) for c in (0, 1)]
    assert [chip.id for chip in mesh.make_mesh(2, cores).devices.flat] == list(range(8))


def test_a_state_is_not_shared_across_slices():
    with pytest.raises(
        ValueError, match=r"divide the 16 devices of each of the 2 slices, got 32; try one of 1, 2, 4, 8"
    ):
        mesh.make_mesh(32, torus(slices=2))
    with pytest.raises(ValueError, match="equally many devices, got 31 devices in 2 slices"):
        mesh.make_mesh(1, torus(slices=2)[:-1])


def test_the_rows_of_all_processes_make_up_the_batch():
    """On a torus of 4 x 4 chips a host's square of four isn't four in a row of the mesh."""
    chips = mesh.make_mesh(1, torus())
    shares = [mesh.rows(chips, 32, process=i) for i in range(4)]
    np.testing.assert_array_equal(np.sort(np.concatenate(shares)), np.arange(32))
    assert all(len(share) == 8 and (np.diff(share) > 0).all() for share in shares)
    assert (np.diff(shares[0]) > 1).any()
