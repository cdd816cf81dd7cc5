# %% [markdown]
"""SeRe-VAE from Python: train on handwritten digits, measure, draw, interpolate, change, load.

A script, and a notebook where `# %%` marks cells (VS Code; Jupyter with jupytext); `tutorial.ipynb`
has its outputs. It takes a minute or two, and writes to the folder TUTORIAL_DIR or to a temporary
one: python -m docs.tutorial
"""

# %%
import os
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sere_jax
from configs import digits
from experiments import trained
from experiments.command_line import modes
from experiments.data import load_dataset
from experiments.reporting import sheets

folder = pathlib.Path(os.environ.get("TUTORIAL_DIR") or tempfile.mkdtemp())
folder.mkdir(parents=True, exist_ok=True)
print("writing to", folder)


def show(name):
    """In a notebook, a picture of the folder."""
    if "get_ipython" in globals():
        from IPython.display import Image, display

        display(Image(folder / name))


# %% [markdown]
# ## Data and model
#
# A model has no state: its parameters are a tree of arrays, all functions of them are pure, and
# whatever is random takes a key. Images are uint8, here with grey levels 0 to 16; the data layer
# says what the model sees of them. That of `configs/digits.py`, `bernoulli`, draws every pixel
# black or white, with the grey level as the probability of white, anew each time (dynamic
# binarization).

# %%
config = digits.get_config()
data = load_dataset(config.dataset)
model = sere_jax.create_model(config)
params = sere_jax.init(model, jax.random.key(0))

# %% [markdown]
# ## Train
#
# `objective` is the bound to maximize, one value an image: all that training has to know of the
# model. Its KL counts less at first, or the data layers learn to do without codes before these
# say anything. (The command adds averaged weights, checkpoints, several devices, ...)

# %%
optimizer = optax.adam(2e-3)
step_keys = jax.random.split(jax.random.key(1), 1200)
kl_weights = jnp.minimum(jnp.linspace(0.1, 2.0, 1200), 1.0)


def update(carry, inputs):
    """One step on a random batch; returns the ELBO before it, in nats."""
    (params, state), (key, kl_weight) = carry, inputs
    batch_key, data_key, noise_key = jax.random.split(key, 3)
    images = jax.random.choice(batch_key, jnp.asarray(data.train), (128,))
    x = sere_jax.to_data_space(model, images, data_key, data.max_value)  # [128, 8, 8, 1]

    def loss(params):
        terms = sere_jax.objective(model, params, x, noise_key, kl_weight=kl_weight)
        return -jnp.mean(terms.value), jnp.mean(terms.log_likelihood - terms.kl)

    gradients, elbo = jax.grad(loss, has_aux=True)(params)
    updates, state = optimizer.update(gradients, state)
    return (optax.apply_updates(params, updates), state), elbo


start = (params, optimizer.init(params))
(params, _), elbos = jax.jit(lambda: jax.lax.scan(update, start, (step_keys, kl_weights)))()
print(f"ELBO {elbos[:10].mean():.1f} nats at first, {elbos[-10:].mean():.1f} in the end")

# %% [markdown]
# ## Measure
#
# The ELBO, log p(x | z) - KL(q || p), lies below log p(x) by the KL of q from the exact posterior.
# With K importance samples that gap closes as K grows: -log p(x) says how good the model is, and
# how far -ELBO lies above it, how good q is. Divided by 64 log 2, nats are bits a pixel, of which a
# coin has 1. A layer whose KL is near 0 holds nothing of the image. Test images choose nothing:
# they are looked at once.

# %%
x = sere_jax.to_data_space(model, data.test[:100], jax.random.key(2), data.max_value)
key = jax.random.key(3)
inference = sere_jax.infer(model, params, x, key)
nll = -sere_jax.log_likelihood(model, params, x, key, num_samples=100).mean()
print(f"-ELBO {-inference.elbo.mean():.2f} nats, -log p(x) {nll:.2f} nats (K = 100)")
print(f"{nll / (64 * np.log(2)):.3f} bits a pixel; KL of each layer", inference.kl.mean(axis=0))

# %% [markdown]
# ## Draw, and go from one image to another
#
# `expected` asks for the probabilities of white instead of black and white pixels. `interpolate`
# goes along the noise that makes the codes of either image, on a great circle, where noise is as
# long as it should be.

# %%
samples = sere_jax.sample(model, params, jax.random.key(4), 64, expected=True)
sheets.save_image_grid(samples, folder / "samples.png")
again = sere_jax.reconstruct(model, params, x[:10], key, expected=True)
sheets.save_comparison({"image": x[:10], "again": again}, folder / "reconstructions.png")
paths = [sere_jax.interpolate(model, params, x[i], x[i + 1], key, num=10) for i in range(4)]
sheets.save_image_grid(np.concatenate(paths), folder / "paths.png", num_columns=10)
for name in ("samples.png", "reconstructions.png", "paths.png"):
    show(name)

# %% [markdown]
# ## Use the codes, and complete images
#
# `encode` gives the codes of images without chance, `decode` images of codes; with the codes of the
# first layer alone, the prior draws the rest. `traverse` changes one latent of an image. `complete`
# draws pixels that are missing, here the lower halves, given those that are observed.

# %%
z = sere_jax.encode(model, params, x[:10])  # [10, layers, codes]
from_first = sere_jax.decode(model, params, z, key, num_layers_given=1, expected=True)
observed = np.zeros((8, 8, 1), bool)
observed[:4] = True
completed = sere_jax.complete(model, params, x[:10], observed, key, num_steps=50)
rows = {"image": x[:10], "first codes": from_first, "completed": completed}
sheets.save_comparison(rows, folder / "codes.png")
values = np.linspace(-2, 2, 10)
ways = [sere_jax.traverse(model, params, x[0], 0, i, values, key, expected=True) for i in range(4)]
sheets.save_image_grid(np.concatenate(ways), folder / "traversals.png", num_columns=10)
show("codes.png")
show("traversals.png")

# %% [markdown]
# ## Change the model, and load a trained one
#
# Another bijector is another name in the configuration; `examples/bijector.py` adds one of its own.
# What the command does, `modes.train` does from Python: it trains, evaluates, draws and reports,
# and goes on from the last checkpoint if it is called again. `trained.load` gives back the model
# and its averaged weights.

# %%
config.model.bijector = "spline_coupling"
config.training.num_steps = 100
config.training.evaluate_every = config.training.checkpoint_every = "50%"
config.evaluation.num_importance_samples = config.evaluation.num_examples = 50
config.sampling.num_images = 0  # none is looked at here
modes.train(config, folder / "splines", command="docs/tutorial.py")
model, params = trained.load(folder / "splines")
print("-ELBO of the loaded model:", -sere_jax.elbo(model, params, x, key).mean(), "nats")
