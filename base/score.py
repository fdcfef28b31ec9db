"""The last stage: measure the finished base and write its figures, a picture and its model card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from base import clip, measures, quick
from base.card import write_card
from base.training import device
from dreamset.glyphs.fonts import CHARACTERS
from dreamset.glyphs.look import Params
from dreamset.weights.judge import load_judge

_DIGITS = CHARACTERS[:10]
_SAMPLES_EACH = 6  # of each character, in the picture


def _parameters(folder: Path) -> dict[str, int]:
    """The number of parameters of each network, by the name of its folder."""
    from safetensors import safe_open

    counts = {}
    for path in sorted(folder.rglob("*.safetensors")):
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue  # an unfinished network
        with safe_open(path, framework="np") as weights:
            shapes = [weights.get_slice(key).get_shape() for key in weights.keys()]  # noqa: SIM118
        name = "student" if path.parent.parent.name == "student" else path.parent.name
        counts[name] = sum(int(np.prod(shape)) for shape in shapes)
    return counts


def _picture(images: torch.Tensor, path: Path) -> None:
    """Write a picture of the samples: a column per character, 31 characters a band, enlarged threefold."""
    from PIL import Image

    side = images.shape[-1]
    pixels = ((images[:, 0] + 1) * 127.5).round().clamp(0, 255).byte().numpy()
    table = pixels.reshape(len(CHARACTERS), -1, side, side)[:, :_SAMPLES_EACH].transpose(1, 2, 0, 3)
    bands = np.split(table.reshape(_SAMPLES_EACH * side, len(CHARACTERS) * side), 2, axis=1)
    Image.fromarray(np.concatenate(bands)).resize((31 * side * 3, 2 * _SAMPLES_EACH * side * 3), 0).save(path)


def _clip_figures(params: Params, folder: Path) -> dict[str, Any]:
    network, tokenizer = clip.load(folder / "clip")
    digits, labels = measures.handwritten()
    glyphs, classes = measures.held_out(params)
    return {
        "held_out_glyphs": len(classes),
        "held_out_accuracy": measures.clip_accuracy(network, tokenizer, glyphs, classes, CHARACTERS),
        "handwritten_digits": len(labels),
        "handwritten_zero_shot_accuracy": measures.clip_accuracy(network, tokenizer, digits, labels, _DIGITS),
    }


def _diffusion_figures(params: Params, folder: Path) -> dict[str, Any]:
    plan = params.score
    judge = load_judge(folder / "judge")
    digits, labels = measures.handwritten()
    glyphs, classes = measures.held_out(params)
    pipeline = measures.open_pipeline(folder / "sd").to(device())
    images = measures.sample(pipeline, plan, CHARACTERS, plan.images_per_class).cpu()
    _picture(images, folder / "samples.png")
    true = measures.true_groups(CHARACTERS, plan.images_per_class)
    read = measures.judge_reads(judge, images)
    vae = pipeline.vae.cpu()
    drawn = images[: 10 * plan.images_per_class]
    ten = measures.true_groups(_DIGITS, 1)
    glyph_error = measures.reconstruction_error(vae, glyphs)
    digit_error = measures.reconstruction_error(vae, digits)
    return {
        "samples": len(images),
        "samples_read_as_prompted": float((read == true).mean()),
        "digit_samples_read_as_prompted": float((read == true)[: len(drawn)].mean()),
        "worst_mistakes": measures.confusions(true, read),
        "judge_held_out_accuracy": float((measures.judge_reads(judge, glyphs) == classes).mean()),
        "judge_handwritten_accuracy": float((measures.judge_reads(judge, digits, ten) == ten[labels]).mean()),
        "judge_fid_samples_to_handwritten": measures.frechet(
            measures.judge_features(judge, drawn), measures.judge_features(judge, digits)
        ),
        "reconstruction_error_glyphs": glyph_error,
        "reconstruction_error_handwritten": digit_error,
        "reconstruction_ratio": digit_error / glyph_error,
    }


def score(params: Params, folder: Path) -> None:
    """Measure everything in ``folder`` and write ``metrics.json``, ``samples.png`` and ``README.md``."""
    torch.set_num_threads(params.score.threads)
    figures = _clip_figures(params, folder) | _diffusion_figures(params, folder)
    figures["few_steps"] = quick.figures(params, folder, load_judge(folder / "judge"))
    figures["parameters"] = _parameters(folder)
    rounded = {key: round(value, 5) if isinstance(value, float) else value for key, value in figures.items()}
    text = json.dumps(rounded, indent=2)
    (folder / "metrics.json").write_text(text + "\n", encoding="utf-8")
    write_card(params, rounded, folder / "README.md")
    print(text)
