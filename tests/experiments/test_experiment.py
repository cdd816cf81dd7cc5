"""What follows from a configuration."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sere_jax
from configs import cifar_checkerboard, digits
from experiments.system.errors import UserError
from experiments.training.experiment import create_experiment
from experiments.training.requirements import check_images
from experiments.training.state import count_parameters
from experiments.training.unusual_settings import unusual_settings


@pytest.mark.parametrize("data_layer", ["bernoulli", "gaussian", "discretized_logistic_mixture"])
def test_who_draws_photographs_black_or_white_is_told(data_layer):
    config = cifar_checkerboard.get_config("small")
    config.model.data_layer = data_layer

    sentences = unusual_settings(create_experiment(config))

    if data_layer != "bernoulli":
        assert sentences == []
        return
    (sentence,) = sentences
    assert "71% of the pixels of 'photos' are neither black nor white" in sentence
    assert "discretized_logistic_mixture" in sentence


@pytest.mark.parametrize(
    ("begins", "checkpoint"), [("50%", "best"), ("50%", "last"), ("0%", "best")]
)
def test_who_evaluates_the_highest_elbo_though_it_falls_at_the_end_is_told(begins, checkpoint):
    config = digits.get_config()
    config.training.num_train_samples = 5
    config.training.importance_weighted_from = begins
    config.evaluation.checkpoint = checkpoint

    sentences = unusual_settings(create_experiment(config))

    assert bool(sentences) == (begins == "50%" and checkpoint == "best")
    assert all(
        "importance_weighted_from='50%' may lower the ELBO" in sentence for sentence in sentences
    )


@pytest.mark.parametrize(
    ("evaluate_every", "checkpoint_every", "meet"),
    [("1 epochs", "3 epochs", None), ("20 steps", "5 steps", None), ("6 steps", "4 steps", 12)],
)
def test_who_saves_few_of_the_evaluated_steps_is_told(evaluate_every, checkpoint_every, meet):
    config = digits.get_config()
    config.training.evaluate_every = evaluate_every
    config.training.checkpoint_every = checkpoint_every

    sentences = unusual_settings(create_experiment(config))

    assert len(sentences) == (1 if meet else 0)
    assert all(
        f"checkpoint_every='4 steps' every {meet} steps" in sentence for sentence in sentences
    )
    config.evaluation.checkpoint = "last"
    assert unusual_settings(create_experiment(config)) == []


def test_digits_are_binarized_without_a_word():
    assert unusual_settings(create_experiment(digits.get_config())) == []


@pytest.mark.parametrize(
    ("field", "outcome"),
    [("kl_warmup", "never gets its full weight"), ("importance_weighted_from", "only the ELBO")],
)
@pytest.mark.parametrize(("duration", "told"), [("100%", 1), ("31 epochs", 1), ("99%", 0)])
def test_who_asks_for_what_comes_after_the_end_is_told(field, outcome, duration, told):
    config = digits.get_config()
    config.training.update(num_epochs=30, num_train_samples=5)
    config.training[field] = duration
    config.evaluation.checkpoint = "last"

    sentences = unusual_settings(create_experiment(config))

    assert len(sentences) == told
    assert all(f"config.training.{field}='{duration}'" in sentence for sentence in sentences)
    assert all(outcome in sentence for sentence in sentences)


def test_a_training_is_told_in_three_lines():
    config = digits.get_config()
    config.dataset.num_train_examples = 1000
    config.training.update(batch_size=100, num_steps=25)
    config.evaluation.update(num_examples=30, test_elbo_every="50%")
    experiment = create_experiment(config)

    data, model, memory = experiment.summary()

    assert data == "data: 1000 images of 'digits' to train, 142 to validate, 30 to test, 8x8x1"
    num_params = count_parameters(experiment.init_state().params)
    assert f"{num_params:,} parameters; 25 steps of 100 images, 2.5 epochs" in model
    state = experiment.init_state()
    arrays = sum(leaf.nbytes for leaf in jax.tree.leaves((state, state.params)))  # and gradients
    images = 1172 * 64
    assert f"{images / 1e6:.3g} MB of images, {arrays / 1e6:.3g} MB of weights" in memory


@pytest.mark.parametrize("split", ["test", "validation"])
def test_a_split_without_images_is_refused_before_the_training(split):
    config = digits.get_config()
    config.evaluation.split = split
    experiment = create_experiment(config)
    dataset = dataclasses.replace(experiment.dataset, **{split: experiment.dataset.train[:0]})
    with pytest.raises(UserError, match=f"evaluation.split='{split}': 'digits' has no {split}"):
        check_images(config, experiment.model, dataset)


@pytest.mark.parametrize(
    ("placement", "memory", "is_streamed"),
    [
        ("device", 1, False),
        ("stream", None, True),
        ("auto", None, False),  # 115 kB, far below a gigabyte
        ("auto", 2 * 64 * 1797, False),  # of training, validation and test
        ("auto", 2 * 64 * 1797 - 2, True),
    ],
)
def test_images_are_streamed_where_they_take_more_than_half_of_a_device(
    placement, memory, is_streamed, monkeypatch
):
    monkeypatch.setattr("experiments.training.stream.memory_of_device", lambda: memory)
    config = digits.get_config()
    config.dataset.placement = placement
    config.training.update(batch_size=100, steps_per_dispatch=4)
    experiment = create_experiment(config)
    assert experiment.is_streamed == is_streamed
    where = "two dispatches of 0.0256 MB, streamed from 0.115 MB of images, "  # 400 of 64 bytes
    assert (where in experiment.summary()[2]) == is_streamed
    for images in (experiment.dataset.validation, experiment.evaluated_images()):
        assert isinstance(experiment.place(images), np.ndarray) == is_streamed


def test_the_generative_half_is_that_of_one_system():
    config = digits.get_config()
    config.model.system = "ladder_vae"
    config.training.update(weight_decay=0.1, weight_decay_on="generative")
    with pytest.raises(UserError, match=r"to config\.model\.system='ladder_vae'; choose 'all' or"):
        create_experiment(config)


def test_figures_of_a_run_in_bfloat16_are_those_of_its_weights_in_float32():
    figures = []
    for precision in ("float32", "bfloat16"):
        config = digits.get_config()
        config.training.precision = precision
        config.evaluation.num_importance_samples = 3
        experiment = create_experiment(config)
        params = sere_jax.init(experiment.model, jax.random.key(0))
        images = jnp.asarray(experiment.evaluated_images()[:20])
        evaluator = experiment.evaluator
        figures.append((evaluator.elbo(params, images), evaluator.log_likelihood(params, images)))
    (elbo, bounds), (elbo_in_bfloat16, bounds_in_bfloat16) = figures
    np.testing.assert_array_equal(elbo.per_image, elbo_in_bfloat16.per_image)
    np.testing.assert_array_equal(bounds, bounds_in_bfloat16)


@pytest.mark.parametrize(
    ("kl_warmup", "start", "num"), [("50%", 0.2, 1), ("0%", 0.2, 0), ("5%", 1, 0)]
)
def test_a_kl_warmup_that_begins_again_from_other_weights_is_told(kl_warmup, start, num):
    config = digits.get_config()
    config.training.update(
        initial_weights="runs/a", kl_warmup=kl_warmup, kl_weight_start=float(start)
    )
    told = [s for s in unusual_settings(create_experiment(config)) if "initial_weights" in s]
    assert len(told) == num
    assert all(words in told[0] for words in ("'runs/a'", "'50%'", "0.2", "'0 steps'")[: 4 * num])
