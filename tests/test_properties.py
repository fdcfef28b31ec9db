"""What holds of splits and of class folders whatever the source: tried on many that are made up."""

import dataclasses
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

import toy
from dreamset import prepare, sources
from dreamset.core.errors import InputError
from dreamset.core.files import class_folder
from dreamset.core.images import THUMBNAIL
from dreamset.metrics import overlap

SMALL = settings(max_examples=60, deadline=None)
PARAMS = toy.params()


@SMALL
@given(st.lists(st.text(max_size=300), min_size=1, max_size=20), st.integers(1, 3000))
def test_class_folders_never_leave_the_root_and_never_collide(names: list[str], classes: int) -> None:
    classes = max(classes, len(names))
    slugs = [class_folder(label, name, classes) for label, name in enumerate(names)]
    for slug in slugs:
        assert slug == Path(slug).name and slug.isascii() and slug.strip(". ") == slug and len(slug) < 60
    assert len({slug.lower() for slug in slugs}) == len(names)
    assert sorted(slugs) == slugs


def made(label: int, row: int, group: str | None = None, picture: int | None = None) -> sources.Image:
    name = f"{label}_{row}"
    digest = f"{label} {row if picture is None else picture}"
    return sources.Image(name, label, group or name, digest, thumbnail=bytes(THUMBNAIL**2))


def source(images: list[sources.Image], classes: int) -> sources.Source:
    return sources.Source(tuple(f"c{i}" for i in range(classes)), "a {class}", (), images, None, None)


@SMALL
@given(st.integers(2, 5), st.integers(10, 40), st.integers(0, 2**31 - 1), st.integers(0, 4))
def test_shots_are_nested_and_parts_disjoint(classes: int, count: int, seed: int, selected: int) -> None:
    whole = source([made(label, row) for label in range(classes) for row in range(count)], classes)
    most = count - round(0.3 * count) - selected
    previous: list[list[str]] = [[] for _ in range(classes)]
    tests = set()
    given = dataclasses.replace(PARAMS, seed=seed, selection=f"extra:{selected}" if selected else "fixed")
    for shots in range(1, most + 1):
        mine = dataclasses.replace(given, shots=shots)
        train, selection, test = prepare.draw(whole, mine)
        overlap.check_overlap({"train": train, "selection": selection, "test": test})
        assert len(train) == classes * shots and len(selection) == classes * selected
        for label in range(classes):
            names = [image.name for image in train if image.label == label]
            assert names[:-1] == previous[label]
            previous[label] = names
        tests.add(tuple(image.name for image in test))
    assert len(tests) == 1


@SMALL
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9), st.integers(0, 20)), min_size=6, max_size=60), st.data()
)
def test_groups_and_copies_never_cross_parts(rows: list[tuple[int, int, int]], data: st.DataObject) -> None:
    images = [made(label, row, f"group {group}", picture) for row, (label, group, picture) in enumerate(rows)]
    mine = dataclasses.replace(
        PARAMS,
        shots=data.draw(st.integers(1, 3)),
        selection=data.draw(st.sampled_from(["fixed", "extra:1", "extra:2"])),
        prepare=dataclasses.replace(PARAMS.prepare, test_share=data.draw(st.floats(0.05, 0.9))),
    )
    try:
        train, selection, test = prepare.draw(source(images, 3), mine)
    except InputError as error:
        assert "usable images to learn from" in str(error)
        return
    overlap.check_overlap({"train": train, "selection": selection, "test": test})
    assert test
