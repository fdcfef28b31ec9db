"""How others use a CLIP of which they need the image tower and one matrix: no captions, tokenizer or text tower."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

    from dreamset.classifiers.clip import Clip

HEAD: Final = "head.safetensors"
# How others use it: `logits` takes the result of `read`. The card of a delivered classifier prints both.
PROGRAM: Final = """
import open_clip

model = open_clip.create_model("local-dir:.").eval()
head = load_file("head.safetensors")["weight"]  # unit features of the classes' captions, times the logit scale
mean, std = (torch.tensor(record["preprocessing"][key])[:, None, None] for key in ("mean", "std"))


def logits(images):
    return F.normalize(model.encode_image((images - mean) / std), dim=-1) @ head.T
"""


def save_more(classifier: Clip, folder: Path) -> None:
    """Write the matrix from image features to logits."""
    from safetensors.torch import save

    from dreamset.core.files import atomic_write

    atomic_write(folder / HEAD, save({"weight": classifier.head().cpu().contiguous()}))
