"""The model card, README.md of a folder with a model, as the Hugging Face hub shows it."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

CARD_FILE = "README.md"
LICENCE = "licence"  # the key of `about` that the hub reads too
_START = "---\nlibrary_name: sere-jax\n"


def model_card(model: Mapping[str, Any], about: Mapping[str, Any], dtype: str) -> str:
    """Markdown, with the front matter that the hub reads.

    Args:
        model: fields of the model's configuration, JSON values.
        about: JSON values by name, a row of the table each; `licence` is also in the front matter.
        dtype: of the weights in the file.
    """
    licence = f"license: {json.dumps(str(about[LICENCE]).lower())}\n" if LICENCE in about else ""
    rows = [*about.items(), ("weights", dtype)]
    table = "\n".join(f"| {_cell(name)} | {_cell(value)} |" for name, value in rows)
    lines = (f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in model.items())
    fields = "{\n" + ",\n".join(lines) + "\n}"
    system, shape = model["system"], "x".join(map(str, model["data_shape"]))
    return f"""{_START}{licence}tags: [jax, vae, sere-vae]
---

# {system} of {shape} images

A model of the library sere-jax (Self-Reflective VAE, [arXiv 2007.05166](https://arxiv.org/abs/2007.05166)).
These lines load it in this folder; from elsewhere give the folder's path, or on the hub its name.

```python
import jax, sere_jax
model, params = sere_jax.load_pretrained(".")
images = sere_jax.to_pixels(model, sere_jax.sample(model, params, jax.random.key(0), 16))
```

| what | value |
|---|---|
{table}

Its configuration:

```json
{fields}
```
"""


def may_replace(folder: str | os.PathLike[str]) -> bool:
    """Whether the folder has no README.md, or one that this module wrote."""
    path = pathlib.Path(folder) / CARD_FILE
    return not path.exists() or path.read_bytes().startswith(_START.encode())


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return " ".join(text.replace("|", "\\|").split())
