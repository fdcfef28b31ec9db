"""What to expect: numbers from the shots and a few pictures, and sentences that follow from them."""

import dataclasses
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import toy
from dreamset import expect
from dreamset.core.errors import InputError, StoppedError
from dreamset.core.files import write_csv, write_json
from dreamset.core.workspace import Workspace
from dreamset.data.splits import Sample, Split, write_split
from dreamset.metrics import expectation, resemblance
from dreamset.params import Params

ROOT = Path(__file__).parents[1]
NAMES = {
    "sd": "stable_diffusion",
    "tuned": "stable_diffusion_tuned",
    "found": "retrieved",
    "dset": "datadream_dset",
    "cls": "datadream_cls",
    "light": "datadream_light",
}
COLUMNS = ("shots", "classifier", "of", "minus", "seeds", "difference", "low", "high", "p_adjusted")


def found(**changes: Any) -> dict[str, Any]:
    """Numbers of a base that knows the classes, changed."""
    numbers: dict[str, Any] = {
        "model": "bundled",
        "source": "digits",
        "shots": [4, 4],
        "classes": 10,
        "spelled": [],
        "zero_shot": {"right": 30, "of": 40, "share": 0.75, "low": 0.6, "high": 0.86, "chance": 0.1},
        "read_as_prompted": {"right": 80, "of": 80, "share": 1.0, "low": 0.95, "high": 1.0, "chance": 0.1},
        "look": {"kid": 0.13, "kid_exchanged": -0.11, "p": 0.002, "near": 0.98},
        "table": None,
        "change": None,
        "reach": {"images": 640, "smallest_gain": 0.0094, "detectable_gain": 0.052},
        "drawing_s": 25.0,
    }
    return numbers | changes


def write_table(workspace: Workspace, *rows: tuple[int, str, str, float, float], **changes: Any) -> None:
    """A table over seeds of (shots, of, minus, difference, lower end), whose tests show what its intervals do."""
    claims = [
        dict(zip(COLUMNS, (shots, "resnet20", of, minus, 6, difference, low, difference + 0.01, 0.04), strict=True))
        | changes
        for shots, of, minus, difference, low in rows
    ]
    write_csv(workspace.results / "table/claims.csv", claims, COLUMNS)
    # As `table` writes it, under the short names of these tests.
    setting = toy.params().setting(NAMES.values())
    recipes = {name: setting["recipes"][recipe] for name, recipe in NAMES.items()}
    write_json(workspace.results / "table/setting.json", setting | {"recipes": recipes})


def test_wilsons_interval() -> None:
    # Wilson (1927), as tabled by Newcombe (1998), method 3: 15 of 148.
    known = expect.share(15, 148, 0.95)
    assert (known["low"], known["high"]) == pytest.approx((0.0624, 0.1605), abs=2e-4)
    assert expect.share(0, 20, 0.95)["low"] == 0
    assert expect.share(20, 20, 0.95)["high"] == 1


def test_look_finds_no_difference_where_there_is_none() -> None:
    """The permutation test errs about as often as it says, with very few images of a class too."""
    rng, labels = np.random.default_rng(0), np.repeat(np.arange(6), 2)
    drawn, centres = np.repeat(np.arange(6), 5), rng.normal(size=(6, 8)) * 2
    p = [
        resemblance.look(
            (centres[labels] + rng.normal(size=(12, 8))).astype(np.float32),
            labels,
            (centres[drawn] + rng.normal(size=(30, 8))).astype(np.float32),
            drawn,
        )["p"]
        for _ in range(60)
    ]
    # Binomial: more than 9 of 60 at 5 % each comes once in 2,000 times.
    assert sum(value < 0.05 for value in p) <= 9
    assert 0.3 < np.mean(p) < 0.7


def test_look_finds_a_difference_even_of_one_shot_a_class() -> None:
    rng, labels, drawn = np.random.default_rng(0), np.arange(10), np.repeat(np.arange(10), 8)
    centres = rng.normal(size=(10, 8)) * 2
    shots = (centres[labels] + rng.normal(size=(10, 8))).astype(np.float32)
    pictures = (centres[drawn] + rng.normal(size=(80, 8)) + 3).astype(np.float32)
    seen = resemblance.look(shots, labels, pictures, drawn)
    assert seen["p"] < 0.01 and seen["kid"] > seen["kid_exchanged"]
    near = resemblance.look(shots, labels, centres[drawn].astype(np.float32), drawn)["near"]
    far = resemblance.look(shots, labels, pictures + 50, drawn)["near"]
    assert (near, far) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("name", "is_spelled"),
    [("three", False), ("capital", False), ("7", False), ("737-200", False), ("dolphin", True), ("sea_horse", True)],
)
def test_words_that_the_base_was_never_taught(workspace: Workspace, name: str, is_spelled: bool) -> None:
    split = dataclasses.replace(toy.write_splits(workspace), classes=("one", name))
    assert expect.spelled(split, Workspace(ROOT, workspace.cell), toy.params()) == ([name] if is_spelled else [])


def test_clips_own_vocabulary_spells_no_common_word(monkeypatch: pytest.MonkeyPatch, workspace: Workspace) -> None:
    """Stable Diffusion's tokenizer is that of CLIP: photographs' names must not be taken for unknown words."""
    import transformers
    from open_clip.tokenizer import SimpleTokenizer

    clip = SimpleTokenizer()

    class Stock:
        @classmethod
        def from_pretrained(cls, _: Path) -> "Stock":
            return cls()

        def tokenize(self, text: str) -> list[int]:
            return list(clip.encode(text))

    monkeypatch.setattr(transformers, "CLIPTokenizer", Stock)
    names = ("dolphin", "sea_horse", "gerenuk", "hawksbill", "okapi", "cougar_body", "Boeing 737-200", "Samoyed", "猫")
    split = dataclasses.replace(toy.write_splits(workspace), classes=(*names, "ねこねこ"))
    assert expect.spelled(split, Workspace(ROOT, workspace.cell), toy.params()) == ["ねこねこ"]


@pytest.mark.parametrize(
    ("changes", "word", "sentence"),
    [
        ({"spelled": list("abcdef")}, "no help", "This base cannot know these classes: 6 of 10 names, such as 'a'"),
        ({"spelled": list("abcde")}, "adapt", "The base knows these classes"),
        (
            {"zero_shot": {"of": 40, "share": 0.2, "low": 0.1, "high": 0.35, "chance": 0.1}},
            "unlikely",
            "Nothing shows that the CLIP beside this base knows these classes (zero-shot accuracy 20 % on 40 shots, "
            "interval 10 to 35, chance 10 %). Expect little or no help",
        ),
        (
            {"read_as_prompted": {"of": 80, "share": 0.12, "low": 0.07, "high": 0.21, "chance": 0.1}},
            "unlikely",
            "but this base does not draw them: only 12 %",
        ),
        ({}, "adapt", "Its pictures do not quite have the look of the shots (KID 0.13, -0.11 where"),
        ({"look": found()["look"] | {"near": 0.1}}, "adapt", "Its pictures are far from the look of the shots"),
        ({"look": found()["look"] | {"p": 0.4}}, "base", "Its pictures do not measurably differ from the shots"),
        ({}, "adapt", "there is no table over seeds"),
    ],
)
def test_the_sentences_follow_from_the_numbers(changes: dict[str, Any], word: str, sentence: str) -> None:
    judged, sentences = expectation.judgement(found(**changes))
    assert judged == word
    assert sentence in " ".join(sentences)


def test_a_look_by_clip_in_place_of_the_judge_is_called_so() -> None:
    seen = found()["look"]
    for p in (0.002, 0.5):
        _, sentences = expectation.judgement(found(look=seen | {"p": p, "stand_in": "scored by CLIP's image features"}))
        assert any("; scored by CLIP's image features)" in sentence for sentence in sentences)


def test_what_was_measured_stands_with_where(workspace: Workspace) -> None:
    assert expect.measured(workspace, 4) is None
    write_table(
        workspace,
        (4, "dset/synthetic/resnet20", "sd/synthetic/resnet20", 0.17, 0.1),
        (4, "cls/synthetic/resnet20", "sd/synthetic/resnet20", 0.21, 0.1),
        # No lift of adaptation: between two adapted recipes, of a study, and of images that were found.
        (4, "light/synthetic/resnet20", "dset/synthetic/resnet20", -0.07, -0.1),
        (4, "tuned/synthetic/resnet20", "sd/synthetic/resnet20", 0.01, -0.1),
        (4, "dset/synthetic/resnet20", "found/synthetic/resnet20", 0.4, 0.3),
        (4, "sd/both/resnet20", "real/real/resnet20", 0.035, 0.018),
        (4, "dset/both/resnet20", "real/real/resnet20", 0.02, -0.01),
        (4, "dset/both/resnet20", "sd/both/resnet20", 0.5, 0.4),
        (16, "dset/synthetic/resnet20", "sd/synthetic/resnet20", 0.24, 0.2),
        (16, "sd/both/resnet20", "real/real/resnet20", 0.0, -0.01),
    )
    few = expect.measured(workspace, 5)
    assert few and (few["shots"], few["lift"], few["added"]) == (4, [0.17, 0.21], 2)
    assert [gain["of"] for gain in few["gains"]] == ["sd/both/resnet20"]
    many = expect.measured(workspace, 100)
    assert many and (many["shots"], many["lift"], many["gains"]) == (16, [0.24, 0.24], [])

    text = " ".join(expectation.judgement(found(table=few))[1])
    assert "is likely to raise the accuracy on synthetic images alone: by +17 to +21 points" in text
    assert "(digits, base bundled, 4 per class, 6 seeds)" in text
    assert "expect some gain on top of the real ones: there 1 of 2 additions" in text
    text = " ".join(expectation.judgement(found(table=many, shots=[12, 16], source="imagefolder:x"))[1])
    assert "may raise" in text and "which are other images or another base than yours" in text
    assert "With 12 to 16 labelled images per class expect little on top of the real ones: there 0 of 1" in text
    # Where nothing has to be adapted, nothing is said about adapting.
    text = " ".join(expectation.judgement(found(table=few, look=found()["look"] | {"p": 0.9}))[1])
    assert "lift" not in text and "in the table over seeds" in text


def test_an_addition_counts_once_and_retrieved_images_not_at_all(workspace: Workspace) -> None:
    write_table(
        workspace,
        (4, "found/synthetic/resnet20", "sd/synthetic/resnet20", 0.9, 0.8),
        (4, "sd/synthetic/resnet20", "found/synthetic/resnet20", -0.9, -0.95),
        (4, "found/both/resnet20", "real/real/resnet20", 0.5, 0.4),
        (4, "sd/both/resnet20", "real/real/resnet20", 0.1, 0.05),
        (4, "sd/both/resnet20", "real/real_strong/resnet20", 0.02, -0.01),
        (4, "sd/both/resnet20", "real/real_more/resnet20", 0.04, 0.01),
        (4, "sd/both/resnet20", "real/real/linear_probe", -0.3, -0.4),
        (4, "dset/both/resnet20", "real/real/resnet20", 0.2, 0.15),
        (4, "dset/both/resnet20", "real/real_strong/resnet20", 0.3, 0.25),
        (4, "dset/both_strong/resnet20", "real/real_strong/resnet20", 0.1, 0.05),
    )
    table = expect.measured(workspace, 4)
    assert table and (table["lift"], table["added"]) == (None, 2)
    # The best real-only run is what an addition has to beat: the strongly augmented one here, by one augmented alike.
    assert table["gains"] == [{"of": "dset/both_strong/resnet20", "difference": 0.1, "low": 0.05}]
    write_table(workspace, (4, "sd/both/resnet20", "real/real/resnet20", 0.1, 0.05), p_adjusted=0.06)
    alone = expect.measured(workspace, 4)
    assert alone and (alone["added"], alone["gains"]) == (1, [])
    write_table(workspace, (4, "found/both/resnet20", "real/real/resnet20", 0.5, 0.4))
    assert expect.measured(workspace, 4) is None


def test_shots_are_capped_within_each_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dreamset.metrics.features import Judge

    params, workspace, split = project(tmp_path)
    # Four of the first class and of the last, and three of the second.
    write_split(workspace.splits, dataclasses.replace(split, train=(*split.train[:7], *split.train[8:])))
    monkeypatch.setattr(expect, "_MOST_SHOTS", 3)
    seen: list[int] = []
    whole = Judge.features

    def counted(self: Judge, images: np.ndarray) -> np.ndarray:
        seen.append(len(images))
        return whole(self, images)

    monkeypatch.setattr(Judge, "features", counted)
    labels: list[list[int]] = []
    look = expect.look
    monkeypatch.setattr(expect, "look", lambda *given: labels.append(given[1].tolist()) or look(*given))
    expect.run(params, workspace)
    assert labels == [[0] * 3 + [1] * 3 + [2] * 3]
    assert seen == [9, 6]


def test_a_licence_that_is_not_accepted_draws_nothing(tmp_path: Path) -> None:
    params, workspace, _ = project(tmp_path, models__bundled__licence="sai-nc-community")
    with pytest.raises(InputError, match="allows no commercial use"):
        expect.run(params, workspace)
    assert not workspace.shards.exists()


def test_pictures_beside_grey_shots_are_grey(tmp_path: Path) -> None:
    params, workspace, split = project(tmp_path)
    pictures = expect._Pictures(params, workspace, dataclasses.replace(split, channels=1), [0, 1, 2]).read(16).images
    assert (pictures == pictures[..., :1]).all()


@pytest.mark.parametrize(("here", "model", "key"), [(1, 20, "expect.steps"), (4, 1, "models.bundled.generate.steps")])
def test_steps_that_leave_no_noise_are_named_by_their_key(tmp_path: Path, here: int, model: int, key: str) -> None:
    params, workspace, split = project(
        tmp_path,
        models__bundled__generate__scheduler="ddim",
        models__bundled__generate__steps=model,
    )
    params = dataclasses.replace(params, expect=dataclasses.replace(params.expect, steps=here))
    with pytest.raises(InputError, match=rf"^{key}: ddim with steps: 1 begins at timestep 1 .* raise steps"):
        expect._Pictures(params, workspace, split, [0])


def test_the_committed_table_is_read() -> None:
    table = expect.measured(Workspace.at(ROOT), 4)
    assert table and table["lift"] and table["added"]


def project(tmp_path: Path, **changes: Any) -> tuple[Params, Workspace, Split]:
    """A toy world of three classes beside the bundled base, of which pictures are drawn in two steps."""
    params = toy.params(expect__per_class=2, expect__steps=2, **changes)
    workspace = Workspace(tmp_path, tmp_path)
    (tmp_path / "models").symlink_to(ROOT / "models")
    write_json(workspace.result("prepare"), {"test": 24})
    return params, workspace, toy.write_splits(workspace)


def test_pictures_of_something_else_are_expected_not_to_help(tmp_path: Path) -> None:
    """The whole stage with the bundled base on bars, planks and spots: words that it was never taught."""
    params, workspace, _ = project(tmp_path)
    summary = expect.run(params, workspace)
    assert json.loads(workspace.result("expect").read_text()) == summary
    assert summary["expectation"] == "no help"
    assert set(summary["spelled"]) >= {"plank", "spot"}
    assert (summary["zero_shot"]["of"], summary["read_as_prompted"]["of"]) == (12, 6)
    assert summary["look"]["p"] < 0.05
    # Again, nothing is drawn: the pictures are kept as shards.
    made = {path.name for path in workspace.shards.iterdir()}
    assert expect.run(params, workspace) == summary
    assert {path.name for path in workspace.shards.iterdir()} == made


def test_of_many_classes_a_few_are_drawn(tmp_path: Path) -> None:
    params, workspace, split = project(tmp_path, expect__classes=2)
    write_split(workspace.splits, dataclasses.replace(split, names=("digit one", "digit two", "digit three")))
    summary = expect.run(params, workspace)
    assert (summary["classes"], summary["classes_drawn"]) == (3, 2)
    assert (summary["zero_shot"]["of"], summary["read_as_prompted"]["of"]) == (8, 4)
    # The captions of all three classes compete, and the pictures keep the labels of theirs.
    assert summary["zero_shot"]["chance"] == pytest.approx(1 / 3)
    assert summary["spelled"] == []
    assert summary["read_as_prompted"]["right"] == 4


def test_digits_are_expected_to_gain_from_adapting(raw: dict[str, Any], tmp_path: Path) -> None:
    from dreamset import prepare

    raw["expect"] |= {"per_class": 2, "steps": 4}
    params, workspace = toy.parse(raw), Workspace(tmp_path, tmp_path)
    (tmp_path / "models").symlink_to(ROOT / "models")
    prepare.run(params, workspace)
    summary = expect.run(params, workspace)
    assert summary["expectation"] == "adapt"
    assert summary["zero_shot"]["share"] > 0.5 and summary["read_as_prompted"]["share"] > 0.8
    assert summary["sentences"][0].startswith("The base knows these classes (zero-shot accuracy ")


def test_prepare_and_the_command_line_stay_light() -> None:
    code = "import sys, dreamset.command.cli, dreamset.prepare, dreamset.expect; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_no_more_than_six_sentences_each_with_what_can_be_done() -> None:
    table = {
        "source": "digits",
        "model": "bundled",
        "shots": 4,
        "seeds": 5,
        "lift": [0.1, 0.2],
        "added": 1,
        "gains": [],
    }
    change = {"prepare": {"invert": True, "crop": "object"}, "before": 4, "after": 71, "of": 80, "tries": 7}
    nothing = {"of": 40, "share": 0.05, "low": 0.01, "high": 0.2, "chance": 0.1}
    for changes in ({}, {"spelled": list("abcdef")}, {"zero_shot": nothing}, {"read_as_prompted": nothing}):
        word, sentences = expectation.judgement(found(table=table, change=change, **changes))
        assert len(sentences) <= 6
        text = " ".join(sentences)
        assert (
            "Inverted and cut to the object, 89 % of 80 shots are named rightly, and 5 % as they are (best of 7 tries, "
            "which the test of the difference allows for): `dreamset set prepare.invert=true prepare.crop=object`."
        ) in text
        assert "640 scored images can show no gain below 0.9 points, and find one of 5.2 four times in five" in text
        assert "drawing a recipe's images takes about 25 seconds on this machine" in text
        assert ("What may help instead: a base that knows such pictures" in text) == (word in ("no help", "unlikely"))
    text = " ".join(expectation.judgement(found(change=change | {"prepare": {"invert": False}}, drawing_s=9000.0))[1])
    assert "Not inverted, 89 %" in text and "`dreamset set prepare.invert=false`" in text and "about 2 hours" in text
    none = {"images": 3, "smallest_gain": None, "detectable_gain": None}
    assert "3 scored images can show no gain at all" in expectation.judgement(found(reach=none))[1][-1]


def letters(tmp_path: Path, ink: int, ground: int, changes: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """The change that four printed letters of each of ten classes call for, by the bundled CLIP.

    They are small and anywhere on their pages, or large where prepare is said to have cut them out.
    """
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    tmp_path.mkdir()
    params, workspace, _ = project(tmp_path)
    fonts = [Path(matplotlib.get_data_path()) / f"fonts/ttf/DejaVu{name}.ttf" for name in FONTS]
    names, samples = tuple("abdeghnrtu"), []
    for label, name in enumerate(names):
        for i, font in enumerate(fonts):
            image = Image.new("L", (96, 96), ground)
            where, size = ((48, 48), 96) if changes else ((35 + 5 * i, 55 - 5 * i), 48)
            ImageDraw.Draw(image).text(where, name, ink, ImageFont.truetype(str(font), size), anchor="mm")
            path = tmp_path / f"real/{name}_{i}.png"
            path.parent.mkdir(exist_ok=True)
            image.save(path)
            samples.append(Sample(f"real/{path.name}", label, f"{name}{i}", path.name))
    split = Split("x", names, "a photo of the letter small {class}", (), 4, 0, tuple(samples), (), changes=changes)
    return expect._change(params, workspace, split, expect._zero_shot(params, workspace, split), samples)


FONTS = ("Sans", "Serif", "Sans-Bold", "SansMono")


def test_a_change_that_clearly_helps_is_named(tmp_path: Path) -> None:
    change = letters(tmp_path / "0", ink=0, ground=255)
    assert change is not None and change["prepare"]["invert"] is True
    assert (change["of"], change["tries"]) == (40, 7)
    assert change["after"] >= change["before"] + 20
    # What prepare has done is not tried again, but an inversion can be taken back.
    undone = letters(
        tmp_path / "1", ink=0, ground=255, changes={"invert": True, "crop": "object", "autocontrast": True}
    )
    assert undone is not None and undone["tries"] == 1 and undone["prepare"] == {"invert": False}


def test_of_many_tries_the_luckiest_is_no_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bright letters on black are not inverted; and what is no better than luck is not named."""
    change = letters(tmp_path / "2", ink=255, ground=0)
    assert change is not None and change["prepare"] == {"crop": "object"}
    rng = np.random.default_rng(0)
    lucky = np.zeros(40)

    class Luck:
        size = 16

        def logits(self, images: np.ndarray) -> np.ndarray:
            right = rng.permutation(40) < 10 if lucky.any() else np.zeros(40, bool)
            lucky[:] = 1
            return np.eye(10)[np.where(right, np.repeat(np.arange(10), 4), (np.repeat(np.arange(10), 4) + 1) % 10)]

    monkeypatch.setattr(expect, "_zero_shot", lambda *_: Luck())
    clear = letters(tmp_path / "3", ink=255, ground=0)
    assert clear is not None and (clear["before"], clear["after"]) == (0, 10)
    assert len(clear["prepare"]) == 1  # equal ones: the fewest changes
    monkeypatch.setattr(expect, "LEVEL", 7 * 2 * 0.5**10)  # ten to nil is no longer below it
    lucky[:] = 0
    assert letters(tmp_path / "4", ink=255, ground=0) is None


@pytest.mark.parametrize(
    ("how", "terminal", "answer", "goes"),
    [
        ("go", False, "", True),
        ("stop", True, "y", False),
        ("ask", False, "y", False),
        ("ask", True, "y", True),
        ("ask", True, "", False),
    ],
)
def test_where_nothing_is_to_be_hoped_for_a_person_decides(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    how: str,
    terminal: bool,
    answer: str,
    goes: bool,
) -> None:
    params, workspace, _ = project(tmp_path, expect__on_no_help=how)
    monkeypatch.setattr(expect, "judgement", lambda _: ("unlikely", ["Expect little."]))
    workspace.go.write_text("go\n")  # of an earlier run
    record = expect.run(params, workspace)
    assert json.loads(workspace.result("expect").read_text())["sentences"] == ["Expect little."]
    assert ("warnings" in record) == (how == "go")
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{answer}\n"))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: terminal)
    if goes:
        expect.decide(params, workspace)
    else:
        with pytest.raises(StoppedError, match=r"set expect\.on_no_help=go.*results/expect\.json has the sentences"):
            expect.decide(params, workspace)
    assert workspace.go.exists() == goes
    assert ("Go on all the same?" in capsys.readouterr().err) == (how == "ask" and terminal)
    if goes:
        assert workspace.go.read_text() == "go\n"


def test_where_there_is_hope_nobody_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params, workspace, _ = project(tmp_path, expect__on_no_help="stop")
    monkeypatch.setattr(expect, "judgement", lambda _: ("adapt", ["Good."]))
    expect.run(params, workspace)
    expect.decide(params, workspace)
    assert workspace.go.read_text() == "go\n"
