"""What zero-shot CLIP reads in a picture: of each group of words, the one whose caption is nearest.

A word stands behind the captions of the classes ("a photo of a cat, from above"), and the word ``none`` stands for the
captions as they are. The mean over the classes makes a word's feature, so that no label has a part in what is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from dreamset.core.device import pick
from dreamset.data.asking import NONE
from dreamset.weights import pretrained

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from dreamset.data.splits import Split

_CLASSES: Final = 32  # classes whose captions a word's feature is the mean of, evenly chosen where there are more


@dataclass(frozen=True)
class Reader:
    """A CLIP with the features of the words.

    Attributes:
        model: of open_clip, on the device.
        size: side in pixels of the pictures that it sees.
        groups: the words, by group.
        words: unit features (words, d) of each group.
    """

    model: Any
    size: int
    groups: Mapping[str, Sequence[str]]
    words: Mapping[str, Any]

    def read(self, images: NDArray[np.uint8], batch: int = 64) -> dict[str, NDArray[np.float32]]:
        """Return by group the probability of each word, (n, words), for RGB images (n, size, size, 3) uint8."""
        import numpy as np
        import torch
        import torch.nn.functional as F

        device = next(self.model.parameters()).device
        facts = self.model.visual.preprocess_cfg
        mean, std = (torch.tensor(facts[name], device=device)[:, None, None] for name in ("mean", "std"))
        found: dict[str, list[NDArray[np.float32]]] = {group: [] for group in self.groups}
        with torch.inference_mode():
            for at in range(0, len(images), batch):
                pixels = torch.from_numpy(images[at : at + batch]).to(device).permute(0, 3, 1, 2).float() / 255
                features = F.normalize(self.model.encode_image((pixels - mean) / std).float(), dim=-1)
                for group, words in self.words.items():
                    likely = (self.model.logit_scale.exp() * features @ words.T).softmax(-1)
                    found[group].append(likely.cpu().numpy())
        return {
            group: np.concatenate(parts) if parts else np.zeros((0, len(self.groups[group])), np.float32)
            for group, parts in found.items()
        }


def reader(root: Path, clip: str, split: Split, groups: Mapping[str, Sequence[str]]) -> Reader:
    """Return the reader of some groups of words.

    Args:
        root: the project's root.
        clip: as the model's row names it.
        split: gives the captions of the classes.
        groups: words by group.

    Raises:
        InputError: the CLIP is missing or damaged.
    """
    import torch
    import torch.nn.functional as F

    found = pretrained.find(root, clip)
    model, tokenizer = found.create().to(pick()).eval(), found.tokenizer()
    device = next(model.parameters()).device
    leads = captions(split)

    def feature(word: str) -> torch.Tensor:
        texts = [lead if word == NONE else f"{lead}, {word}" for lead in leads]
        features = F.normalize(model.encode_text(tokenizer(texts).to(device)).float(), dim=-1)
        return F.normalize(features.mean(0), dim=-1)

    with torch.inference_mode():
        words = {group: torch.stack([feature(word) for word in each]) for group, each in groups.items()}
    side = model.visual.image_size
    return Reader(model, int(side if isinstance(side, int) else side[0]), groups, words)


def captions(split: Split) -> list[str]:
    """Return the captions behind which words are put: those of all classes, or of some in even distances."""
    classes = len(split.classes)
    return [split.prompt(label) for label in range(0, classes, -(-classes // _CLASSES))]


def winners(likely: Mapping[str, Sequence[float]], groups: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return the likeliest word of each group, of the probabilities of one picture."""
    return {group: words[max(range(len(words)), key=likely[group].__getitem__)] for group, words in groups.items()}
