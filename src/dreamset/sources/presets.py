"""The ten data sets of DataDream, in the splits of CoOp that the few-shot literature shares, and two more of ImageNet.

A row of ``PRESETS`` describes a data set completely. The files are laid out as CoOp's instructions say. The test part
is always the complete published one.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dreamset.core.errors import InputError
from dreamset.data.source import Rejected, Source
from dreamset.data.splits import spoken
from dreamset.sources import coop, wordnet
from dreamset.sources.coop import Listing
from dreamset.sources.imagefolder import files, folders
from dreamset.sources.reading import inside, read_files

if TYPE_CHECKING:
    from collections.abc import Callable

    from dreamset.core.images import Decoding


def _qualified(name: str) -> str:
    """The caption's words for a class of SUN397: "indoor apse" for apse/indoor, as in CoOp's split file."""
    return spoken(" ".join(reversed(name.strip("/").split("/"))))


@dataclass(frozen=True)
class Preset:
    """A published data set.

    Attributes:
        split: name of the split file.
        folder: the folder of images beside it.
        noun: the word that DataDream puts before "photo" in captions.
        clip: the caption of CoOp (Zhou et al. 2022) for CLIP as it is.
        classes: the published number of classes.
        counts: the published numbers of training, selection and test images; None: several are in use.
        invariances: changes of an image that keep its label.
        home: the address that the images come from.
        words: turns a class name into its words in a caption.
    """

    split: str
    folder: str
    noun: str
    clip: str
    classes: int
    counts: tuple[int | None, int, int]
    invariances: tuple[str, ...]
    home: str
    words: Callable[[str], str] = spoken


PRESETS: Final[dict[str, Preset]] = {
    "caltech101": Preset(
        split="split_zhou_Caltech101.json",
        folder="101_ObjectCategories",
        noun="",
        clip="a photo of a {class}.",
        classes=100,
        counts=(4128, 1649, 2465),
        invariances=("hflip", "colour"),
        home="https://data.caltech.edu/records/mzrjq-6wc02",
    ),
    "dtd": Preset(
        split="split_zhou_DescribableTextures.json",
        folder="images",
        noun="texture",
        clip="{class} texture.",
        classes=47,
        counts=(2820, 1128, 1692),
        invariances=("hflip", "vflip", "rotation", "colour"),
        home="https://www.robots.ox.ac.uk/~vgg/data/dtd",
    ),
    "eurosat": Preset(
        split="split_zhou_EuroSAT.json",
        folder="2750",
        noun="satellite",
        clip="a centered satellite photo of {class}.",
        classes=10,
        counts=(13500, 5400, 8100),
        # Crops differ in colour.
        invariances=("hflip", "vflip", "rotation"),
        home="https://github.com/phelber/EuroSAT",
    ),
    "fgvc_aircraft": Preset(
        split="images_variant_{train,val,test}.txt",
        folder="images",
        noun="aircraft",
        clip="a photo of a {class}, a type of aircraft.",
        classes=100,
        counts=(3334, 3333, 3333),
        invariances=("hflip", "colour"),
        home="https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft",
    ),
    "oxford_pets": Preset(
        split="split_zhou_OxfordPets.json",
        folder="images",
        noun="pet",
        clip="a photo of a {class}, a type of pet.",
        classes=37,
        counts=(2944, 736, 3669),
        # Breeds differ in colour.
        invariances=("hflip",),
        home="https://www.robots.ox.ac.uk/~vgg/data/pets",
    ),
    "stanford_cars": Preset(
        split="split_zhou_StanfordCars.json",
        folder=".",
        noun="car",
        clip="a photo of a {class}.",
        classes=196,
        counts=(6509, 1635, 8041),
        invariances=("hflip", "colour"),
        home="https://ai.stanford.edu/~jkrause/cars/car_dataset.html",
    ),
    "sun397": Preset(
        split="split_zhou_SUN397.json",
        folder="SUN397",
        noun="scene",
        clip="a photo of a {class}.",
        classes=397,
        counts=(15880, 3970, 19850),
        invariances=("hflip", "colour"),
        home="https://vision.princeton.edu/projects/2010/SUN",
        words=_qualified,
    ),
    "food101": Preset(
        split="split_zhou_Food101.json",
        folder="images",
        noun="food",
        clip="a photo of {class}, a type of food.",
        classes=101,
        counts=(50500, 20200, 30300),
        invariances=("hflip",),
        home="https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101",
    ),
    "flowers102": Preset(
        split="split_zhou_OxfordFlowers.json",
        folder="jpg",
        noun="flower",
        clip="a photo of a {class}, a type of flower.",
        classes=102,
        counts=(4093, 1633, 2463),
        # Species differ in colour.
        invariances=("hflip",),
        home="https://www.robots.ox.ac.uk/~vgg/data/flowers/102",
    ),
    "imagenet": Preset(
        split="classnames.txt",
        folder="images",
        noun="",
        clip="a photo of a {class}.",
        classes=1000,
        counts=(1281167, 0, 50000),
        # Birds and dogs differ in colour.
        invariances=("hflip",),
        home="https://image-net.org",
    ),
    "tiny_imagenet": Preset(
        split="wnids.txt",
        folder=".",
        noun="",
        clip="a photo of a {class}.",
        classes=200,
        counts=(100_000, 0, 10_000),
        invariances=("hflip",),
        home="https://cs231n.stanford.edu/tiny-imagenet-200.zip",
    ),
    "imagenet100": Preset(
        split="Labels.json",
        folder=".",
        noun="",
        clip="a photo of a {class}.",
        classes=100,
        # Some have all of a class, others 1,300 of each; and which hundred classes differs.
        counts=(None, 0, 5000),
        invariances=("hflip",),
        home="https://www.kaggle.com/datasets/ambityga/imagenet100",
    ),
}

# The folders of images in CoOp's layout, which a split file of one's own may use as well.
FOLDERS: Final = (
    *dict.fromkeys(preset.folder for preset in PRESETS.values() if preset.folder not in ("images", ".")),
    "UCF-101-midframes",
)

# In CLIP's list, two pairs of ImageNet's classes share a name; these are the names of the second in each pair.
_SECOND: Final = {"n04008634": "projectile missile", "n04356056": "dark sunglasses"}


def read(name: str, root: Path, decoding: Decoding) -> Source:
    """Read the published split of ``PRESETS[name]`` from the files in ``root``.

    Raises:
        InputError: the folder, a list or images are missing, or a test image cannot be used.
    """
    preset = PRESETS[name]
    if not root.is_dir():
        raise InputError(
            f"prepare.source: {root} is no folder; lay out {name} ({preset.home}) as docs/datasets.md says."
        )
    readers = {"fgvc_aircraft": _aircraft, "imagenet": _imagenet}
    by_id = {"tiny_imagenet": wordnet.tiny_imagenet, "imagenet100": wordnet.imagenet100}
    if name in by_id:
        folder, listing = by_id[name](name, root, preset.home)
    else:
        folder, listing = readers.get(name, _coop)(name, root)
    counts = tuple(len(listing.parts[part]) for part in coop.PARTS)
    published = tuple(there if count is None else count for count, there in zip(preset.counts, counts, strict=True))
    if (len(listing.classes), counts) != (preset.classes, published):
        raise InputError(
            f"{root}: {name} has {len(listing.classes)} classes and {_and(counts)} images to train, select and test, "
            f"but {preset.classes} and {_and(published)} were published; get what is missing from {preset.home}, "
            "or read your own subset with coop:FILE."
        )
    listed = [path for part in coop.PARTS for path, _ in listing.parts[part]]
    missing = [path for path in listed if not os.path.lexists(folder / path)]
    if missing:
        raise InputError(
            f"{folder}: {len(missing)} of the {len(listed)} images of {name} are missing (first: {missing[0]}); unpack "
            f"the images of {preset.home} there."
        )
    rejected: list[Rejected] = []
    test = read_files(coop.rows(folder, listing.parts["test"]), decoding, rejected, "reading test")
    if rejected:
        raise InputError(
            f"{rejected[0][0]}: is a test image of {name} and cannot be used ({rejected[0][1]}); unpack it again, "
            "since results on part of the test images cannot be compared with others."
        )
    train, selection = (
        read_files(coop.rows(folder, listing.parts[part]), decoding, rejected, f"reading {part}")
        for part in ("train", "val")
    )
    names = tuple(map(preset.words, listing.classes))
    return Source(
        classes=listing.classes,
        template=f"a {preset.noun} photo of a {{class}}".replace("  ", " "),
        invariances=preset.invariances,
        train=train,
        selection=selection if listing.parts["val"] else None,
        test=test,
        rejected=rejected,
        names=None if names == tuple(map(spoken, listing.classes)) else names,
        clip_templates=(preset.clip,),
        published=True,
    )


def _coop(name: str, root: Path) -> tuple[Path, Listing]:
    preset = PRESETS[name]
    file = root / preset.split
    if not file.is_file():
        raise InputError(
            f"{file}: is missing; get it from the link in CoOp's DATASETS.md (github.com/KaiyangZhou/CoOp) and put "
            "it there."
        )
    listing = coop.parse(coop.load(file), file)
    return coop.image_root(root, listing, (preset.folder, "images", ".")), listing


def _aircraft(name: str, root: Path) -> tuple[Path, Listing]:
    """Read the official lists of FGVC-Aircraft: a line names an image and its variant."""
    folder = next((root / inner for inner in ("data", "fgvc-aircraft-2013b/data") if (root / inner).is_dir()), root)
    classes = tuple(_lines(folder / "variants.txt", name))
    labels = {variant: label for label, variant in enumerate(classes)}
    parts: dict[str, list[tuple[str, int]]] = {}
    for part in coop.PARTS:
        file = folder / f"images_variant_{part}.txt"
        parts[part] = []
        for number, line in enumerate(_lines(file, name), 1):
            image, _, variant = line.partition(" ")
            if variant not in labels:
                raise InputError(f"{file}, line {number}: {variant!r} is not in variants.txt; get the lists again.")
            parts[part].append((f"{inside(image, f'{file}, line {number}')}.jpg", labels[variant]))
    return folder / "images", Listing(classes, parts)


def _imagenet(name: str, root: Path) -> tuple[Path, Listing]:
    """Read ImageNet's folders, named by WordNet ids; as in CoOp, its validation images are the test images."""
    folder = root / "images" if (root / "images").is_dir() else root
    names: dict[str, str] = {}
    for number, line in enumerate(_lines(root / "classnames.txt", name), 1):
        wnid, _, words = line.partition(" ")
        if not words:
            raise InputError(f"{root / 'classnames.txt'}, line {number}: expected a WordNet id and a name; correct it.")
        names[wnid] = _SECOND[wnid] if words in names.values() and wnid in _SECOND else words
    parts: dict[str, list[tuple[str, int]]] = {"val": []}
    for part, inner in (("train", "train"), ("test", "val")):
        present = folders(folder / inner)
        missing = [wnid for wnid in names if wnid not in set(present)]
        if missing:
            raise InputError(
                f"{folder / inner}: holds no folder {missing[0]} and {len(missing) - 1} others of classnames.txt; sort "
                "the images into folders of their WordNet ids."
            )
        parts[part] = [
            (f"{inner}/{wnid}/{file}", label)
            for label, wnid in enumerate(names)
            for file in files(folder / inner / wnid)
        ]
    return folder, Listing(tuple(names.values()), parts)


def _lines(file: Path, name: str) -> list[str]:
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        home = PRESETS[name].home
        raise InputError(f"{file}: cannot be read ({error.strerror}); get it with {name} ({home}).") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: is not UTF-8 text; get it again.") from error


def _and(counts: tuple[int, ...]) -> str:
    return "{} + {} + {}".format(*counts)
