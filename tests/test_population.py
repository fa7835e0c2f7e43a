"""Many runs in one program: each is the run that it would be alone."""

import dataclasses
import json
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import data, nets
from ddpm_jax.config import Config, Data, Devices, Diffusion, Optimizer, Run, UNet
from ddpm_jax.diffusion import bins, schedules
from ddpm_jax.training import checkpoint, compare, gradients, population, population_gradients, processes, report, run
from ddpm_jax.training.layout import Layout, layout_of, shape
from ddpm_jax.training.state import State

CONFIG = Config(
    steps=6,
    batch_size=8,
    data=Data(source="digits", shape=(8, 8, 1), flip=True),
    diffusion=Diffusion(num_steps=30),
    optimizer=Optimizer(learning_rate=0.05, warmup_steps=2, ema_decay=0.9),
    run=Run(log_every=2, checkpoint_every=2, keep_last=2),
)
EDGES = np.asarray(bins.edges(schedules.linear(30), 3))
ONE = Layout(arrangement="unroll", each=1)


class Line:
    """A network of two parameters: slope x_t + shift."""

    def init(self, key, x_t, time):
        del x_t, time
        return {"params": {"slope": jax.random.normal(key), "shift": jnp.zeros(())}}

    def apply(self, variables, x_t, time, **options):
        del time, options
        return variables["params"]["slope"] * x_t + variables["params"]["shift"]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(nets, "build", lambda config: Line())


def of(seed, **diffusion):
    return dataclasses.replace(CONFIG, seed=seed, diffusion=dataclasses.replace(CONFIG.diffusion, **diffusion))


MEMBERS = [
    of(0),
    of(1, weighting="p2"),
    of(0, weighting="min_snr", weighting_args=(("gamma", 5.0),)),
    of(1, schedule="cosine", weighting="elbo"),
    of(0, prediction="v", draw_t="second_moment", draw_t_args=(("keep", 1.0),)),
    of(2, learn_uncertainty=True),
]
"""Of three kinds."""


def alone(config, source):
    """The state and the losses of the run that train.py would make."""
    parts = run.build(config)
    state, step, losses = parts.init(), run.make_train_step(parts), []
    for n in range(config.steps):
        batch = data.batch_at(source, seed=config.seed, step=n, batch_size=config.batch_size, flip=config.data.flip)
        state, metrics = step(state, dataclasses.replace(batch, labels=None), run.training_key(config))
        losses.append(float(metrics["loss"]))
    return state, losses


def named(configs):
    return [compare.Named(name=f"member {i}", config=config) for i, config in enumerate(configs)]


def trained(configs, workdir, layout=ONE):
    return compare.train(named(configs), data.load(CONFIG.data), workdir, layout=layout, edges=EDGES)


def states_of(found):
    """Of each member, by number."""
    states = {}
    for kind in found.kinds:
        stacked = population.states_of(kind)
        states |= {number: compare.state_of(kind, stacked, number) for number in kind.members}
    return [states[number] for number in range(len(states))]


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("together")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nets, "build", lambda config: Line())
        found = trained(MEMBERS, workdir)
    return workdir, found, states_of(found)


def test_each_member_is_the_run_that_it_would_be_alone(together):
    workdir, found, states = together
    assert sorted(len(kind.members) for kind in found.kinds) == [1, 1, 4]
    source, lines = data.load(CONFIG.data), report.read(workdir)
    assert [line["step"] for line in lines] == [2, 4, 6]
    for i, config in enumerate(MEMBERS):
        state, losses = alone(config, source)
        chex.assert_trees_all_close(states[i], jax.tree.map(np.asarray, state), rtol=2e-5, atol=1e-6)
        logged = [line[compare.key_of(f"member {i}", "loss")] for line in lines]
        np.testing.assert_allclose(logged, np.mean(np.reshape(losses, (3, 2)), axis=1), rtol=2e-5)


def test_members_of_a_seed_differ_in_their_weighting_and_in_nothing_else(together):
    workdir, _, states = together
    first = report.read(workdir)[0]
    errors = [[first[compare.key_of(f"member {i}", name)] for name in bins.names("eps_error", EDGES)] for i in (0, 2)]
    # Same parameters, images, t and noise at the first of the two steps, and almost the same parameters at the second.
    np.testing.assert_allclose(errors[0], errors[1], rtol=0.1)
    assert states[0].params != states[2].params


@pytest.mark.parametrize(
    "layout",
    [
        Layout(arrangement="vmap", each=0),
        Layout(arrangement="map", each=0),
        Layout(arrangement="unroll", each=2),
        Layout(arrangement="unroll", each=3, resident=False),
    ],
    ids=lambda layout: f"{layout.arrangement}-{layout.each}-{'all' if layout.resident else 'in turns'}",
)
def test_how_members_lie_on_devices_changes_nothing(layout, together, tmp_path):
    configs = MEMBERS[:4]
    found = states_of(trained(configs, tmp_path / "other", layout))
    chex.assert_trees_all_close(found, together[2][:4], rtol=2e-5, atol=1e-6)
    for line, other in zip(report.read(tmp_path / "other"), report.read(together[0]), strict=True):
        figures = [key for key in line if not key.endswith("steps_per_second")]
        assert len(figures) > 30
        mine, theirs = [line[key] for key in figures], [other[key] for key in figures]
        np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-5)


def test_a_comparison_that_was_asked_to_stop_goes_on_in_other_chunks_too(together, tmp_path, monkeypatch):
    workdir, asked = tmp_path / "stopped", iter([False, False, True])

    class Asked:
        def __enter__(self):
            return lambda step: next(asked, False)

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(processes, "stop_requests", Asked)
    assert trained(MEMBERS[:3], workdir).step == 3
    assert [line["step"] for line in report.read(workdir)] == [2]
    found = trained(MEMBERS[:3], workdir, Layout(arrangement="unroll", each=2))
    assert found.step == 6
    chex.assert_trees_all_close(states_of(found), together[2][:3], rtol=2e-5, atol=1e-6)
    assert [line["step"] for line in report.read(workdir)] == [2, 4, 6]


def test_a_member_that_diverges_keeps_its_parameters_and_does_not_end_the_others(together, tmp_path):
    wild = of(0, weighting="inverse_snr", zero_terminal_snr=True)  # e^80 at the last step: its square is no float32
    found = trained([of(0), wild], tmp_path / "wild")
    states, last = states_of(found), report.read(tmp_path / "wild")
    chex.assert_trees_all_close(states[0].params, together[2][0].params, rtol=2e-5)
    skipped = [sum(line[compare.key_of(f"member {i}", "skipped")] for line in last) for i in (0, 1)]
    assert skipped[0] == 0
    assert skipped[1] > 0
    assert np.isfinite(jax.tree.leaves(states[1].params)).all()
    assert int(states[1].step) == 6


def test_a_comparison_that_is_done_is_left_as_it_is(together):
    workdir, _, states = together
    before = (workdir / "metrics.jsonl").read_bytes()
    chex.assert_trees_all_equal(states_of(trained(MEMBERS, workdir)), states)
    assert (workdir / "metrics.jsonl").read_bytes() == before


def test_each_kind_gets_its_own_states_back_however_many_there_are(tmp_path):
    """Names sort as words: the eleventh comes after the second."""
    zeros: Any = np.zeros(2, int)
    of_kind = [State(step=zeros, params={"slope": np.full(2, i)}, ema=zeros, opt_state=zeros) for i in range(12)]
    many: Any = {f"kind_{i}": state for i, state in enumerate(of_kind)}
    with checkpoint.open_folder(tmp_path / "many") as manager:
        checkpoint.save_many(manager, 1, many)
        manager.wait_until_finished()
        found = checkpoint.restore_many(manager, many)
    assert [found[f"kind_{i}"].params["slope"][0] for i in range(12)] == list(range(12))


@pytest.mark.parametrize(
    ("members", "devices", "each", "wanted"),
    [
        (18, 2, 1, (2, 1)),
        (18, 16, 1, (9, 1)),
        (3, 8, 0, (3, 1)),
        (18, 8, 0, (6, 3)),
        (6, 1, 64, (1, 6)),
        (7, 2, 2, (2, 2)),
    ],
)
def test_no_more_devices_are_taken_than_spare_a_round(members, devices, each, wanted):
    assert shape(members, devices, each) == wanted


def test_layouts_are_those_of_the_backend_unless_another_is_asked_for():
    assert layout_of("cpu", devices=4) == ONE
    assert layout_of("tpu", devices=4).each == 0
    assert layout_of("cpu", arrangement="vmap") == Layout(arrangement="vmap", each=0)
    assert layout_of("gpu", at_once=9, devices=4) == dataclasses.replace(layout_of("gpu"), each=3, resident=False)
    with pytest.raises(ValueError, match="--arrangement: there is no 'vmpa', did you mean 'vmap'"):
        layout_of("cpu", arrangement="vmpa")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"devices": Devices(fsdp=2)}, "--devices.fsdp must be 1"),
        ({"devices": Devices(accumulate=3)}, "--devices.accumulate must divide --batch-size 8, got 3"),
        ({"run": Run(log_every=0)}, "--run.log-every must be at least 1, got 0"),
        ({"net": UNet(num_classes=5)}, "--net.num-classes must be the 10 classes of digits, or 0, got 5"),
    ],
)
def test_what_a_run_would_be_refused_for_is_refused_before_anything_is_written(changes, told, tmp_path):
    with pytest.raises(ValueError, match=told):
        trained([dataclasses.replace(CONFIG, **changes)], tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_folder_of_other_members_or_of_something_else_is_refused(tmp_path):
    few = [dataclasses.replace(config, steps=2) for config in MEMBERS[:1]]
    trained(few, tmp_path / "one")
    held = json.loads((tmp_path / "one" / "members.json").read_text())
    assert [each["name"] for each in held["members"]] == ["member 0"]
    with pytest.raises(ValueError, match="holds a comparison of member 0; it can't go on with member 0, member 1"):
        trained([*few, of(1)], tmp_path / "one")
    other = [dataclasses.replace(few[0], batch_size=4)]
    with pytest.raises(ValueError, match="undo batch_size: 8 -> 4"):
        trained(other, tmp_path / "one")
    with pytest.raises(ValueError, match="undo --bins: 3 -> 2"):
        compare.train(named(few), data.load(CONFIG.data), tmp_path / "one", layout=ONE, edges=EDGES[:-1])
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"has other things in it and no members\.json"):
        trained(few, tmp_path / "else")


def test_gradients_by_bin_are_those_of_each_member_alone(together):
    _, found, states = together
    source = data.load(CONFIG.data)
    stats = population_gradients.statistics(found.kinds, MEMBERS, source, ONE, edges=EDGES)
    assert stats is not None
    for i in (0, 4):
        parts, params = run.build(MEMBERS[i]), states[i].params
        loss_fn = run.make_loss(dataclasses.replace(parts, draw_t=bins.draw(jnp.asarray(EDGES), 2)))

        def mean_gradient(key, params=params, loss_fn=loss_fn):
            batch = data.batch_at(source, seed=9, step=0, batch_size=200)
            batch = dataclasses.replace(batch, labels=None)
            trained = {"net": params, "noise": ()}
            return jax.grad(lambda net: jnp.mean(loss_fn(key, trained | {"net": net}, batch, ())[1].objective))(params)

        many = jax.vmap(mean_gradient)(jax.random.split(jax.random.key(0), 30))
        norm = float(np.sqrt(sum(np.mean(leaf) ** 2 for leaf in jax.tree.leaves(many))))
        assert stats[i].norm.shape == (3,)
        np.testing.assert_allclose(stats[i].norm[2], norm, rtol=0.5)
    np.testing.assert_array_equal(np.diagonal(stats[0].cosine)[~np.isnan(np.diagonal(stats[0].cosine))], 1)


def test_gradients_of_the_continuous_objective_are_not_told(together):
    with pytest.raises(ValueError, match="continuous"):
        gradients.check(Diffusion(objective="continuous"))
    continuous = [of(0, objective="continuous")]
    assert (
        population_gradients.statistics(together[1].kinds, continuous, data.load(CONFIG.data), ONE, edges=EDGES) is None
    )
