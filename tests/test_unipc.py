"""UniPC: order with and without the corrector, another library's numbers, and the ends of the way."""

import jax
import numpy as np
import pytest
import recorded
import solvers
import worlds

from ddpm_jax.diffusion import processes
from ddpm_jax.sampling.unipc import unipc

FORMS = {"x0": False, "eps": True}
SETTINGS = [
    (1, 1, "x0"),
    (1, 2, "eps"),
    (2, 1, "x0"),
    (2, 1, "eps"),
    (2, 2, "x0"),
    (2, 2, "eps"),
    (3, 2, "x0"),
    (3, 1, "eps"),
]
RECORDED = {
    f"unipc_{order}_bh{bh}_{form}": unipc(order=order, bh=bh, eps=FORMS[form]) for order, bh, form in SETTINGS
} | {
    "unipc_2_to_zero": unipc(order=2),
    "unipc_3_to_zero": unipc(order=3),
    "unipc_2_predictor_only": unipc(order=2, corrector=False),
    "unipc_2_zero_snr": unipc(order=2),
}


@pytest.fixture
def float64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.mark.parametrize("name", RECORDED)
def test_the_path_is_the_recorded_one(name, float64):
    """x as the predictor leaves it, before it is corrected."""
    ours, theirs = solvers.recorded_path(name, RECORDED[name])
    assert len(ours) == recorded.CASES[name]["steps"]
    np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("order", "bh", "form"), SETTINGS)
def test_with_the_corrector_the_order_is_one_more(order, bh, form, float64):
    """With exact values for the steps before the first full one."""
    sampler, remembers = unipc(order=order, bh=bh, eps=FORMS[form]), solvers.values_and_base(form == "x0")
    for process, bend in {"vp": 0.0, "ve": 0.0, "flow": 1.1}.items():
        counts = solvers.MORE_STEPS if order == 3 else solvers.STEPS
        got = solvers.order(sampler, process, bend=bend, exact_steps=order, remembers=remembers, counts=counts)
        assert got == pytest.approx(order + 1, abs=0.25), process


def test_the_predictor_alone_has_its_own_order(float64):
    sampler = RECORDED["unipc_2_predictor_only"]
    assert solvers.order(sampler, "ve") == pytest.approx(2, abs=0.1)


def test_from_its_own_start_the_second_order_one_still_has_order_three(float64):
    """The first step is of first order and corrected: its error falls with the cube of its length."""
    assert solvers.order(unipc(order=2), "ve") == pytest.approx(3, abs=0.1)


@pytest.mark.parametrize("name", ["unipc_1_bh1_x0", "unipc_2_to_zero", "unipc_3_to_zero"])
def test_it_starts_without_signal_and_ends_at_the_prediction_of_the_image(name, float64):
    """Along a schedule with zero terminal SNR; the last step is of first order."""
    path, predicted = solvers.from_no_signal(RECORDED[name])
    assert np.isfinite(path).all()
    np.testing.assert_allclose(path[-1], predicted, atol=1e-14)


def test_no_number_is_lost_in_float32():
    """From alpha = 0 to the image in eps, whose terms grow with e^h; the image lies among the data."""
    path, _ = solvers.from_no_signal(RECORDED["unipc_3_bh1_eps"])
    assert np.isfinite(path).all()
    assert np.abs(path[-1]).max() < 2.0


@pytest.mark.parametrize("form", FORMS)
def test_the_way_up_from_an_image_follows_the_flow(form, float64):
    """The step from sigma = 0, where the log-SNR is no number, is of first order and isn't corrected."""
    process = processes.build("vp")
    times = np.append(0.0, solvers.times_of(process, 256, 0.0)[::-1])
    sampler = unipc(bh=1 if form == "eps" else 2, eps=FORMS[form])
    levels = solvers.levels_for(sampler, process, times)
    up = solvers.run(sampler, levels, solvers.start(sampler, solvers.X / 3))
    first, last = (worlds.levels_of(process, t) for t in times[[1, -1]])
    np.testing.assert_allclose(up[-1], worlds.MIXTURE.flow(up[0], first, last), atol=1e-6)


@pytest.mark.parametrize(("settings", "named"), [({"order": 4}, "order"), ({"bh": 3}, "bh"), ({"eps": 2}, "eps")])
def test_a_setting_that_cannot_be_is_named(settings, named):
    with pytest.raises(ValueError, match=f"{named} must be a whole number from"):
        unipc(**settings)
