"""CLIP as a classifier: an image goes to the class whose caption is nearest (Radford et al. 2021).

Logits are the scaled cosines between the image's feature and the captions' features. The towers are open_clip's.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamset.core.files import write_json
from dreamset.weights import pretrained
from dreamset.weights.pretrained import CONFIG, WEIGHTS, Pretrained

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from dreamset.data.splits import Split


# Ours is written anew; those of transformers say how the base's images were resized, which is not how ours are.
_NOT_COPIED: Final = ("classifier.json", CONFIG, "preprocessor_config.json", "processor_config.json")


class Clip(nn.Module):
    """Frozen open_clip towers with the captions of the classes.

    Args:
        model: an open_clip model.
        tokens: (templates * classes, context) int64, the tokenized captions in label order, template after template.
        base: the pretrained weights, as they are or as the start of training.
        templates: captions of each class; the mean of their features is the class's, as Radford et al. 2021 have it.
    """

    label_smoothing = 0.0
    captions_learn = True  # whether training may change the captions' features
    model: Any
    tokens: Tensor
    shift: Tensor
    scale: Tensor

    def __init__(self, model: nn.Module, tokens: Tensor, base: Pretrained, templates: int = 1) -> None:
        super().__init__()
        self.templates = templates
        self.model = model.requires_grad_(False)
        self.base = base
        side = self.model.visual.image_size
        self.size = int(side if isinstance(side, int) else side[0])  # a ResNet tower has one number, a ViT a pair
        facts = self.model.visual.preprocess_cfg
        self.mean, self.std = tuple(facts["mean"]), tuple(facts["std"])
        self.register_buffer("tokens", tokens, persistent=False)
        self.register_buffer("shift", torch.tensor(self.mean)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(self.std)[:, None, None], persistent=False)
        self._class_features: Tensor | None = None

    def train(self, mode: bool = True) -> Clip:
        """Set the mode like ``nn.Module.train``, and forget the captions' features if training changes them.

        Running statistics, as in a ResNet tower, stay frozen like the weights beside them.
        """
        if self.captions_learn:
            self._class_features = None
        super().train(mode)
        for module in self.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def class_features(self) -> Tensor:
        """Return unit features (classes, d) of the captions; evaluation mode keeps them between calls."""
        if not self.captions_learn:
            if self._class_features is None or self._class_features.device != self.tokens.device:
                # What inference mode makes cannot be trained with.
                with torch.inference_mode(False), torch.no_grad():
                    self._class_features = self._encoded()
            return self._class_features
        if self.training:
            return self._encoded()
        if self._class_features is None:
            self._class_features = self._encoded()
        return self._class_features

    def _encoded(self) -> Tensor:
        features = encode_captions(self.model, self.tokens)
        if self.templates == 1:
            return features
        return F.normalize(features.unflatten(0, (self.templates, -1)).mean(dim=0), dim=-1)

    @torch.no_grad()
    def head(self) -> Tensor:
        """Return a float32 matrix (classes, d); logits are unit image features times its transpose."""
        weight: Tensor = (self.model.logit_scale.exp() * self.class_features()).float()
        return weight

    def last(self) -> nn.Module:
        """Return what turns features of length one into logits, without captions or a text tower."""
        head = self.head()
        layer = nn.Linear(head.shape[1], len(head), bias=False)
        layer.weight = nn.Parameter(head, requires_grad=False)
        return layer

    def features(self, images: Tensor) -> Tensor:
        """Return features (n, d) float32 of length one of (n, 3, size, size) images in 0..1."""
        return F.normalize(self.model.encode_image((images - self.shift) / self.scale).float(), dim=-1)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (n, classes) of (n, 3, size, size) images in 0..1."""
        features = self.features(images)
        texts = self.class_features()
        # At a scale of 100, bfloat16 would round a logit by up to a quarter.
        with torch.autocast(images.device.type, enabled=False):
            logits: Tensor = self.model.logit_scale.exp() * features @ texts.T
        return logits


def encode_captions(model: Any, tokens: Tensor, context: Tensor | None = None) -> Tensor:
    """Return unit text features (n, d), computed only up to the last end-of-text where that changes nothing.

    A causal tower that is read at the end-of-text ignores all later tokens. So a caption of ten tokens need not cost
    its context of 77.

    Args:
        model: an open_clip model.
        tokens: (n, context) int64.
        context: vectors that stand between the first token and the others, (length, width) for all captions or
            (n, length, width); None: none. The tower must be causal then, as ``ends`` says.
    """
    tower = getattr(model, "text", model)
    last = ends(tower, tokens)
    if last is None:
        return F.normalize(model.encode_text(tokens).float(), dim=-1)
    dtype = tower.transformer.get_cast_dtype()
    x = tower.token_embedding(tokens[:, : int(last.max()) + 1]).to(dtype)
    if context is not None:
        between = context.to(dtype).expand(len(x), -1, -1)
        x, last = torch.cat([x[:, :1], between, x[:, 1:]], 1), last + between.shape[1]
    length = x.shape[1]
    x = tower.transformer(
        x + tower.positional_embedding[:length].to(dtype), attn_mask=tower.attn_mask[:length, :length]
    )
    pooled = tower.ln_final(x[torch.arange(len(x), device=x.device), last])
    projection = tower.text_projection
    if projection is not None:
        pooled = projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection
    return F.normalize(pooled.float(), dim=-1)


def ends(tower: Any, tokens: Tensor) -> Tensor | None:
    """Return the position that each caption is read at, (n,) int64; None for a tower that may look beyond it."""
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


def read(base: Pretrained, prompts: Sequence[str], templates: int = 1) -> Clip:
    """Return a pretrained CLIP with the captions of the classes, those of all classes by template."""
    return Clip(base.create(), base.tokenizer()(list(prompts)), base, templates)


def build(root: Path, name: str, split: Split) -> Clip:
    """Return the CLIP ``name``, as a model's row gives it, with the captions of ``split``."""
    return read(pretrained.find(root, name), [split.prompt(label) for label in range(len(split.classes))])


def save(classifier: Clip, folder: Path) -> dict[str, Any]:
    """Write a folder that a stock open_clip reads with ``local-dir:``, and return the facts that ``load`` needs."""
    from safetensors.torch import save_file

    base = classifier.base
    for file in base.folder.iterdir() if base.folder else ():
        if file.suffix in {".json", ".txt"} and file.name not in _NOT_COPIED:
            shutil.copyfile(file, folder / file.name)
    # A file of weights has no configuration, that of a repository may be incomplete, and the base's own images may
    # have been resized otherwise: open_clip's transform is to be that of ``core.resizing.resize_crop``.
    ours = {"size": [classifier.size] * 2, "mean": classifier.mean, "std": classifier.std}
    ours |= {"interpolation": "bicubic", "resize_mode": "shortest"}
    write_json(folder / CONFIG, base.config | {"preprocess_cfg": base.config.get("preprocess_cfg", {}) | ours})
    weights = {name: value.cpu().contiguous() for name, value in classifier.model.state_dict().items()}
    save_file(weights, folder / WEIGHTS)
    return {
        "weights": WEIGHTS,
        "transform": {"size": classifier.size, "mean": classifier.mean, "std": classifier.std, "resize": "bicubic"},
        "base": base.name,
        "base_commit": base.commit,
        "base_sha256": base.sha256,
    }


def load(folder: Path, record: dict[str, Any]) -> Clip:
    """Return the classifier that ``save`` wrote, with its LoRAs merged."""
    base = pretrained.in_folder(folder, record["base"], record.get("base_commit"), record["base_sha256"])
    return read(base, record["prompts"])
