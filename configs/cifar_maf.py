"""SeRe-MAF and the plain flows that it is compared with, on CIFAR-10 (paper, section 4.2.2).

    python -m experiments.main --config=configs/cifar_maf.py:sere_maf
    python -m experiments.main --config=configs/cifar_maf.py:maf10
    python -m experiments.main --config=configs/cifar_maf.py:maf5

Pixels are dequantized with fresh noise in every epoch and mapped to logit space, where densities
are reported in nats, as in Papamakarios et al. 2017; bits/dim beside them. `:sere_maf` has 10
masked networks in all, as `:maf10`. The paper has an ELBO of 3190 nats for it, and 2670 for
`:maf10`, whose log-likelihood is exact. After an hour each of two cores, on CIFAR-10's images after
JPEG encoding (RESULTS.md): ELBO 1551 nats, and log-likelihoods of 998 and 870, all of them with
`--config.model.flow_direct_connections=False`, at 5e-4, without patience, with `num_steps` of 6600,
5700 and 10600. With direct connections they start from the Gaussian of the training images' full
covariance, which has 2734 nats on the validation images. In batches of 200, `:sere_maf` reached an
ELBO of 4030 nats with `num_steps=2400`, `:maf10` 3622 and `:maf5` 3544 with `num_steps=2000`. They
overfit from 1,600, 1,400 and 1,000 updates on. So the training ends when the validation ELBO has
not risen for 5 epochs, and the best checkpoint is evaluated. The learning rate of `:maf10` and
`:maf5` is half that of `:sere_maf`: after 300 updates the validation ELBO of `:maf5` was 3282 nats,
with half the rate 3384. Single batches of theirs diverge at both rates, and the training recovers.
The schedule of the learning rate spans 50 epochs. To let it fall before the flow overfits, as in
the three runs, set `config.training.num_steps` to one and a half to two times the step of the best
checkpoint.

`:sere_maf_flips`, `:maf5_flips` and `:maf10_flips` mirror half of the training images, as the
paper's larger MAF do. They have not been trained.
"""

from ml_collections import ConfigDict

from configs import base

PLAIN = {"model.num_layers": 1, "model.latent_shape": (0,), "model.couple_data": False}
SLOWER = {"training.learning_rate": 2.5e-4}
SYSTEMS = {
    "sere_maf": {},
    "maf5": PLAIN | SLOWER | {"model.num_flows": 5},
    "maf10": PLAIN | SLOWER | {"model.num_flows": 10},
}
FLIPS = {"dataset.horizontal_flip": True}
VARIANTS = {
    "": {},
    **SYSTEMS,
    **{f"{name}_flips": overrides | FLIPS for name, overrides in SYSTEMS.items()},
}
PAPER_NLL = {"": -3190.0, "sere_maf": -3190.0, "maf10": -2670.0}


def get_config(variant: str = "") -> ConfigDict:
    """CIFAR-10 in logit space, with the flow called `variant`."""
    overrides = base.choose_variant(variant, VARIANTS)
    config = base.get_config()
    config.dataset.name = "cifar10"
    config.dataset.validation_size = 0.1
    model = config.model
    model.data_shape = (32, 32, 3)
    model.num_layers = 5
    model.latent_shape = (40,)
    model.data_layer = "masked_autoregressive_flow"
    model.bijector = "spline_coupling"
    model.num_flows = 2
    model.flow_hidden_size = 1024
    model.flow_direct_connections = True
    model.hidden_size = 200
    training = config.training
    training.batch_size = 100
    training.num_epochs = 50
    training.learning_rate = 5e-4
    training.ema_decay = 0.999
    training.patience = "5 epochs"
    config.evaluation.num_importance_samples = 100
    config.evaluation.batch_size = 20
    config.update_from_flattened_dict(overrides)
    config.paper.nll = PAPER_NLL.get(variant)
    return config
