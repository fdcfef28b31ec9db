"""Augmentation: what it may change, for each image by itself, and how labels are mixed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dreamset.classifiers import fit
from dreamset.classifiers.augment import Augment, Mix
from dreamset.classifiers.siamese import Siamese
from dreamset.data import arrays


def _ramp(n: int) -> torch.Tensor:
    """Dark on the left and at the top, bright on the right and at the bottom, and reddish."""
    y, x = torch.meshgrid(torch.linspace(0.1, 0.5, 16), torch.linspace(0, 0.4, 16), indexing="ij")
    return torch.stack([x + y, 0.8 * (x + y), 0.5 * (x + y)]).repeat(n, 1, 1, 1)


def _slopes(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Differences between right and left, bottom and top, of the middle, which no shift brings to the border."""
    middle = images[:, :, 6:10, 6:10].mean(1)
    return (middle[:, :, 2:] - middle[:, :, :2]).mean((1, 2)), (middle[:, 2:] - middle[:, :2]).mean((1, 2))


@pytest.mark.parametrize(("allowed", "across", "down"), [((), 0, 0), (("hflip",), 0.5, 0), (("vflip",), 0, 0.5)])
def test_flips_happen_only_where_the_source_declares_them(allowed: tuple[str, ...], across: float, down: float) -> None:
    x, y = _slopes(Augment(allowed, 0.7, 0)(_ramp(600)))
    assert float((x < 0).float().mean()) == pytest.approx(across, abs=0.08 if across else 0.0)
    assert float((y < 0).float().mean()) == pytest.approx(down, abs=0.08 if down else 0.0)


def test_free_rotation_happens_only_where_the_source_declares_it() -> None:
    x, y = _slopes(Augment(("rotation",), 1.0, 0)(_ramp(600)))
    assert 0.35 < float((x < 0).float().mean()) < 0.65
    assert 0.35 < float((y < 0).float().mean()) < 0.65


def test_colours_stay_where_the_source_says_that_they_matter() -> None:
    flat = torch.tensor([0.6, 0.3, 0.2])[:, None, None].expand(200, 3, 16, 16)
    kept, changed = Augment((), 0.7, 0)(flat), Augment(("colour",), 0.7, 0)(flat)
    middle = slice(6, 10)
    assert torch.allclose(kept[:, :, middle, middle], flat[:, :, middle, middle], atol=1e-5)
    moved = (changed - flat)[:, :, middle, middle].abs().amax((1, 2, 3))
    assert float((moved > 0.02).float().mean()) > 0.7
    # Some are grey, some inverted.
    assert 0.1 < float(((changed[:, 0, 8, 8] - changed[:, 2, 8, 8]).abs() < 1e-4).float().mean()) < 0.4


def test_every_image_has_its_own_change_and_seeds_repeat() -> None:
    images = _ramp(8)
    one, two, other = (Augment(("colour",), 0.7, seed)(images) for seed in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert len({tuple(row.flatten()[:200].tolist()) for row in one}) == 8
    assert one.shape == images.shape
    assert float(one.min()) >= 0
    assert float(one.max()) <= 1


def test_crops_keep_the_share_of_the_area_that_they_must() -> None:
    image = torch.zeros(400, 3, 16, 16)
    image[:, :, ::1, 8:] = 1
    matrices = Augment((), 0.5, 0)._crops(400)
    area = (matrices[:, 0, 0] * matrices[:, 1, 1]).abs()
    assert 0.45 < float(area.min()) < 0.6
    assert float(area.max()) <= 1
    # A crop stays inside the image.
    for axis in (0, 1):
        assert float((matrices[:, axis, 2].abs() + matrices[:, axis, axis].abs()).max()) <= 1 + 1e-6


def test_mixup_blends_and_cutmix_pastes_in_the_share_that_is_told() -> None:
    # Image i is i everywhere, so that a pixel tells whose it is.
    images = torch.arange(6.0)[:, None, None, None].expand(6, 3, 16, 16) / 5
    shares = []
    for seed in range(20):
        mixed, other, share = Mix(0.4, 0.0, seed)(images)
        assert torch.allclose(mixed, share * images + (1 - share) * images[other])
        assert sorted(other.tolist()) == list(range(6))
        pasted, other, kept = Mix(0.0, 1.0, seed)(images)
        own, strange = pasted == images, pasted == images[other]
        assert bool((own | strange).all())
        moved = other != torch.arange(6)
        assert own[moved].float().mean().item() == pytest.approx(kept)
        shares += [share, kept]
    assert all(0 <= share <= 1 for share in shares)
    assert min(shares) < 0.2 < 0.8 < max(shares)
    same, _, all_of_it = Mix(0.0, 0.0, 0)(images)
    assert same is images
    assert all_of_it == 1


def test_the_loss_of_mixed_images_is_shared_between_both_labels() -> None:
    class Bright(torch.nn.Module):
        """Class 1 by how bright an image is."""

        size, label_smoothing = 16, 0.0

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor(3.0))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            bright = self.weight * (images[:, 0, 8, 8] - 0.2)
            return torch.stack([-bright, bright], 1)

    class Swapped(Mix):
        def __call__(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
            return images, torch.tensor([1, 0]), 0.7

    pixels = np.stack([np.full((16, 16, 3), value, np.uint8) for value in (0, 255)])
    sources = [fit.Source("real", arrays.Labelled(pixels, np.array([0, 1]), ("a", "b")), 1.0, 1.0)]
    loader = fit._Loader(Bright(), sources, 2, Augment((), 1.0, 0), ("m",), Swapped(0.0, 0.0, 0))
    logits = torch.tensor([[0.6, -0.6], [-2.4, 2.4]])
    own, other = (torch.nn.functional.cross_entropy(logits, torch.tensor(labels)) for labels in ([0, 1], [1, 0]))
    assert float(loader.loss().detach()) == pytest.approx(float(0.7 * own + 0.3 * other), rel=1e-4)


def test_strong_augmentation_obeys_the_invariances() -> None:
    ramp = torch.linspace(0, 1, 16).expand(40, 3, 16, 16).contiguous()
    strong = Augment((), 1.0, 3, operations=fit.STRONG)(ramp)
    # Left stays darker than right, whatever was drawn: neither flips nor half turns.
    assert bool((strong[..., 9:13].mean((1, 2, 3)) > strong[..., 3:7].mean((1, 2, 3))).all())
    grey = torch.full((40, 3, 16, 16), 0.5)
    assert Augment((), 1.0, 3, operations=fit.STRONG)(grey)[..., 6:10, 6:10].sub(0.5).abs().max() < 1e-5
    assert Augment(("colour",), 1.0, 3, operations=fit.STRONG)(grey)[..., 6:10, 6:10].sub(0.5).abs().max() > 0.1


EVERYTHING = ("hflip", "vflip", "rotation", "colour")


def test_siamese_augmentation_keeps_what_the_source_does_not_declare() -> None:
    assert Siamese((), 0).kinds == ["crop", "cutout", "scale"]
    assert Siamese(("vflip",), 0).kinds == ["crop", "cutout", "scale"]  # its flip is from left to right
    assert set(Siamese(EVERYTHING, 0).kinds) == {"crop", "cutout", "scale", "flip", "rotate", "colour"}
    undeclared = Siamese((), 0)
    for _ in range(30):
        x, y = _slopes(undeclared(_ramp(4)))
        assert float(x.min()) > -1e-3 and float(y.min()) > -1e-3


def test_siamese_augmentation_changes_a_batch_in_one_way_and_each_image_by_itself() -> None:
    ramp = _ramp(64)
    changed = {}
    for kind in Siamese(EVERYTHING, 0).kinds:
        augment = Siamese(EVERYTHING, 1)
        augment.kinds = [kind]
        changed[kind] = augment(ramp)
        assert changed[kind].shape == ramp.shape
        assert 0 <= float(changed[kind].min()) <= float(changed[kind].max()) <= 1
        again = Siamese(EVERYTHING, 1)
        again.kinds = [kind]
        assert torch.equal(again(ramp), changed[kind])
        assert len({tuple(row.flatten().tolist()) for row in changed[kind]}) >= (2 if kind == "flip" else 20)
    mirrored = torch.tensor([torch.allclose(row, ramp[0].flip(2), atol=1e-6) for row in changed["flip"]])
    kept = torch.tensor([torch.allclose(row, ramp[0], atol=1e-6) for row in changed["flip"]])
    assert bool((mirrored ^ kept).all()) and 16 < int(mirrored.sum()) < 48
    noise = torch.rand(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    augment = Siamese(EVERYTHING, 1)
    augment.kinds = ["cutout"]
    hole = ((augment(noise) - noise.mean((0, 2, 3))[:, None, None]).abs() < 1e-6).all(1).float().mean((1, 2))
    # A square of half the side, less where it reaches over the border.
    assert 0.2 < float(hole.max()) < 0.27 and float(hole.min()) > 0.03
    x, _ = _slopes(changed["rotate"])
    assert float(x.min()) > 0 and float(x.std()) > 0.005
    x, _ = _slopes(changed["scale"])
    flat = _slopes(ramp)[0][0]
    assert float(flat) / 1.21 < float(x.min()) < float(x.max()) < 1.21 * float(flat)


def test_siamese_augmentation_brings_images_to_the_size_that_is_seen() -> None:
    assert Siamese((), 0)(torch.rand(2, 3, 18, 18), 16).shape == (2, 3, 16, 16)
