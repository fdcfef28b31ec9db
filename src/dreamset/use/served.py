"""The delivered classifier as MLflow loads it: ``mlflow.pyfunc.load_model`` calls ``_load_pyfunc`` of this module."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dreamset.core.images import Decoding
from dreamset.use.predict import decoded, delivered, find, stacked

if TYPE_CHECKING:
    import pandas as pd

# The signature: types of MLflow by name of the column.
INPUTS: Final = {"path": "string"}
OUTPUTS: Final = {"label": "string", "probability": "double", "abstained": "boolean", "error": "string"}


class Served:
    """From a table of image files to a table of labels, as ``dreamset predict`` labels them."""

    def __init__(self, folder: Path) -> None:
        from dreamset import classifiers

        self.record = delivered(folder)
        self.predictor = classifiers.load(folder)

    def predict(self, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Return a row per file, in order: the label (empty below the threshold), its probability, or an error.

        Args:
            model_input: its column ``path`` names files.
            params: none are taken; MLflow passes them.

        Raises:
            InputError: a file does not exist.
        """
        import pandas as pd

        from dreamset import classifiers

        pixels = self.record["preprocessing"]
        decoding = Decoding.recorded(pixels)
        to_label = [find([path])[0] for path in model_input["path"]]
        rows: list[tuple[str, float, bool, str]] = []
        for _, images in decoded(to_label, pixels["side"], decoding, classifiers.BATCH):
            usable = [image for image in images if not isinstance(image, str)]
            every = iter(self.predictor.probabilities(self.predictor.logits(stacked(usable, pixels["side"]))))
            for image in images:
                if isinstance(image, str):
                    rows.append(("", float("nan"), False, image))
                    continue
                probabilities = next(every)
                top = float(probabilities.max())
                abstains = top < self.record["threshold"]
                label = "" if abstains else self.predictor.classes[int(probabilities.argmax())]
                rows.append((label, top, bool(abstains), ""))
        return pd.DataFrame(rows, columns=list(OUTPUTS))


def _load_pyfunc(folder: str) -> Served:
    return Served(Path(folder))
