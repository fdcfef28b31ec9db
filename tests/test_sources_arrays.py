"""Sources that are arrays in one file: CIFAR and MedMNIST."""

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dreamset.core.errors import InputError
from dreamset.sources import arrays
from sourced import names, read, run


def write_cifar(root: Path, monkeypatch: pytest.MonkeyPatch, per_class: int = 10) -> None:
    """Files in CIFAR-10's format, whose checksums torchvision is told."""
    from torchvision.datasets import CIFAR10

    folder = root / CIFAR10.base_folder
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)

    def write(name: str, content: dict[str, Any]) -> str:
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    def batch(name: str) -> list[str]:
        labels = [label for label in range(10) for _ in range(per_class)]
        return [name, write(name, {"data": rng.integers(0, 255, (len(labels), 3072), np.uint8), "labels": labels})]

    monkeypatch.setattr(CIFAR10, "train_list", [batch(f"data_batch_{i}") for i in range(1, 6)])
    monkeypatch.setattr(CIFAR10, "test_list", [batch("test_batch")])
    kinds = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    md5 = write("batches.meta", {"label_names": kinds})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": md5})


def test_cifar10_writes_only_what_is_drawn(
    raw: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cifar(tmp_path, monkeypatch)
    split, test = run(raw, tmp_path / "w", f"cifar10:{tmp_path}", shots=3, selection="extra:2")
    assert split.prompt(9) == "a photo of a truck"
    assert (len(split.train), len(split.selection), len(test.test)) == (30, 20, 100)
    assert len(list((tmp_path / "w/data/real").glob("*.png"))) == 50
    entry = pickle.loads((tmp_path / "cifar-10-batches-py/test_batch").read_bytes())
    for index, sample in enumerate(test.test):
        pixels = np.asarray(Image.open(tmp_path / "w" / sample.path))
        assert sample.label == entry["labels"][index]
        assert np.array_equal(pixels, entry["data"][index].reshape(3, 32, 32).transpose(1, 2, 0))


@pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
def test_cifar_that_is_not_there_or_was_changed(
    raw: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    write_cifar(tmp_path, monkeypatch)
    (tmp_path / "cifar-10-batches-py/test_batch").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(InputError, match=r"holds no complete cifar-10.*download https://.*tar\.gz and unpack it"):
        read(raw, f"{kind}:{tmp_path}")


def test_cifar100_has_its_labels_by_name(raw: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fine labels of the file's own names, whatever coarse ones and another order of names say."""
    from torchvision.datasets import CIFAR100

    folder = tmp_path / CIFAR100.base_folder
    folder.mkdir()
    fine = ["apple", "aquarium_fish", "beaver"]
    rng = np.random.default_rng(0)

    def write(name: str, content: dict[str, Any]) -> list[str]:
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    def part(name: str) -> list[str]:
        labels = [2, 0, 1] * 4
        data = rng.integers(0, 255, (len(labels), 3072), np.uint8)
        return write(name, {"data": data, "fine_labels": labels, "coarse_labels": [0, 4, 1] * 4})

    monkeypatch.setattr(CIFAR100, "train_list", [part("train")])
    monkeypatch.setattr(CIFAR100, "test_list", [part("test")])
    names_in = {"fine_label_names": fine, "coarse_label_names": ["aquatic_mammals", "fish"]}
    md5 = write("meta", names_in)[1]
    monkeypatch.setattr(CIFAR100, "meta", {"filename": "meta", "key": "fine_label_names", "md5": md5})
    split, test = run(raw, tmp_path / "w", f"cifar100:{tmp_path}", shots=2, selection="extra:1")
    assert split.classes == tuple(fine)
    assert split.prompt(1) == "a photo of a aquarium fish"
    stored = pickle.loads((folder / "test").read_bytes())
    named = {
        row.reshape(3, 32, 32).transpose(1, 2, 0).tobytes(): fine[label]
        for row, label in zip(stored["data"], stored["fine_labels"], strict=True)
    }
    assert len(test.test) == 12
    for sample in test.test:
        with Image.open(tmp_path / "w" / sample.path) as written:
            assert named[np.asarray(written).tobytes()] == split.classes[sample.label]


def write_stl10(root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The files of stl10_binary.tar.gz with few images, whose checksums torchvision is told; the pictures by part."""
    from torchvision.datasets import STL10

    folder, pictures = root / STL10.base_folder, {}
    folder.mkdir()
    rng = np.random.default_rng(0)

    def write(name: str, data: Any) -> list[str]:
        (folder / name).write_bytes(data.tobytes())
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    def part(name: str, labels: list[int]) -> list[list[str]]:
        pictures[name] = rng.integers(0, 255, (len(labels), 96, 96, 3), np.uint8)
        # Channels first, and each of them column by column.
        columns = pictures[name].transpose(0, 3, 2, 1)
        return [write(f"{name}_X.bin", columns), write(f"{name}_y.bin", np.array(labels, np.uint8))]

    unlabeled = write("unlabeled_X.bin", rng.integers(0, 255, (1, 3, 96, 96), np.uint8))
    monkeypatch.setattr(STL10, "train_list", [*part("train", [2, 1, 3] * 4), unlabeled])
    monkeypatch.setattr(STL10, "test_list", part("test", [3, 1, 2, 2]))
    (folder / "class_names.txt").write_text("airplane\nbird\ncar\n")
    (folder / "fold_indices.txt").write_text("0 1 2\n")
    return pictures


def test_stl10_is_read_from_its_binary_files(
    raw: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = write_stl10(tmp_path, monkeypatch)
    split, test = run(raw, tmp_path / "w", f"stl10:{tmp_path}", shots=2, selection="extra:1")
    assert split.classes == ("airplane", "bird", "car")
    assert split.prompt(0) == "a photo of a airplane" and split.invariances == ("hflip",)
    assert (len(split.train), len(split.selection)) == (6, 3)
    named = dict(
        zip((picture.tobytes() for picture in pictures["test"]), ("car", "airplane", "bird", "bird"), strict=True)
    )
    assert len(test.test) == 4
    for sample in test.test:
        with Image.open(tmp_path / "w" / sample.path) as written:
            assert named[np.asarray(written).tobytes()] == split.classes[sample.label]
    (tmp_path / "stl10_binary/class_names.txt").unlink()
    with pytest.raises(InputError, match=r"holds no complete stl10_binary; download http.*tar\.gz and unpack it"):
        read(raw, f"stl10:{tmp_path}")
    (tmp_path / "stl10_binary/test_y.bin").write_bytes(b"0")
    with pytest.raises(InputError, match="holds no complete stl10_binary"):
        read(raw, f"stl10:{tmp_path}")


def medmnist(path: Path, shape: tuple[int, ...] = (28, 28), classes: int = 2, **changes: Any) -> str:
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for part in ("train", "val", "test"):
        labels = np.repeat(np.arange(classes), 6)
        arrays[f"{part}_images"] = rng.integers(0, 255, (len(labels), *shape), np.uint8)
        arrays[f"{part}_labels"] = labels[:, None]
    arrays |= changes
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return f"medmnist:{path}"


@pytest.mark.parametrize(("shape", "mode"), [((28, 28), "L"), ((28, 28, 3), "RGB")])
def test_medmnist(raw: dict[str, Any], tmp_path: Path, shape: tuple[int, ...], mode: str) -> None:
    source = medmnist(tmp_path / "pneumoniamnist_64.npz", shape)
    split, test = run(raw, tmp_path / "w", source, shots=3, selection="extra:2")
    assert [split.prompt(0), split.prompt(1)] == ["a chest X-ray of a normal lung", "a chest X-ray of pneumonia"]
    assert all("val_" in name for name in names(split.selection))
    with (
        np.load(tmp_path / "pneumoniamnist_64.npz") as arrays,
        Image.open(tmp_path / "w" / test.test[3].path) as written,
    ):
        assert written.mode == mode
        assert np.array_equal(np.asarray(written), arrays["test_images"][3])


@pytest.mark.parametrize("tint", [0, 1])
def test_three_equal_channels_are_grey(tmp_path: Path, tint: int) -> None:
    pixels = np.repeat(np.random.default_rng(0).integers(0, 250, (2, 8, 8, 1), dtype=np.uint8), 3, -1)
    pixels[1, 5, 2, 2] += tint
    found = arrays._images("train", pixels, np.array([0, 1]))
    assert [image.grey for image in found] == [True, not tint]


def test_an_unknown_medmnist_numbers_its_classes(raw: dict[str, Any], tmp_path: Path) -> None:
    assert read(raw, medmnist(tmp_path / "mine.npz", classes=3)).classes == ("class 0", "class 1", "class 2")
    # A file that has more classes than the set of its name is not that set.
    source = read(raw, medmnist(tmp_path / "breastmnist.npz", classes=4))
    assert len(source.classes) == 4
    assert "captions say 'class 0'" in source.warnings[0]


@pytest.mark.parametrize("name", ["organmnist_axial", "my OrganAMNIST v2-64", "data.organamnist_224"])
def test_a_medmnist_is_known_wherever_its_name_stands(raw: dict[str, Any], tmp_path: Path, name: str) -> None:
    source = read(raw, medmnist(tmp_path / f"{name}.npz", classes=11))
    assert (source.classes[1], source.template) == ("left femur", "an axial CT scan of the {class}")
    assert not source.warnings


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"val_labels": None}, "holds no array val_labels"),
        ({"test_images": np.zeros((12, 28, 28, 28), np.uint8)}, "volumes cannot be used"),
        ({"test_images": np.zeros((12, 28, 28), np.float32)}, "test_images is float32"),
        ({"train_labels": np.zeros((12, 14), np.uint8)}, "several labels per image cannot be used"),
        ({"train_labels": np.zeros((11, 1), np.uint8)}, "expected one class per image"),
        ({"train_labels": np.full((12, 1), -1)}, "holds -1; expected classes from 0"),
        ({"train_labels": np.array([object()] * 12)}, "is not a complete file of MedMNIST"),
    ],
)
def test_a_wrong_medmnist_is_one_sentence(
    raw: dict[str, Any], tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        read(raw, medmnist(tmp_path / "x.npz", **changes))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04cut", b"\x93NUMPY", b"\x80\x04."])
def test_a_medmnist_that_is_no_archive(raw: dict[str, Any], tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(InputError, match="is not a complete file of MedMNIST"):
        read(raw, f"medmnist:{tmp_path / 'x.npz'}")
