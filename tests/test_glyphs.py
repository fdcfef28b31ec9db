import numpy as np
import pytest
import torch
from base import captions
from base.tokenizer import CONTEXT, make_tokenizer

from dreamset.glyphs import look
from dreamset.glyphs.fonts import CHARACTERS, usable_fonts
from dreamset.glyphs.render import ATTRIBUTES, Glyphs, groups, split_pairs

LOOK = look.Look(
    size_min=10.5,
    shift=1.0,
    rotation=12.0,
    shear=0.3,
    aspect=0.15,
    stroke_min=0.6,
    stroke_max=1.9,
    erode=0.3,
    dilate=0.9,
    uneven=0.45,
    elastic=0.9,
    blur=0.8,
    low_resolution=0.5,
    ink_min=0.65,
    ground=0.15,
    bold_from=1.5,
    thin_to=0.75,
)


@pytest.fixture(scope="module")
def source():
    return Glyphs(LOOK, 3, split_pairs(2, 7)[0])


def test_fonts_that_hold_all_letters_are_twenty_two_in_three_families():
    fonts = usable_fonts()
    assert len(fonts) == 22
    assert {font.family for font in fonts} == {"serif", "sans", "mono"}
    assert not {font.name for font in fonts} & {"cmsy10", "cmex10", "LastResortHE-Regular"}
    flags = {font.name: (font.bold, font.slanted) for font in fonts}
    assert flags["DejaVuSans-BoldOblique"] == (True, True)
    assert flags["DejaVuSerif-Italic"] == (False, True)
    assert flags["STIXGeneralBol"] == (True, False)
    assert flags["DejaVuSans-Oblique"] == (False, True)
    assert flags["cmr10"] == (False, False)


def test_an_image_is_a_function_of_seed_and_index_alone(source):
    whole = source.batch(0, 12)
    part = Glyphs(LOOK, 3, split_pairs(2, 7)[0]).batch(5, 4)
    # The last bits of a product may depend on the size of the batch; a grey level never does.
    assert torch.allclose(whole.images[5:9], part.images, atol=1e-5)
    assert (whole.characters[5:9] == part.characters).all()
    assert (whole.attributes[5:9] == part.attributes).all()
    other = Glyphs(LOOK, 4, split_pairs(2, 7)[0]).batch(0, 12)
    assert not torch.allclose(whole.images, other.images, atol=0.1)


def test_images_are_bright_ink_on_a_dark_ground(source):
    images = source.batch(0, 256).images
    assert images.shape == (256, 3, 16, 16)
    assert images.dtype == torch.float32
    assert images.min() >= -1 and images.max() <= 1
    assert torch.equal(images[:, 0], images[:, 2])
    brightest, typical = images.amax((1, 2, 3)), images.flatten(1).median(1).values
    assert (brightest - typical > 0.3).float().mean() > 0.97
    assert typical.mean() < -0.5


def test_attributes_say_what_the_picture_shows(source):
    batch = source.batch(0, 1024)
    ink = (batch.images[:, 0] > -0.2).float().mean((1, 2)).numpy()
    said = {name: batch.attributes[:, i] for i, name in enumerate(ATTRIBUTES)}
    assert ink[said["bold"]].mean() > 1.5 * ink[said["thin"]].mean()
    assert batch.images[said["faint"]].amax((1, 2, 3)).mean() < batch.images[~said["faint"]].amax((1, 2, 3)).mean()
    families = said["serif"].astype(int) + said["sans"] + said["mono"]
    assert (families == 1).all()
    assert all(0.05 < column.mean() < 0.7 for column in said.values())


def test_held_out_pairs_are_never_drawn():
    train, test = split_pairs(2, 7)
    assert not (train & test).any()
    assert (test.sum(axis=1) == 2).all()
    drawn = Glyphs(LOOK, 1, train).batch(0, 512)
    assert train[drawn.characters, drawn.fonts].all()
    assert set(np.unique(drawn.characters)) == set(range(len(CHARACTERS)))


def test_every_character_stands_in_one_group():
    assert sorted("".join(groups())) == sorted(CHARACTERS)


def test_captions_name_the_class_and_the_attributes():
    rng = np.random.default_rng(0)
    assert captions.prompt("3") == "a photo of the digit three"
    assert captions.prompt("B") == "a photo of the letter capital B"
    assert captions.prompt("b") == "a photo of the letter small b"
    said = {captions.caption("3", (), rng) for _ in range(300)}
    assert {"a photo of the digit three", "the digit 3", "three"} <= said
    assert captions.caption("B", ("bold", "slanted"), rng).endswith(", bold, slanted")
    true = np.array([[True, False, True]] * 50)
    mentioned = captions.mention(true, rng)
    assert not (mentioned & ~true).any()
    assert 0 < mentioned.sum() < true.sum()


def test_tokenizer_knows_caption_words_whole_and_takes_any_text():
    tokenizer = make_tokenizer()
    assert all(len(tokenizer.tokenize(word)) == 1 for word in captions.vocabulary())
    assert tokenizer.eos_token_id == len(tokenizer) - 1 == tokenizer.pad_token_id
    assert tokenizer.model_max_length == CONTEXT
    odd = tokenizer("Boeing 707-320 naïve ✈ \u4e2d").input_ids
    assert tokenizer.eos_token_id not in odd[1:-1]
