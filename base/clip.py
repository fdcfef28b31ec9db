"""The small CLIP: trained on glyphs and their captions, saved in open_clip's layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from base.captions import caption, mention, names, prompt
from base.tokenizer import CONTEXT, make_tokenizer
from base.training import begin, fit
from dreamset.core.shards import assembling
from dreamset.glyphs.fonts import CHARACTERS
from dreamset.glyphs.look import Params, Training
from dreamset.glyphs.render import ATTRIBUTES, SIZE, Batch, Glyphs, group_of, groups, split_pairs

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

WIDTH: Final = 64  # of the joint space and of the text tower, hence of the U-Net's cross-attention
LAYERS: Final = 4
HEADS: Final = 4
VISION: Final = {"layers": 5, "width": 96, "head_width": 32, "mlp_ratio": 4.0, "patch_size": 4, "image_size": SIZE}

# Share of a batch whose captions enter the contrast; the class prompts enter every time.
_CAPTION_SHARE: Final = 1 / 3


def model_config(vocabulary: int) -> dict[str, Any]:
    """The ``model_cfg`` part of ``open_clip_config.json``."""
    text = {
        "context_length": CONTEXT,
        "vocab_size": vocabulary,
        # Any value means "the tokenizer in this folder": open_clip replaces it by the folder's path.
        "hf_tokenizer_name": "local",
        "width": WIDTH,
        "heads": HEADS,
        "layers": LAYERS,
    }
    return {"embed_dim": WIDTH, "quick_gelu": False, "vision_cfg": dict(VISION), "text_cfg": text}


def token_ids(tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    """Token ids of texts, (n, CONTEXT) int64, padded and cut to the context."""
    ids = tokenizer(texts, padding="max_length", truncation=True, max_length=CONTEXT).input_ids
    return torch.tensor(ids)


def _encode(network: Any, ids: torch.Tensor) -> torch.Tensor:
    """Normalised text features, (n, WIDTH); the network reads no further than the end of the longest text.

    The mask is causal and the pool takes the end token, so the padding that is cut off cannot matter.
    """
    length = int(ids.argmax(1).max()) + 1
    ids = ids[:, :length]
    states = network.token_embedding(ids) + network.positional_embedding[:length]
    states = network.ln_final(network.transformer(states, attn_mask=network.attn_mask[:length, :length]))
    pooled = states[torch.arange(len(ids), device=ids.device), ids.argmax(1)]
    return F.normalize(pooled @ network.text_projection, dim=-1)


def _matches(batch: Batch, mentioned: np.ndarray[Any, Any], count: int) -> torch.Tensor:
    """A table of the images that each of the first ``count`` captions describes: (count, n) float32, 1 or 0.

    A caption describes every image of its shape that has all the attributes it mentions.
    """
    same = batch.groups[:count, None] == batch.groups[None]
    fits = (mentioned[:count, None] & ~batch.attributes[None]).sum(-1) == 0
    return torch.from_numpy((same & fits).astype(np.float32))


def _contrast(logits: torch.Tensor, matches: torch.Tensor) -> torch.Tensor:
    """Cross-entropy in both directions, where several partners may be right; logits (texts, images)."""
    by_text = -(F.log_softmax(logits, dim=1) * matches).sum(1) / matches.sum(1)
    described = matches.sum(0) > 0
    columns, right = logits[:, described], matches[:, described]
    by_image = -(F.log_softmax(columns, dim=0) * right).sum(0) / right.sum(0)
    return 0.5 * (by_text.mean() + by_image.mean())


def merged(logits: torch.Tensor) -> torch.Tensor:
    """Log-odds over merged classes (n, groups), from those over characters (n, 62)."""
    index = torch.from_numpy(group_of()).to(logits.device)
    table = F.one_hot(index, len(groups())).bool()
    spread = logits[:, :, None].masked_fill(~table[None], float("-inf"))
    return torch.logsumexp(spread, dim=1)


def train(params: Params, folder: Path) -> None:
    """Train both towers and write them to ``folder``, in the layout that open_clip's ``local-dir:`` reads."""
    from open_clip import CLIP

    where = begin(params.clip)
    tokenizer = make_tokenizer()
    config = model_config(len(tokenizer))
    network = CLIP(**config).to(where)
    fit("clip", network, params.clip, _objective(network, tokenizer, params, params.clip, where))
    save(network, tokenizer, config, folder)


def polish(params: Params, start: Path, folder: Path) -> None:
    """Train the image tower of ``start`` further and write both towers to ``folder``.

    The text tower stays unchanged, so that the U-Net may be trained on it at the same time.
    """
    where = begin(params.polish)
    network, _ = load(start)
    tokenizer = make_tokenizer()
    network.to(where).train()
    for name, weight in network.named_parameters():
        weight.requires_grad_(name.startswith("visual."))
    fit("polish", network, params.polish, _objective(network, tokenizer, params, params.polish, where))
    save(network, tokenizer, model_config(len(tokenizer)), folder)


def _objective(
    network: Any, tokenizer: CLIPTokenizer, params: Params, plan: Training, where: torch.device
) -> Callable[[int], torch.Tensor]:
    """The loss as a function of the step: images against captions, and images against all characters' prompts."""
    source = Glyphs(params.look, plan.seed, split_pairs(params.source.held_out_fonts, params.source.seed)[0])
    shapes = torch.from_numpy(group_of()).to(where)
    count = round(plan.batch * _CAPTION_SHARE)

    def loss_of(step: int) -> torch.Tensor:
        rng = np.random.default_rng([plan.seed, step])
        batch = source.batch(step * plan.batch, plan.batch)
        mentioned = mention(batch.attributes, rng)
        texts = [
            caption(CHARACTERS[c], tuple(a for a, said in zip(ATTRIBUTES, row, strict=True) if said), rng)
            for c, row in zip(batch.characters[:count], mentioned[:count], strict=True)
        ]
        prompts = [prompt(c) if rng.random() < 0.7 else names(c)[-1] for c in CHARACTERS]
        images = network.logit_scale.exp().clamp(max=100) * network.encode_image(batch.images.to(where), normalize=True)
        by_caption = _encode(network, token_ids(tokenizer, texts).to(where)) @ images.T
        by_class = images @ _encode(network, token_ids(tokenizer, prompts).to(where)).T
        contrast = _contrast(by_caption, _matches(batch, mentioned, count).to(where))
        classes = F.cross_entropy(merged(by_class), shapes[torch.from_numpy(batch.characters).to(where)])
        return 0.5 * contrast + classes

    return loss_of


def save(network: nn.Module, tokenizer: CLIPTokenizer, config: dict[str, Any], folder: Path) -> None:
    """Write weights, configuration and tokenizer to one folder, which is replaced as a whole."""
    from safetensors.torch import save_file

    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    with assembling(folder) as fresh:
        weights = {name: value.cpu().contiguous() for name, value in network.state_dict().items()}
        save_file(weights, fresh / "open_clip_model.safetensors")
        text = json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}, indent=2)
        (fresh / "open_clip_config.json").write_text(text + "\n", encoding="utf-8")
        tokenizer.save_pretrained(str(fresh))


def load(folder: Path) -> tuple[Any, Any]:
    """The network and its tokenizer, as any user of open_clip would load them."""
    import open_clip

    network, _ = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    return network.eval(), open_clip.get_tokenizer(f"local-dir:{folder}")


@torch.no_grad()
def class_texts(network: Any, tokenizer: Any, characters: str) -> torch.Tensor:
    """Normalised features of the plain prompts of some characters: (characters, WIDTH)."""
    features: torch.Tensor = network.encode_text(tokenizer([prompt(c) for c in characters]), normalize=True)
    return features
