"""CLIP as a classifier: an image goes to the class whose caption is nearest (Radford et al. 2021).

Logits are the scaled cosines of the image's feature and of the captions' features. The towers are open_clip's.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamset.errors import InputError
from dreamset.files import sha256_file

if TYPE_CHECKING:
    from collections.abc import Sequence

WEIGHTS = "open_clip_model.safetensors"
CONFIG = "open_clip_config.json"


class Clip(nn.Module):
    """Frozen open_clip towers with the captions of the classes.

    Args:
        model: an open_clip model.
        tokens: (classes, context) int64, the tokenized captions in label order.
        folder: where the model was read from.
        base: what params.yaml calls that folder, or the one it was trained from.
    """

    label_smoothing = 0.0
    model: Any
    tokens: Tensor
    shift: Tensor
    scale: Tensor

    def __init__(self, model: nn.Module, tokens: Tensor, folder: Path, base: str) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        self.folder, self.base = folder, base
        self.size = int(self.model.visual.image_size[0])
        facts = self.model.visual.preprocess_cfg
        self.mean, self.std = tuple(facts["mean"]), tuple(facts["std"])
        self.register_buffer("tokens", tokens, persistent=False)
        self.register_buffer("shift", torch.tensor(self.mean)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(self.std)[:, None, None], persistent=False)
        self._class_features: Tensor | None = None

    def train(self, mode: bool = True) -> Clip:
        """As ``nn.Module.train``; forgets the captions' features, which training changes."""
        self._class_features = None
        return super().train(mode)

    def class_features(self) -> Tensor:
        """Unit features (classes, d) of the captions; kept between calls in evaluation mode."""
        if self.training:
            return encode_captions(self.model, self.tokens)
        if self._class_features is None:
            self._class_features = encode_captions(self.model, self.tokens)
        return self._class_features

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, classes) of (n, 3, size, size) images in 0..1."""
        features = self.model.encode_image((images - self.shift) / self.scale, normalize=True)
        texts = self.class_features()
        # At a scale of 100, bfloat16 would round a logit by up to a quarter.
        with torch.autocast(images.device.type, enabled=False):
            logits: Tensor = self.model.logit_scale.exp() * features.float() @ texts.float().T
        return logits


def encode_captions(model: Any, tokens: Tensor) -> Tensor:
    """Unit text features (n, d), computed up to the last end-of-text only where that changes nothing.

    In a causal tower that is read at the end-of-text, no later token has any influence, so a caption of ten tokens
    need not cost its context of 77.
    """
    tower = getattr(model, "text", model)
    ends = _ends(tower, tokens)
    if ends is None:
        features: Tensor = model.encode_text(tokens, normalize=True)
        return features
    length = int(ends.max()) + 1
    dtype = tower.transformer.get_cast_dtype()
    x = tower.token_embedding(tokens[:, :length]).to(dtype) + tower.positional_embedding[:length].to(dtype)
    x = tower.transformer(x, attn_mask=tower.attn_mask[:length, :length])
    pooled = tower.ln_final(x[torch.arange(len(x), device=x.device), ends])
    projection = tower.text_projection
    if projection is not None:
        pooled = projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection
    return F.normalize(pooled, dim=-1)


def _ends(tower: Any, tokens: Tensor) -> Tensor | None:
    """Where each caption is read, (n,) int64; None for a tower that may look beyond it."""
    pool = getattr(tower, "text_pool_type", getattr(tower, "pool_type", None))
    causal = getattr(tower, "attn_mask", None) is not None
    plain = not getattr(tower, "use_pad_mask", False) and getattr(tower, "cls_emb", None) is None
    if not (causal and plain):
        return None
    if pool == "argmax":
        return tokens.argmax(-1)
    if pool == "eos":
        end: int = getattr(tower, "text_eos_id", getattr(tower, "eos_id", 0))
        return tokens.eq(end).int().argmax(-1)
    return None


def read(folder: Path, prompts: Sequence[str], base: str) -> Clip:
    """The CLIP of an open_clip folder, with the captions of the classes.

    Raises:
        InputError: the folder is none.
    """
    if not (folder / CONFIG).is_file():
        raise InputError(
            f"{folder}: is not an open_clip folder ({CONFIG} is missing); correct clip in the model's row."
        )
    import open_clip

    name = f"local-dir:{folder}"
    model = open_clip.create_model(name, precision="fp32")
    tokens = open_clip.get_tokenizer(name)(list(prompts))
    return Clip(model, tokens, folder, base)


def save(classifier: Clip, folder: Path) -> dict[str, Any]:
    """An open_clip folder that a stock open_clip reads with ``local-dir:``."""
    from safetensors.torch import save_file

    for file in classifier.folder.iterdir():
        if file.suffix in {".json", ".txt"} and file.name != "classifier.json":
            shutil.copyfile(file, folder / file.name)
    weights = {name: value.cpu().contiguous() for name, value in classifier.model.state_dict().items()}
    save_file(weights, folder / WEIGHTS)
    transform = {"size": classifier.size, "mean": classifier.mean, "std": classifier.std, "resize": "bicubic"}
    trained_from = classifier.folder / WEIGHTS
    digest = sha256_file(trained_from) if trained_from.is_file() else None
    return {"weights": WEIGHTS, "transform": transform, "base": classifier.base, "base_sha256": digest}


def load(folder: Path, record: dict[str, Any]) -> Clip:
    """A classifier as ``save`` wrote it, LoRA merged."""
    return read(folder, record["prompts"], record["base"])
