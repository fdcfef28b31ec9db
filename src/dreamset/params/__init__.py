"""``params.yaml`` as frozen, validated types; the program parses it once.

Defaults stand in ``params.yaml`` alone. The fields here give the allowed values, and ``rules`` ties values to one
another. ``recipe`` holds the knobs of a recipe, each with its rule and its words on the cards.
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

    from dreamset.params.model import ClassifierRow, Model

__all__ = ["Params", "checked_model", "load", "parse", "to_dict"]


def load(path: Path, classifiers: Mapping[str, type[ClassifierRow]]) -> Params:
    """Return the checked parameters of a file.

    Args:
        path: the file.
        classifiers: the type of each classifier's row: ``classifiers.ROWS``.

    Raises:
        InputError: one sentence naming the key and what is allowed.
    """
    return parse(read_yaml(path), classifiers, str(path))


def parse(raw: object, classifiers: Mapping[str, type[ClassifierRow]], file: str = "params.yaml") -> Params:
    """Return the checked parameters of a mapping from ``yaml.safe_load``; see ``load``."""
    try:
        params = build(Params, raw)
        models = {name: checked_model(params, name, classifiers) for name in params.models}
        # From here on there is one list: a recipe that starts from another one is a recipe like any other.
        params = dataclasses.replace(params, models=models, active=(*params.active, *params.after))
        rules.check(params)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    return params


def checked_model(params: Params, name: str, classifiers: Mapping[str, type[ClassifierRow]]) -> Model:
    """Return a row of ``models`` with checked rows of classifiers; those that are trained may not be missing.

    Raises:
        InputError: one sentence naming the key and what is allowed.
    """
    model = params.models[name]
    used = (model.tune.classifier, *(params.train.trained if name == params.model else ()))
    return dataclasses.replace(model, train=model.train.checked(classifiers, f"models.{name}.train", used))
