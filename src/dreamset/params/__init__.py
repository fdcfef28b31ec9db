"""``params.yaml`` as frozen, validated types: parsed once, at the edge.

Defaults stand in ``params.yaml`` alone; a field here says only which values are allowed, and ``rules`` what must hold
between them. ``recipe`` holds the knobs of a recipe, each with its rule and its words on the cards.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from dreamset.core.errors import InputError
from dreamset.core.strict import build, read_yaml
from dreamset.params import rules
from dreamset.params.tree import Params, to_dict

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from dreamset.params.model import ClassifierRow

__all__ = ["Params", "load", "parse", "to_dict"]


def load(path: Path, classifiers: Mapping[str, type[ClassifierRow]]) -> Params:
    """Read and check a parameter file.

    Args:
        path: the file.
        classifiers: the type of each classifier's row, which its own file holds: ``classifiers.ROWS``.

    Raises:
        InputError: one sentence naming the key and what is allowed.
    """
    return parse(read_yaml(path), classifiers, str(path))


def parse(raw: object, classifiers: Mapping[str, type[ClassifierRow]], file: str = "params.yaml") -> Params:
    """Check a mapping as ``yaml.safe_load`` gives it; see ``load``."""
    try:
        params = build(Params, raw)
        models = {
            name: dataclasses.replace(model, train=model.train.checked(classifiers, f"models.{name}.train"))
            for name, model in params.models.items()
        }
        # One list from here on: what starts from another's result is a recipe like the others.
        params = dataclasses.replace(params, models=models, active=(*params.active, *params.after))
        rules.check(params)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    return params
