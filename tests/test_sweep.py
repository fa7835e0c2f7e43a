"""From words on a command line to the variants of a comparison."""

import pytest

from ddpm_jax.config import Config, Diffusion
from ddpm_jax.training.sweep import variants


def settings(word, axis="weightings"):
    return variants(Config(), **{axis: [word]})[0].config.diffusion


def test_a_weighting_is_a_name_with_arguments_and_what_is_learned_on_top():
    assert settings("simple") == Diffusion()
    assert settings("min_snr(gamma=5)") == Diffusion(weighting="min_snr", weighting_args=(("gamma", 5.0),))
    spaced = settings("p2( k = 1, gamma=0.5 )+uncertainty")
    assert spaced == Diffusion(weighting="p2", weighting_args=(("k", 1.0), ("gamma", 0.5)), learn_uncertainty=True)


def test_draws_schedules_and_predictions_are_swept_the_same_way():
    drawn = settings("log_normal(mean=-1.2,std=1.2)+uncorrected", "draws")
    wanted = (("mean", -1.2), ("std", 1.2))
    assert drawn == Diffusion(draw_t="log_normal", draw_t_args=wanted, correct_draw=False)
    assert settings("cosine(s=0.01)", "schedules") == Diffusion(schedule="cosine", schedule_args=(("s", 0.01),))
    assert settings("v", "predictions") == Diffusion(prediction="v")


def test_variants_are_all_combinations_and_are_named_by_what_they_are():
    found = variants(Config(), weightings=["simple", "min_snr(gamma=5.00)"], predictions=["eps", "v"])
    assert [variant.name for variant in found] == [
        "simple, eps",
        "simple, v",
        "min_snr(gamma=5), eps",
        "min_snr(gamma=5), v",
    ]
    assert found[3].config.diffusion == Diffusion(weighting="min_snr", weighting_args=(("gamma", 5.0),), prediction="v")


def test_an_axis_that_is_not_asked_for_stays_as_it_is():
    config = Config(diffusion=Diffusion(weighting="p2", schedule="cosine"))
    assert variants(config)[0].config == config
    assert variants(config, schedules=["linear"])[0].config.diffusion == Diffusion(weighting="p2")
    assert variants(config, weightings=["simple"])[0].config.diffusion.schedule == "cosine"


def test_a_weighting_of_the_users_own_keeps_its_whole_path_and_is_called_by_its_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").touch()
    variant = variants(Config(), weightings=["mine.py:tilted(slope=0.3)"])[0]
    assert variant.name == "mine.py:tilted(slope=0.3)"
    assert variant.config.diffusion.weighting == f"{tmp_path}/mine.py:tilted"


@pytest.mark.parametrize(
    ("axis", "word", "told"),
    [
        ("weightings", "p2(k=1", "--weightings takes NAME or NAME\\(argument=number,...\\), got 'p2\\(k=1'"),
        ("weightings", "p2(k)", "--weightings 'p2\\(k\\)': arguments are name=number, got 'k'"),
        ("weightings", "p2(k=one)", "arguments are name=number, got 'k=one'"),
        ("weightings", "p2(=1)", "arguments are name=number, got '=1'"),
        ("weightings", "p2+uncertaint", "--weightings p2\\+: there is no 'uncertaint', did you mean 'uncertainty'"),
        ("draws", "uniform+uncertainty", "there is no 'uncertainty'.*choose from uncorrected"),
        ("predictions", "v(a=1)", "--predictions v takes no arguments, got 'v\\(a=1\\)'"),
    ],
)
def test_a_word_that_cannot_be_read_is_refused_with_what_can(axis, word, told):
    with pytest.raises(ValueError, match=told):
        variants(Config(), **{axis: [word]})


def test_a_variant_given_twice_is_refused():
    with pytest.raises(ValueError, match="every variant must be another, got 'p2' and 'p2'"):
        variants(Config(), weightings=["p2", "p2"])
