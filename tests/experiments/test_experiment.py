"""What follows from a configuration."""

import pytest

from configs import cifar_checkerboard, digits
from experiments.experiment import create_experiment


@pytest.mark.parametrize("data_layer", ["bernoulli", "gaussian", "discretized_logistic_mixture"])
def test_who_draws_photographs_black_or_white_is_told(data_layer):
    config = cifar_checkerboard.get_config("small")
    config.model.data_layer = data_layer

    doubts = create_experiment(config).doubts()

    if data_layer != "bernoulli":
        assert doubts == []
        return
    (doubt,) = doubts
    assert "71% of the pixels of 'photos' are neither black nor white" in doubt
    assert "discretized_logistic_mixture" in doubt


def test_digits_are_binarized_without_a_word():
    assert create_experiment(digits.get_config()).doubts() == []
