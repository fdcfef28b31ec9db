"""The figures of the student beside those of its teacher: what each draws in how many steps."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from base import measures
from base.training import begin, device, fit
from dreamset.classifiers import resnet20
from dreamset.glyphs.fonts import CHARACTERS
from dreamset.glyphs.look import Params
from dreamset.glyphs.render import groups
from dreamset.metrics.manifold import manifold
from dreamset.weights.judge import Judge

# Network and steps; the base has guidance, the student none.
DRAWN: Final = (("base", 50), ("base", 20), ("base", 3), ("student", 4), ("student", 2), ("student", 1))
_WIDTH: Final = 16


def cas(params: Params, images: torch.Tensor, labels: NDArray[np.int64], test: Any) -> float:
    """The classification accuracy score: of a ResNet-20 trained on ``images`` alone, on the images ``test``.

    Args:
        params: ``cas`` says how it is trained.
        images: (n, 3, h, w) in -1..1.
        labels: (n,) merged classes.
        test: images and merged classes that score.
    """
    where = begin(params.cas)
    network = resnet20.network(len(groups()), _WIDTH, images.shape[-1], 0.0).to(where)
    inputs, targets = (images.to(where) + 1) / 2, torch.from_numpy(labels).to(where)

    def loss_of(step: int) -> torch.Tensor:
        rows = torch.randint(0, len(inputs), (params.cas.batch,))
        return F.cross_entropy(network(inputs[rows]), targets[rows], label_smoothing=0.1)

    fit("cas", network.train(), params.cas, loss_of)
    network.eval()
    with torch.no_grad():
        guesses = [network((part.to(where) + 1) / 2).argmax(1).cpu() for part in torch.split(test[0], 256)]
    return float((torch.cat(guesses).numpy() == test[1]).mean())


def figures(params: Params, folder: Path, judge: Judge) -> list[dict[str, Any]]:
    """What each of ``DRAWN`` draws: read as prompted, FID, coverage and CAS, the last three on held-out glyphs."""
    from diffusers import LCMScheduler, UNet2DConditionModel

    glyphs = measures.held_out(params)
    real = measures.judge_features(judge, glyphs[0])
    true = measures.true_groups(CHARACTERS, params.score.images_per_class)
    rows = []
    for name, steps in DRAWN:
        pipeline, plan = measures.open_pipeline(folder / "sd"), dataclasses.replace(params.score, steps=steps)
        if name == "student":
            pipeline.unet = UNet2DConditionModel.from_pretrained(folder / "student", subfolder="unet")
            pipeline.scheduler = LCMScheduler.from_pretrained(folder / "student", subfolder="scheduler")
            plan = dataclasses.replace(plan, guidance=1.0)
        images = measures.sample(pipeline.to(device()), plan, CHARACTERS, plan.images_per_class).cpu()
        drawn = measures.judge_features(judge, images)
        row = {
            "network": name,
            "steps": steps,
            "guidance": plan.guidance,
            "read_as_prompted": float((measures.judge_reads(judge, images) == true).mean()),
            "fid": measures.frechet(drawn, real),
            "coverage": manifold(real.astype(np.float32), drawn.astype(np.float32)).coverage,
            "cas": cas(params, images, true, glyphs),
        }
        rows.append({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()})
    return rows
