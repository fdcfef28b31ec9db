"""Training of the judge, independent of the other networks: another seed, another architecture, labels only."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F

from base.training import begin, fit
from dreamset.core.shards import assembling
from dreamset.glyphs.look import Params
from dreamset.glyphs.render import Glyphs, groups, split_pairs
from dreamset.weights.judge import Judge, save_judge


def train(params: Params, folder: Path) -> None:
    """Train the judge on merged glyph classes and write it to ``folder``."""
    plan = params.judge
    where = begin(plan)
    judge = Judge(groups()).to(where).train()
    source = Glyphs(params.look, plan.seed, split_pairs(params.source.held_out_fonts, params.source.seed)[0])

    def loss_of(step: int) -> torch.Tensor:
        batch = source.batch(step * plan.batch, plan.batch)
        labels = torch.from_numpy(batch.groups).to(where)
        return F.cross_entropy(judge.logits(batch.images.to(where)), labels, label_smoothing=0.02)

    fit("judge", judge, plan, loss_of)
    with assembling(folder) as fresh:
        save_judge(judge.eval(), fresh)
