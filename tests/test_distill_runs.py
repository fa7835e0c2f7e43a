"""Distillation as runs: what a teacher gives, what is refused, how they go on. The network is a single number."""

import dataclasses
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT

from ddpm_jax import config as config_lib
from ddpm_jax import nets
from ddpm_jax.cli import distill as cli
from ddpm_jax.cli.flags import load_preset
from ddpm_jax.config import Config, Diffusion, Optimizer
from ddpm_jax.data.pipeline import Batch
from ddpm_jax.training import checkpoint, distill, run
from ddpm_jax.training.draw import way
from ddpm_jax.training.loop import train
from ddpm_jax.training.step import make_step

SMALL = load_preset(str(ROOT / "tests" / "presets" / "smallest.py"))
CONFIG = dataclasses.replace(
    SMALL,
    diffusion=Diffusion(num_steps=20, prediction="v"),
    run=dataclasses.replace(SMALL.run, checkpoint_every=2, num_samples=1, preview_steps=1),
)


def replaced(config, **changes):
    """replaced(config, distill={...}) changes fields of its records."""
    return dataclasses.replace(
        config,
        **{
            name: dataclasses.replace(getattr(config, name), **value) if isinstance(value, dict) else value
            for name, value in changes.items()
        },
    )


class Slope:
    """It says w x, whatever the time: a network that compiles fast."""

    def init(self, *_):
        return {"params": {"w": jnp.float32(0.5)}}

    def apply(self, variables, x, time, **_):
        return variables["params"]["w"] * x


SLOPE = Slope()


@pytest.fixture(scope="module", autouse=True)
def slope():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nets, "build", lambda config: SLOPE)
        yield


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, slope):
    """A run's folder whose average and last weights differ; it wasn't trained. And its state."""
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    config_lib.write(CONFIG, folder / "config.json")
    state = run.build(CONFIG).init()
    state = dataclasses.replace(state, step=jnp.int32(4), ema=jax.tree.map(lambda x: x + 0.01, state.params))
    with checkpoint.open_folder(folder / "checkpoints") as manager:
        checkpoint.save(manager, state)
    return folder, state


def student(folder, **changes):
    made = distill.default("progressive", CONFIG, str(folder))
    return replaced(made, distill={"steps": 2, **changes})


@pytest.mark.parametrize("average", [True, False])
def test_a_student_begins_as_its_teacher(average, teacher):
    folder, state = teacher
    given = distill.teacher_of(run.build(student(folder, average=average)))
    chex.assert_trees_all_equal(given, jax.device_get(state.ema if average else state.params))


@pytest.fixture(scope="module")
def halved(teacher, tmp_path_factory):
    """The folder of the command's one halving, from two DDIM steps to one."""
    workdir = tmp_path_factory.mktemp("runs") / "halved"
    args = [str(teacher[0]), "progressive", "--workdir", str(workdir), "--steps", "4"]
    args += ["--start-steps", "1", "--run.checkpoint-every", "2"]
    cli.main(args)
    return workdir / "steps_1"


def test_a_halving_in_two_parts_ends_as_the_halving_in_one(halved, tmp_path, teacher):
    """Bit for bit, and with its teacher gone: the checkpoint has its weights."""
    folder = halved
    config, again = config_lib.read(folder / "config.json"), tmp_path / "again" / "steps_1"
    shutil.copytree(folder, again)
    shutil.rmtree(again / "checkpoints" / "4")
    moved = replaced(config, distill={"teacher": str(tmp_path / "gone")})
    chex.assert_trees_all_equal(*jax.device_get((train(moved, again), run.load(folder)[1])))


def test_a_distilled_run_is_drawn_from_by_its_own_steps(halved, teacher):
    """As many DDIM steps as it was taught, where it was taught them; its teacher's weights stay as they were."""
    parts, state = run.load(halved)
    np.testing.assert_array_equal(way(parts, parts.config.sampling).times, [19, -1])
    chex.assert_trees_all_equal(*jax.device_get((state.history["teacher"], teacher[1].ema)))
    assert int(state.step) == 4


def test_halvings_follow_one_another(teacher, tmp_path):
    """The first takes the averaged weights, the others those of the student before as trained."""
    made = list(distill.halvings(student(teacher[0]), tmp_path, start=8, end=2))
    assert [folder.name for _, folder in made] == ["steps_8", "steps_4", "steps_2"]
    assert [config.distill.steps for config, _ in made] == [8, 4, 2]
    assert [config.distill.teacher for config, _ in made] == [str(teacher[0]), *(str(at) for _, at in made[:-1])]
    assert [config.distill.average for config, _ in made] == [True, False, False]
    assert [config.sampling.steps for config, _ in made] == [(8,), (4,), (2,)]
    with pytest.raises(ValueError, match=r"--start-steps must be --end-steps times 1, 2, 4, 8, ...; got 12 and 2"):
        list(distill.halvings(student(teacher[0]), tmp_path, start=12, end=2))


def test_only_progressive_distillation_has_numbers_of_steps_to_halve(teacher, tmp_path):
    with pytest.raises(ValueError, match="--start-steps 8 has no part in consistency"):
        cli.main([str(teacher[0]), "consistency", "--workdir", str(tmp_path / "x"), "--start-steps", "8"])


def test_a_teacher_of_another_network_or_process_is_refused(teacher):
    other = replaced(student(teacher[0]), net={"features": 16}, diffusion={"schedule": "cosine"})
    with pytest.raises(ValueError, match=r"schedule 'linear' of the teacher, 'cosine' here; --net.features 8 of the"):
        distill.teacher_of(run.build(other))
    with pytest.raises(FileNotFoundError, match="is no run's folder"):
        distill.teacher_of(run.build(student("nowhere")))


def test_a_consistency_function_teaches_nobody(tmp_path):
    config = distill.default("consistency_training", CONFIG, "")
    config_lib.write(config, tmp_path / "config.json")
    with checkpoint.open_folder(tmp_path / "checkpoints") as manager:
        checkpoint.save(manager, run.build(config).init())
    with pytest.raises(ValueError, match=r"is of --distill\.method consistency_training: it jumps to the end"):
        distill.teacher_of(run.build(student(tmp_path)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"diffusion": {"prediction": "eps"}}, "needs a network of --diffusion.prediction v or x0 or flow, got eps"),
        ({"diffusion": {"offset_noise": 0.1}}, "--diffusion.offset-noise 0.1 has no part in --distill.method prog"),
        ({"distill": {"steps": 11}}, r"--distill.steps must lie in 1 .. 10, half of --diffusion.num-steps"),
        ({"distill": {"mu": 0.9}}, "--distill.mu 0.9 has no part in --distill.method progressive"),
        ({"distill": {"method": ""}}, "--distill.teacher t needs --distill.method"),
        ({"distill": {"method": "progresive"}}, "did you mean 'progressive'"),
        ({"distill": {"teacher": ""}}, "needs --distill.teacher, a run's folder"),
        ({"distill": {"method": "consistency", "steps": 0, "mu": 1.0}}, "weighting truncated has no part"),
        ({"run": {"bins": 4, "gradients_every": 2}}, "--run.gradients-every 2 has no part"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        run.build(replaced(student("t"), **changes))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"levels": (5, 2)}, "--distill.levels must be two counts that don't fall"),
        ({"mu": 1.0}, r"--distill.mu must lie in \[0, 1\), got 1.0"),
        ({"std": 0.0, "sigma_max": -1.0}, "--distill.sigma-max must be .* got -1.0; --distill.std must be"),
        ({"growth": "square"}, "did you mean 'square_root'"),
        ({"teacher": "t"}, "--distill.teacher t has no part in --distill.method consistency_training"),
    ],
)
def test_levels_that_can_not_be_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        run.build(replaced(distill.default("consistency_training", CONFIG, ""), distill=given))


def test_many_runs_at_once_have_no_teacher():
    with pytest.raises(ValueError, match=r"--distill.method progressive is for runs of their own"):
        run.make_train_update(run.build(student("t")))


def steps_of(config: Config, count: int, accumulate: int = 1):
    """The states of a run of `Slope`, from the first to that after `count` steps."""
    parts = run.build(config)
    step = make_step(
        run.make_loss(parts),
        parts.optimizer,
        ema_decay=0.9,
        num_steps=20,
        mesh=parts.mesh,
        remember=run.make_remember(parts),
        accumulate=accumulate,
    )
    state, states = parts.start_from({"w": jnp.float32(0.5)}), []
    batch = Batch(images=np.linspace(-1, 1, 8 * 64).reshape(8, 8, 8, 1).astype(np.float32), labels=None)
    for _ in range(count + 1):
        states.append(jax.device_get(state))
        state, _ = step(state, batch, jax.random.key(0))
    return states


@pytest.mark.parametrize(("method", "accumulate"), [("consistency", 2), ("consistency_training", 1)])
def test_the_target_network_follows_as_published(method, accumulate):
    """theta^- <- mu(k) theta^- + (1 - mu(k)) theta for each step (Song et al. 2023, Algorithms 2 and 3)."""
    config = dataclasses.replace(
        distill.default(method, CONFIG, "t"), steps=8, optimizer=Optimizer(learning_rate=0.1, warmup_steps=0)
    )
    config = replaced(config, distill={"mu": 0.5, "levels": (2, 8), "growth": "square_root"})
    states = steps_of(config, 4, accumulate)
    ws = [float(state.params["w"]) for state in states]
    assert len(set(ws)) == 5
    target = ws[0]
    for k, state in enumerate(states[1:]):
        count = np.ceil(np.sqrt(k / 8 * (9**2 - 2**2) + 2**2) - 1) + 1
        kept = 0.5 ** (2 / count)
        target = kept * target + (1 - kept) * ws[k]  # what the step was held to; its own weights come with the next
        np.testing.assert_allclose(state.history["target"]["w"], target, rtol=1e-5)
        assert int(state.history["step"]) == k + 1
    if method == "consistency":
        assert float(states[-1].history["teacher"]["w"]) == 0.5
