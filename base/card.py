"""The model card of the base, filled in with its measured figures."""
# ruff: noqa: E501  (each row of a table is one line)

from __future__ import annotations

from pathlib import Path
from typing import Any

from dreamset.glyphs.look import Params
from dreamset.glyphs.render import ATTRIBUTES, groups

_CARD = """---
license: apache-2.0
language: en
library_name: diffusers
pipeline_tag: text-to-image
tags: [stable-diffusion, clip, glyphs, synthetic-data]
---

# The bundled base of dreamset

Small networks that stand in for Stable Diffusion and CLIP where nothing can be downloaded: 16x16 pixels,
latents of 4x8x8, prompts of up to 24 tokens. They know rendered digits and letters, and have never seen
handwriting.

| folder | what | parameters | opens with |
|---|---|---|---|
| `sd/` | Stable Diffusion: autoencoder {vae:,}, text encoder {text_encoder:,}, U-Net {unet:,} | {sd_total:,} | `StableDiffusionPipeline.from_pretrained("models/base/sd")` |
| `student/` | U-Net that draws in one to four steps what `sd/` draws with guidance {student_guidance}, and its scheduler | {student:,} | `UNet2DConditionModel.from_pretrained("models/base/student", subfolder="unet")` and `LCMScheduler` |
| `clip/` | CLIP, a vision transformer and the text tower that the text encoder was copied from | {clip:,} | `open_clip.create_model_and_transforms("local-dir:models/base/clip")` |
| `judge/` | residual classifier of glyphs, trained apart from both: scores images, and draws, filters and chooses none | {judge:,} | `dreamset.weights.judge.load_judge(Path("models/base/judge"))` |

`sd/` needs transformers 5 or newer, for release 4 finds no `vocab.json` and leaves the text encoder at random; a copy
that both read comes from `python -m base.older FOLDER`, run in the project's root.

![samples: {samples_each} of every character at guidance {guidance}](samples.png)

## Training source

Digits, capital and small letters in the {fonts} fonts shipped with matplotlib that hold them all, drawn by
`dreamset.glyphs.render` as a pure function of (seed, index): random turn, shear, stretch, stroke weight, uneven
stroke, elastic distortion, blur, low resolution (8 to 15 pixels a side), ink and ground. Grey, bright on dark.
For every character {held_out_fonts} of the fonts are kept from training and used only to measure.

Captions name the character, often with attributes that the renderer knows:
"a photo of the digit three", "the letter small b", "a photo of the letter capital B, bold, slanted, serif".
Attributes: {attributes}. The text is lower-cased, so the case of a letter is said in words.

## Figures

Made by `python -m base score` in the project's root; all of them, unrounded, are in `metrics.json`.

| | measured | bar |
|---|---|---|
| held-out glyphs, zero-shot by the CLIP over {classes} merged classes (n = {held_out_glyphs:,}) | {held_out_accuracy:.1%} | 97 % |
| samples read by the judge as their prompted class (n = {samples:,}, guidance {guidance}, {steps} steps of DPM-Solver++) | {samples_read_as_prompted:.1%} | 90 % |
| the same for the ten digits alone | {digit_samples_read_as_prompted:.1%} | |
| held-out glyphs read by the judge | {judge_held_out_accuracy:.1%} | |
| handwritten digits, zero-shot by the CLIP over ten prompts (n = {handwritten_digits:,}) | {handwritten_zero_shot_accuracy:.1%} | |
| handwritten digits read by the judge, among the ten digit classes | {judge_handwritten_accuracy:.1%} | |
| mean squared reconstruction error of the autoencoder, pixels in -1..1: held-out glyphs | {reconstruction_error_glyphs:.5f} | |
| the same, handwritten digits ({reconstruction_ratio:.1f} times the glyphs') | {reconstruction_error_handwritten:.5f} | |
| Frechet distance in judge features, digit samples to handwritten digits | {judge_fid_samples_to_handwritten:.1f} | |

Handwritten digits are the training and selection writers of scikit-learn's `load_digits`, never the test
writers. They were used to look, and to choose the range of the distortions; no network was trained on them.

Characters of one shape under random scale and slant count as one class: {merged}.
Most frequent mistakes among the samples: {mistakes}.

## Few steps

`student/` was distilled by `sd/` itself, without images (`base/student.py`); adapters that are trained on `sd/` are used
on it (`sampler: {{student: true}}` of a recipe). The base draws by DPM-Solver++ with guidance {guidance}, the student by
diffusers' `LCMScheduler` without. FID, coverage and CAS are on the held-out glyphs; CAS is the accuracy there of a
ResNet-20 that learned from the drawn images alone (n = {samples:,}, {cas_steps} steps).

| drawn by | steps | read as prompted | FID | coverage | CAS |
|---|---:|---:|---:|---:|---:|
{few_steps_rows}

## Limits

- It draws single characters in grey on a dark ground, 16 pixels a side, and nothing else. Words outside the
  captions have token ids but no meaning.
- Zero and the letter O share a class in every figure; so do one, I and l. Asking for one may give another.
- The distance of its digits from handwriting is the point: closing it is what adaptation is for.
- The judge has seen the same renderer: its features rank images of glyphs and digits, not of anything else.
"""


def write_card(params: Params, figures: dict[str, Any], path: Path) -> None:
    """Fill in the card with the figures and write it to ``path``."""
    counts: dict[str, int] = figures["parameters"]
    values = {
        **figures,
        **{name: counts[name] for name in ("vae", "text_encoder", "unet", "student", "clip", "judge")},
        "sd_total": counts["vae"] + counts["text_encoder"] + counts["unet"],
        "student_guidance": params.student.guidance,
        "cas_steps": params.cas.steps,
        "few_steps_rows": "\n".join(
            f"| {row['network']} | {row['steps']} | {row['read_as_prompted']:.1%} | {row['fid']:.2f} | "
            f"{row['coverage']:.3f} | {row['cas']:.1%} |"
            for row in figures["few_steps"]
        ),
        "samples_each": 6,
        "fonts": 22,
        "guidance": params.score.guidance,
        "steps": params.score.steps,
        "held_out_fonts": params.source.held_out_fonts,
        "attributes": ", ".join(ATTRIBUTES),
        "classes": len(groups()),
        "merged": ", ".join("/".join(group) for group in groups() if len(group) > 1),
        "mistakes": "; ".join(figures["worst_mistakes"]),
    }
    path.write_text(_CARD.format(**values), encoding="utf-8")
