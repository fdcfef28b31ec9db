"""Ways of asking: templates, negative prompts, sentences, attributes, context."""

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import toy
from asked import GROUPS, SENTENCES, described, found_from_anywhere, made, with_row, work_of  # noqa: F401  a fixture
from dreamset import adapt, generate
from dreamset.command import plan as planning
from dreamset.core import code
from dreamset.core.errors import InputError
from dreamset.core.workspace import Workspace
from dreamset.data import asking, cards, tuned
from dreamset.data.asking import Told
from dreamset.data.splits import Split
from dreamset.data.synthetic import SyntheticImage
from dreamset.data.work import Work
from dreamset.drawing.blocks import plan
from dreamset.drawing.finish import settled
from dreamset.generator import asking as telling
from dreamset.generator import attributes
from dreamset.params import Params
from dreamset.params.knob_words import prompt_words
from dreamset.sources import digits
from dreamset.study import identity, objective, space


def test_templates_take_turns(prepared: tuple[Params, Workspace], small: dict[str, Any]) -> None:
    templates = ["a picture of the {class}", "an image of {a class}", "the {class}"]
    work = work_of(small, prepared[1], templates=templates)
    prompts = [one.prompt for one in work.asked([(8, index) for index in range(9)])]
    said = {"a picture of the eight", "an image of an eight", "the eight"}
    # Each round has each of them once; a recipe with as many strengths must not always pair the same two.
    assert all(set(prompts[at : at + 3]) == said for at in (0, 3, 6))
    orders = {
        tuple(one.prompt.split()[0] for one in work.asked([(8, at + k) for k in range(3)])) for at in range(0, 60, 3)
    }
    assert len(orders) > 3
    # The number of images, the batch and the other classes have no part in it.
    assert work.asked([(8, 4)]) == [work.asked([(1, 0), (8, 4), (8, 9)])[1]]
    shots = [sample for sample in work.split.train if sample.label == 8]
    assert asking.learned(work.split, work.row, Told(), shots) == ["a picture of the eight", "an image of an eight"]
    summary, images = made(small, prepared[1], "datadream_dset", templates=templates)
    assert {image.prompt for image in images if image.label == 8} == said
    assert not [sentence for sentence in summary["warnings"] if "longer" in sentence]
    assert "3 templates take turns" in (prepared[1].synthetic("asking") / "README.md").read_text()


def test_other_turns_are_other_shards(prepared: tuple[Params, Workspace], small: dict[str, Any]) -> None:
    one = work_of(small, prepared[1], templates=["the {class}", "a {class}"])
    other = work_of(small, prepared[1], templates=["a {class}", "the {class}"])
    assert not {block.key for block in plan(one, [])} & {block.key for block in plan(other, [])}


def test_what_asks_plainly_keeps_its_images(prepared: tuple[Params, Workspace], small: dict[str, Any]) -> None:
    plain = [block.key for block in plan(work_of(small, prepared[1]), [])]
    assert plain == [block.key for block in plan(work_of(small, prepared[1], prompt="template"), [])]
    # Nothing that is drawn depends on the code that reads captions or attributes.
    drawn_by = code.modules("dreamset.drawing.draw")
    assert "dreamset.data.asking" in drawn_by
    assert not [
        name for name in drawn_by if name.startswith("dreamset.generator.") and name.endswith(("asking", "captions"))
    ]
    assert "dreamset.generator.attributes" not in drawn_by
    # Adapters learn what it says.
    assert {"dreamset.generator.asking", "dreamset.generator.captions"} <= code.modules("dreamset.adapt").keys()


def test_a_negative_prompt_takes_the_place_of_the_empty_one(
    prepared: tuple[Params, Workspace], small: dict[str, Any]
) -> None:
    _, plain = made(small, prepared[1])
    _, images = made(small, prepared[1], negative="blurry")
    assert {image.avoid for image in images} == {"blurry"}
    assert not {image.sha256 for image in images} & {image.sha256 for image in plain}
    assert [image.seed for image in images] == [image.seed for image in plain]
    card = (prepared[1].synthetic("asking") / "README.md").read_text()
    assert 'Negative prompt: "blurry".' in card
    assert "name: avoid" in card
    # The adapter is that of the row without it; with guide: base the base is led away from it, too.
    work = work_of(small, prepared[1], "datadream_dset", negative="blurry")
    assert adapt.used_shards(work) == adapt.used_shards(work_of(small, prepared[1], "datadream_dset"))
    _, guided = made(small, prepared[1], "datadream_guided", negative="blurry")
    _, unguided = made(small, prepared[1], "datadream_guided")
    assert not {image.sha256 for image in guided} & {image.sha256 for image in unguided}


def test_sentences_take_turns(prepared: tuple[Params, Workspace], small: dict[str, Any]) -> None:
    file = described(prepared[1], SENTENCES | {"one": "a {class}, slanted", "two": ["two, thin"]})
    _, images = made(small, prepared[1], prompt="description", descriptions=file)
    by_class = {name: [image.prompt for image in images if image.class_name == name] for name in ("zero", "one", "two")}
    assert set(by_class["zero"][:2]) == {"zero, 0 bold", "zero, 0 thin"}
    assert set(by_class["one"]) == {"a one, slanted"}
    assert set(by_class["two"]) == {"two, thin"}  # which names the class itself
    card = (prepared[1].synthetic("asking") / "README.md").read_text()
    assert "Asked for by the class and a sentence on it, from data/prompts/some.yaml, in turn. That of class 0" in card
    work = work_of(small, prepared[1], "datadream_dset", prompt="description", descriptions=file)
    shots = [sample for sample in work.split.train if sample.label == 3]
    assert asking.learned(work.split, work.row, work.told, shots) == ["three, 3 bold", "three, 3 thin"]
    # Another sentence in the same file trains and draws anew.
    before = [*adapt.used_shards(work), *(block.key for block in plan(work, []))]
    described(prepared[1], SENTENCES | {"nine": "slanted"})
    work = work_of(small, prepared[1], "datadream_dset", prompt="description", descriptions=file)
    assert not {*before} & {*adapt.used_shards(work), *(block.key for block in plan(work, []) if 9 in block.labels)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ({"zero": "round"}, r"some\.yaml: misses class 'one'; recipes\.asking\.descriptions needs a sentence on each"),
        (SENTENCES | {"fiv": "x"}, r"'fiv' is no class of the source \(did you mean five\?\); remove it, or mend"),
        (SENTENCES | {"two": []}, r"class 'two' needs one or more sentences as text"),
        (SENTENCES | {"two": [3]}, r"class 'two' needs one or more sentences as text"),
        (
            SENTENCES | {"two": ["a {clas}"]},
            r"some\.yaml, class 'two': \{clas\} in 'a \{clas\}' would stand in the prompt",
        ),
        (["zero"], r"is no mapping of classes to sentences"),
    ],
)
def test_a_bad_file_of_sentences(
    prepared: tuple[Params, Workspace], small: dict[str, Any], text: Any, words: str
) -> None:
    file = described(prepared[1], text)
    with pytest.raises(InputError, match=words):
        work_of(small, prepared[1], prompt="description", descriptions=file)


@pytest.mark.parametrize(
    "knobs", [{"prompt": "description", "descriptions": ""}, {"prompt": "caption", "captions": "file:"}]
)
def test_a_missing_file_is_named_with_its_key(
    prepared: tuple[Params, Workspace], small: dict[str, Any], knobs: dict[str, str]
) -> None:
    (_, prompt), (key, begun) = knobs.items()
    with pytest.raises(
        InputError, match=rf"^recipes\.asking\.{key}: .*/none\.yaml is missing; write it, or name another"
    ):
        work_of(small, prepared[1], prompt=prompt, **{key: f"{begun}data/prompts/none.yaml"})


def test_clip_reads_the_attributes_of_glyphs() -> None:
    from dreamset.glyphs import look
    from dreamset.glyphs.render import ATTRIBUTES, Glyphs, split_pairs

    how = look.load(toy.ROOT / "models/base/params.yaml")
    _, held_out = split_pairs(how.source.held_out_fonts, how.source.seed)
    batch = Glyphs(how.look, 321, held_out).batch(0, 300)
    split = Split("glyphs", digits.CLASS_NAMES, "a photo of the digit {class}", (), 1, 0, (), ())
    reader = attributes.reader(toy.ROOT, "models/base/clip", split, GROUPS)
    pixels = ((batch.images + 1) * 127.5).round().numpy().astype(np.uint8).transpose(0, 2, 3, 1)
    likely = reader.read(np.ascontiguousarray(pixels))
    assert likely["stroke"].shape == (300, 3)
    assert np.allclose(likely["slant"].sum(1), 1, atol=1e-5)
    slanted = batch.attributes[:, ATTRIBUTES.index("slanted")]
    read = likely["slant"].argmax(1) == 1
    # Balanced accuracy, by chance a half.
    assert (read[slanted].mean() + (~read)[~slanted].mean()) / 2 > 0.6


def test_the_attributes_of_another_shot_make_a_caption(
    prepared: tuple[Params, Workspace], small: dict[str, Any]
) -> None:
    _, workspace = prepared
    _, images = made(small, workspace, prompt="caption", captions="attributes")
    assert all(image.attributes is not None and image.attributes.keys() == GROUPS.keys() for image in images)
    assert all(image.prompt == _composed(image) for image in images)
    assert len({image.prompt for image in images}) > 10
    card = (workspace.synthetic("asking") / "README.md").read_text()
    assert "  - name: attributes\n    struct:\n    - name: stroke\n      dtype: string\n" in card
    assert "made of the attributes that zero-shot CLIP reads" in card


def _composed(image: SyntheticImage) -> str:
    words = [word for word in (image.attributes or {}).values() if word != "none"]
    return ", ".join([f"a photo of the digit {image.class_name}", *words])


def test_a_context_is_of_one_shot_of_any_class(prepared: tuple[Params, Workspace], small: dict[str, Any]) -> None:
    _, workspace = prepared
    _, images = made(small, workspace, "datadream_context")
    params = with_row(small, "datadream_context")
    work = settled(Work.read(params, workspace, "asking"))
    label_of = {sample.sha256: sample.label for sample in work.split.train}
    assert all(image.prompt == _composed(image) for image in images)
    # The words of all groups are those of one shot.
    assert all(image.attributes == work.told.attributes[image.told or ""] for image in images)
    assert any(label_of[image.told or ""] != image.label for image in images)
    asked = Counter(one.shot for one in work.asked([(0, index) for index in range(40)]))
    assert set(asked.values()) == {2}  # 20 shots, two rounds
    # Adapters learn each shot with its own.
    prompts = asking.learned(work.split, work.row, work.told, work.split.train)
    assert prompts == [
        asking.with_attributes(work.lead(sample.label), work.told.attributes[sample.sha256])
        for sample in work.split.train
    ]
    record = json.loads((workspace.adapter("asking") / "adapters.json").read_text())
    assert record["settings"]["caption_dropout"] == 0.1


def test_a_fold_asks_with_its_own_shots(prepared: tuple[Params, Workspace], small: dict[str, Any]) -> None:
    work = work_of(small, prepared[1], "datadream_context")
    fewer = dataclasses.replace(work.split, train=work.split.train[::2])
    inner = telling.applied(dataclasses.replace(work, split=fewer))
    assert inner.told.attributes.keys() == {sample.sha256 for sample in fewer.train}
    # It is no baseline, and what tells of shots is scored on others.
    assert not work.row.is_baseline
    assert "folds of the shots" in _folds(small, prepared[1], prompt="context")
    assert _folds(small, prepared[1]) == ""


def _folds(small: dict[str, Any], workspace: Workspace, **knobs: Any) -> str:
    """What a study of two shots of one writer says; empty where it needs no folds."""
    try:
        objective.holdouts(work_of(small, workspace, **knobs))
    except InputError as error:
        return str(error)
    return ""


def test_words_that_clip_cannot_tell_apart(prepared: tuple[Params, Workspace], small: dict[str, Any]) -> None:
    # One prompt is cut to the same tokens as the other.
    long = "low resolution " * 12
    small["models"]["bundled"]["attributes"] = {"odd": [f"{long}bold", f"{long}thin"]}
    words = r"models\.bundled\.attributes\.odd: CLIP cannot tell its words apart \(at best .* 20 shots\); name other"
    with pytest.raises(InputError, match=words):
        work_of(small, prepared[1], prompt="caption", captions="attributes")
    telling.check_apart("group", ["a", "b", "c"], [[0.5, 0.5, 0.0], [0.2, 0.1, 0.7]], "key")
    with pytest.raises(InputError, match=r"key\.group: .*at best 'b' is 0\.2 % likelier than 'a', on 2 shots"):
        telling.check_apart("group", ["a", "b", "c"], [[0.5, 0.5, 0.0], [0.45, 0.452, 0.098]], "key")


def test_prompts_beyond_the_window_are_named(
    prepared: tuple[Params, Workspace], small: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    ends = {name: ["bold" if name != "seven" else "bold thin " * 60] for name in digits.CLASS_NAMES}
    file = described(prepared[1], ends)
    summary, images = made(small, prepared[1], "datadream_dset", prompt="description", descriptions=file)
    (sentence,) = (sentence for sentence in summary["warnings"] if "longer" in sentence)
    said = capsys.readouterr().err
    work = Work.read(with_row(small, prompt="description", descriptions=file), prepared[1], "asking")
    tokens = telling.Tokens.of(Path(work.base.generator))
    prompt = next(image.prompt for image in images if image.class_name == "seven")
    lost = len(tokens.whole(prompt)[0]) - tokens.length
    assert lost > 0
    assert sentence.startswith(
        f"1 of 10 prompts of asking are longer than the {tokens.length} tokens that the generator"
    )
    assert f"'seven' loses {lost} tokens of 'seven, bold thin bold" in sentence
    assert f"adapt: warning: {sentence}." in said
    # Nothing new is drawn, and nothing said.
    assert generate.run(toy.parse(small), prepared[1], "asking")["warnings"] == []


def test_a_dry_run_shows_prompts(prepared: tuple[Params, Workspace], small: dict[str, Any]) -> None:
    file = described(prepared[1], SENTENCES)

    def shown(**knobs: Any) -> dict[str, str]:
        text = planning.describe(with_row(small, **knobs), prepared[1], "generate", "asking")
        prompts: dict[str, str] = yaml.safe_load(text)["prompts"]
        return prompts

    assert shown()["two"] == "a photo of the digit two"
    assert shown(prompt="description", descriptions=file)["two"] in ("two, 2 bold", "two, 2 thin")
    assert shown(prompt="context")["two"] == "a photo of the digit two, and the attributes of a shot"
    assert len(shown()) == 3


def test_cards_say_how_it_was_asked(small: dict[str, Any]) -> None:
    def words(**knobs: Any) -> str:
        return prompt_words(with_row(small, **knobs).recipes["asking"], '"x"')

    assert words() == 'Prompt of class 0: "x".'
    assert "made by who put it beside the image" in words(prompt="caption", captions="beside")
    assert "made by llava-hf/llava" in words(prompt="caption", captions="hub:llava-hf/llava@main")
    assert "the attributes of a shot of any class" in words(prompt="context")


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"templates": ["a photo"]}, r"asking\.templates: each must hold \{class\} once"),
        ({"templates": []}, r"asking\.templates: names none"),
        ({"prompt": "label", "templates": ["the {class}"]}, r"templates: has no part in prompt: label"),
        ({"prompt": "description"}, r"asking\.descriptions: is missing; prompt: description needs it"),
        ({"descriptions": "data/prompts/x.yaml"}, r"asking\.descriptions: belongs to prompt: description"),
        ({"prompt": "caption"}, r"asking\.captions: is missing; prompt: caption needs it"),
        ({"prompt": "context", "captions": "beside"}, r"asking\.captions: belongs to prompt: caption"),
        ({"prompt": "description", "descriptions": "x.yaml"}, r"descriptions: x\.yaml is not in data/prompts/"),
        ({"prompt": "caption", "captions": "file:x.yaml"}, r"captions: x\.yaml is not in data/prompts/"),
        ({"origin": "retrieval", "prompt": "context"}, r"retrieval searches by one caption of each class"),
        ({"origin": "retrieval", "negative": "x"}, r"retrieval searches by one caption of each class"),
        ({"negative": "x", "guide": "other_class"}, r"negative: guide: other_class leads away from another class"),
        ({"negative": "x", "sampler": {"guidance": 1}}, r"guidance: 1 is the prompt alone, so that negative has no"),
        ({"caption_dropout": 0.1}, r"caption_dropout: belongs to an adapter that learns from prompts"),
        ({"prompt": "guess"}, r"asking\.prompt: expected one of template, label, description"),
    ],
)
def test_a_way_of_asking_that_is_none(raw: dict[str, Any], knobs: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        with_row(raw, **knobs)


def test_class_vectors_have_no_text(raw: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"negative: class vectors have no text"):
        with_row(raw, "class_encoder_untuned", negative="x")


def test_groups_of_words_are_checked(raw: dict[str, Any]) -> None:
    raw["models"]["bundled"]["attributes"] = {"one": ["bold"]}
    with pytest.raises(InputError, match=r"models\.bundled\.attributes\.one: expected two or more words, each once"):
        toy.parse(raw)
    raw["models"]["bundled"]["attributes"] = None
    with pytest.raises(InputError, match=r"asks with attributes, and models\.bundled\.attributes names none"):
        with_row(raw, prompt="context")
    raw["models"]["bundled"]["attributes"], raw["active"] = GROUPS, ["stable_diffusion"]
    raw["evaluate"]["slices"] = ["strok"]
    with pytest.raises(InputError, match=r"evaluate\.slices: expected one of stroke, slant, group, got 'strok'"):
        toy.parse(raw)


def test_studies_and_tables_know_what_was_asked(prepared: tuple[Params, Workspace], small: dict[str, Any]) -> None:
    _, workspace = prepared
    search = {"guidance": {"low": 1.5, "high": 3.0}}
    settings, keys = [], []
    for groups in (GROUPS, GROUPS | {"slant": ["slanted", "none"]}):
        small["models"]["bundled"]["attributes"] = groups
        for prompt in ("template", "context"):
            work = Work.read(with_row(small, prompt=prompt, search=search), workspace, "asking")
            keys.append(identity.key_of(work, space.ranges(work.params, workspace, "asking")))
            settings.append(json.dumps(work.params.setting(("asking",))))
    # Words have a part only where they are asked with.
    assert (keys[0], settings[0]) == (keys[2], settings[2])
    assert len({keys[0], keys[1], keys[3]}) == len({settings[0], settings[1], settings[3]}) == 3


@pytest.mark.parametrize("seeing", [{"filter": "argmax"}, {"search": {"filter": ["none", "argmax"]}}, {}])
def test_studies_know_the_clip_that_sees_their_images(
    prepared: tuple[Params, Workspace], small: dict[str, Any], seeing: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, workspace = prepared
    monkeypatch.setattr(identity.pretrained, "identity", lambda root, clip: {"sha256": clip})
    keys = set()
    for clip in ("one", "other"):
        small["models"]["bundled"]["clip"] = clip
        params = with_row(small, prompt="template", **{"search": {"guidance": {"low": 1.5, "high": 3.0}}} | seeing)
        work = Work.read(params, workspace, "asking")
        key = identity.key_of(work, space.ranges(params, workspace, "asking"))
        keys.add((key, tuned.made_for(params, workspace, "asking")))
    assert len(keys) == len({one for one, _ in keys}) == len({one for _, one in keys}) == (2 if seeing else 1)


def test_every_column_of_metadata_has_a_type() -> None:
    columns = cards.every_column(("told", "attributes"))
    assert {"told", "attributes"} <= set(columns)
    head = [*cards.loading(("a", "b"), columns, ("stroke",))]
    assert head[-4:] == ["  - name: attributes", "    struct:", "    - name: stroke", "      dtype: string"]
