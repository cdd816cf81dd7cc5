"""What the model card of exported weights says of their run."""

import json
import pathlib
from typing import Any

from experiments.run_folder import RESULTS_FILE, configuration
from experiments.system.files import open_atomically
from sere_jax.model_card import CARD_FILE, LICENCE, may_replace, model_card


def write_card(
    workdir: pathlib.Path,
    about: dict[str, Any],
    dtype: str,
    loss: tuple[float, float] | None,
    licence: str,
) -> None:
    """Writes `README.md`, unless there is one that this did not write.

    Args:
        workdir: of the run, with `config.json`, and `results.json` if it was evaluated.
        about: what is known of the weights. An evaluation of other weights of the run, after more
            or fewer updates, is left out.
        dtype: of the weights in the file.
        loss: nats an image that rounding cost, and the standard error; None: nothing was rounded.
        licence: of the weights; "": none is given.
    """
    if not may_replace(workdir):
        return
    recorded = configuration.read(workdir)
    path = workdir / RESULTS_FILE
    results = json.loads(path.read_bytes()) if path.is_file() else {}
    if results.get("step") != about["step"]:
        results = {}
    rows = {
        "data": recorded["dataset"]["name"],
        **_figures(results),
        "rounding": _rounding(dtype, loss),
        "trained by": results.get("command", about.get("command", "unknown")),
        "commit": results.get("git_commit", about.get("git_commit", "unknown")),
        "updates": about["step"],
        "seconds of training": round(about["train_seconds"]),
        **({LICENCE: licence} if licence else {}),
    }
    with open_atomically(workdir / CARD_FILE) as file:
        file.write(model_card(recorded["model"], rows, dtype).encode())


def _figures(results: dict[str, Any]) -> dict[str, Any]:
    if "nll" not in results:
        return {"test figures": "these weights were not evaluated"}
    images = f"{results['num_examples']} {results.get('split', 'test')} images"
    of = f"K = {results['num_importance_samples']}, {images}"
    return {
        "-log p(x)": f"{results['nll']:.2f} ± {results['nll_stderr']:.2f} nats ({of})",
        "ELBO": f"{results['elbo']:.2f} nats",
        "bits/dim": f"{results['bits_per_dim']:.4f}",
    }


def _rounding(dtype: str, loss: tuple[float, float] | None) -> str:
    if loss is None:
        return "none; the figures are those of these weights"
    mean, error = loss
    return (
        f"to {dtype}, which costs {mean:.4f} ± {error:.4f} nats of log p(x) an image, on images "
        "that the model drew; the figures are those before"
    )
