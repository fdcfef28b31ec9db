"""Captions of the shots: those of files, those beside the images, and those that a model of transformers writes."""

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import toy
from asked import SENTENCES, described, found_from_anywhere, made, with_row, work_of  # noqa: F401  a fixture
from dreamset import prepare
from dreamset.core.errors import InputError
from dreamset.core.images import png
from dreamset.core.workspace import Workspace
from dreamset.data import asking
from dreamset.data.splits import Sample, Split
from dreamset.data.work import Work
from dreamset.drawing import starts
from dreamset.drawing.finish import settled
from dreamset.generator import captions
from dreamset.params import Params
from dreamset.sources import digits
from dreamset.use.export import _revealing


def by_words(words: list[str], **more: Any) -> Any:
    """A tokenizer of transformers that knows these words, the special ones among them."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special, **more)


def captioned(split: Split) -> dict[str, str]:
    """A caption of each shot, by sha256, that is like no other."""
    return {s.sha256: f"a picture of the {split.classes[s.label]}, no {i}" for i, s in enumerate(split.train)}


def test_a_caption_is_that_of_another_shot(prepared: tuple[Params, Workspace], small: dict[str, Any]) -> None:
    params, workspace = prepared
    split = Work.read(params, workspace, "stable_diffusion").split
    said = captioned(split)
    file = described(workspace, said)
    knobs: dict[str, Any] = {"prompt": "caption", "captions": f"file:{file}"}
    _, images = made(small, workspace, init="image", sampler={"strength": 0.9}, **knobs)
    label_of = {sample.sha256: sample.label for sample in split.train}
    for image in images:
        assert image.told is not None and image.shot is not None
        assert image.told != image.shot
        assert label_of[image.told] == image.label
        assert image.prompt == said[image.told]
        (shot,) = starts.choose(split, params.seed, [(image.label, image.index)])
        assert shot.sha256 == image.shot
    # A round has every shot once, and one shot alone has no other.
    work = work_of(small, workspace, **knobs)
    assert Counter(one.shot for one in work.asked([(4, k) for k in range(20)])).most_common()[-1][1] == 10
    alone = dataclasses.replace(split, train=split.train[:1])
    (one,) = asking.asked(alone, work.row, 0, work.told, [(0, 5)])
    assert one.shot == split.train[0].sha256
    assert "by data/prompts/some.yaml" in (workspace.synthetic("asking") / "README.md").read_text()
    # Adapters learn each shot with its own.
    assert asking.learned(split, work.row, work.told, split.train) == [said[sample.sha256] for sample in split.train]


def test_a_caption_without_its_class_gets_it(prepared: tuple[Params, Workspace], small: dict[str, Any]) -> None:
    split = Work.read(*prepared, "stable_diffusion").split
    file = described(prepared[1], {s.sha256: "thin" if i % 2 else "a bold {class}" for i, s in enumerate(split.train)})
    work = work_of(small, prepared[1], prompt="caption", captions=f"file:{file}")
    prompts = {one.prompt for one in work.asked([(5, 0), (5, 1)])}
    assert prompts == {"a photo of the digit five, thin", "a bold five"}
    work = work_of(small, prepared[1], prompt="caption", captions=f"file:{file}", templates=["the {class}"])
    assert {one.prompt for one in work.asked([(5, 0), (5, 1)])} == {"the five, thin", "a bold five"}


def test_files_of_captions(tmp_path: Path) -> None:
    samples = [Sample(f"raw/{name}/1.png", 0, "", f"{place}" * 64) for place, name in enumerate(("cat", "dog"))]
    rows = [{"file_name": "cat/1.png", "text": "a  cat"}, {"file_name": "dog/1.png", "text": "a dog"}]
    path = tmp_path / "metadata.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert captions.of_file(path, samples, "key") == {"0" * 64: "a cat", "1" * 64: "a dog"}
    # A break that Python takes for the end of a line, and JSON lines do not.
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).replace("a  cat", "a\u2028cat"))
    assert captions.of_file(path, samples, "key") == {"0" * 64: "a cat", "1" * 64: "a dog"}
    whole = json.dumps(rows[0])
    for line, words in (
        ('{"file_name": "dog/1.png"}', r"metadata\.jsonl, line 2: has no file_name and text"),
        ('["dog/1.png"]', r"metadata\.jsonl, line 2: has no file_name and text"),
        ('{"file_name": "dog', r"metadata\.jsonl, line 2: is no JSON \(Unterminated string .*\); correct the line"),
        (whole, r"metadata\.jsonl, line 2: 'cat/1\.png' stands above already; remove one of the lines"),
        ('{"file_name": "dog/1.png", "text": " "}', r"metadata\.jsonl: 'dog/1\.png' has no caption as text; write one"),
        ('{"file_name": "dog/1.png", "text": null}', r"metadata\.jsonl: 'dog/1\.png' has no caption as text"),
    ):
        path.write_text(f"{whole}\n{line}\n")
        with pytest.raises(InputError, match=words):
            captions.of_file(path, samples, "key")
    path = tmp_path / "captions.yaml"
    for text, words in (
        ("cat/1.png:\ndog/1.png:", r"captions\.yaml: 'cat/1\.png' \(and 1 more\) has no caption as text; write one"),
        ("[a cat]", r"captions\.yaml: is no mapping of images to captions"),
        ("1.png: an animal", r"captions\.yaml: '1\.png' fits 2 shots; write the folder before the name"),
        ("cat/1.png: a cat", r"captions\.yaml: misses 1 of 2 shots \(first: raw/dog/1\.png\); add them"),
        ("cat/1.png: [a cat]", r"captions\.yaml: 'cat/1\.png' has no caption as text"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=words):
            captions.of_file(path, samples, "key")


def test_texts_beside_the_images(small: dict[str, Any], workspace: Workspace) -> None:
    rng = np.random.default_rng(0)
    for label, name in enumerate(toy.CLASSES):
        for index in range(5):
            path = workspace.raw / name / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(toy.picture(label, rng)))
            path.with_suffix(".txt").write_text(f"{name} no {index}\n")
    small["prepare"]["source"] = f"imagefolder:{workspace.raw}"
    small["shots"] = 2
    params = with_row(small, prompt="caption", captions="beside")
    prepare.run(params, workspace)
    work = settled(Work.read(params, workspace, "asking"))
    assert [sample.caption for sample in work.split.train] == [
        f"{toy.CLASSES[sample.label]} no {Path(sample.path).stem}" for sample in work.split.train
    ]
    assert {one.prompt for one in work.asked([(1, 0), (1, 1)])} == {s.caption for s in work.split.train if s.label == 1}
    # Decoded images have other names, and keep their texts.
    small["prepare"]["invert"] = True
    params = with_row(small, prompt="caption", captions="beside")
    prepare.run(params, workspace)
    work = Work.read(params, workspace, "asking")
    assert all(sample.path.startswith("data/real/") and sample.caption for sample in work.split.train)
    for path in workspace.raw.rglob("*.txt"):
        path.unlink()
    prepare.run(params, workspace)
    words = r"recipes\.asking\.captions: 6 of 6 shots have no caption beside them \(first: .*\.png\); write a UTF-8"
    with pytest.raises(InputError, match=words):
        settled(Work.read(params, workspace, "asking"))


def captioner(folder: Path) -> Path:
    """A ViT and a GPT-2 of a few thousand random weights, put together as an image-to-text model of transformers."""
    import torch
    from transformers import (
        GPT2Config,
        VisionEncoderDecoderConfig,
        VisionEncoderDecoderModel,
        ViTConfig,
        ViTImageProcessor,
    )

    words = ["<s>", "</s>", "<pad>", "<unk>", "a", "bold", "thin", "digit", "on", "black"]
    fast = by_words(words)
    torch.manual_seed(1)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        ViTConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            image_size=16,
            patch_size=8,
        ),
        GPT2Config(
            vocab_size=len(words),
            n_positions=80,
            n_embd=16,
            n_layer=1,
            n_head=2,
            bos_token_id=0,
            eos_token_id=1,
            add_cross_attention=True,
            is_decoder=True,
        ),
        decoder_start_token_id=0,
        pad_token_id=2,
        eos_token_id=1,
    )
    model = VisionEncoderDecoderModel(config=config)
    model.generation_config.suppress_tokens = [0, 2, 3]
    model.generation_config.decoder_start_token_id, model.generation_config.pad_token_id = 0, 2
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def test_a_model_of_transformers_writes_captions_once(
    prepared: tuple[Params, Workspace], small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, workspace = prepared
    name = str(captioner(tmp_path / "captioner"))
    work = work_of(small, workspace, prompt="caption", captions=name)
    assert work.told.captions.keys() == {sample.sha256 for sample in work.split.train}
    assert all(
        set(text.split()) <= {"a", "bold", "thin", "digit", "on", "black"} for text in work.told.captions.values()
    )
    assert work.asked([(5, 0)])[0].prompt.startswith("a photo of the digit five, ")

    def refuse(*_: object) -> None:
        raise AssertionError("loaded again")

    monkeypatch.setattr(captions, "_load", refuse)
    assert work_of(small, workspace, prompt="caption", captions=name).told == work.told
    assert {path.parent.parent.name for path in workspace.root.rglob(f"{work.split.train[0].sha256}.json")} == {
        "captions"
    }
    monkeypatch.undo()
    # Other weights under the same name write anew.
    (tmp_path / "captioner/config.json").write_text((tmp_path / "captioner/config.json").read_text() + " ")
    from dreamset.weights import hub

    hub.identity.cache_clear()
    monkeypatch.setattr(captions, "_load", refuse)
    with pytest.raises(AssertionError, match="loaded again"):
        work_of(small, workspace, prompt="caption", captions=name)


def instructed(folder: Path) -> Path:
    """A LLaVA of a few thousand random weights, which takes instructions."""
    import torch
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    words = ["<s>", "</s>", "<pad>", "<unk>", "<image>", "USER", "ASSISTANT", "five", "bold", "thin"]
    fast = by_words(words, additional_special_tokens=["<image>"])
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(num_hidden_layers=2, image_size=16, patch_size=8, projection_dim=16, **sizes),
        text_config=LlamaConfig(vocab_size=len(words), num_hidden_layers=1, num_key_value_heads=2, **sizes),
        image_token_id=4,
        image_seq_length=4,
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config.suppress_tokens = [0, 1, 2, 3, 4, 5, 6]
    model.generation_config.pad_token_id = 2
    model.save_pretrained(folder)
    said = (
        "{% for m in messages %}USER {% for c in m['content'] %}{% if c['type'] == 'image' %}<image> {% else %}"
        "{{ c['text'] }} {% endif %}{% endfor %}{% endfor %}ASSISTANT"
    )
    LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        fast,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=said,
    ).save_pretrained(folder)
    return folder


def test_a_model_that_takes_instructions_is_told_the_class(
    prepared: tuple[Params, Workspace], small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    told: list[str] = []
    apply = transformers.LlavaProcessor.apply_chat_template

    def heard(self: Any, *given: Any, **more: Any) -> Any:
        told.append(apply(self, *given, **more))
        return told[-1]

    monkeypatch.setattr(transformers.LlavaProcessor, "apply_chat_template", heard)
    work = work_of(small, prepared[1], prompt="caption", captions=str(instructed(tmp_path / "llava")))
    assert len(told) == len(work.split.train)
    assert all(text.startswith("USER <image> This is a photo of ") and text.endswith("ASSISTANT") for text in told)
    assert {text.split()[7] for text in told} == {f"{name}." for name in digits.CLASS_NAMES}
    # What it was told is no part of what it says.
    assert all(set(text.split()) <= {"five", "bold", "thin"} for text in work.told.captions.values())


def test_a_folder_that_is_no_captioner(
    prepared: tuple[Params, Workspace], small: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"captions: nowhere is no folder of a transformers model"):
        work_of(small, prepared[1], prompt="caption", captions="nowhere")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd/config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match=r"holds no image-to-text model of transformers \("):
        work_of(small, prepared[1], prompt="caption", captions=str(tmp_path / "odd"))
    with pytest.raises(
        InputError, match=r"nobody/nothing at revision main is missing or incomplete in the hub's cache"
    ):
        work_of(small, prepared[1], prompt="caption", captions="hub:nobody/nothing@main")


def test_captions_of_shots_are_not_published(prepared: tuple[Params, Workspace], small: dict[str, Any]) -> None:
    split = Work.read(*prepared, "stable_diffusion").split
    file = described(prepared[1], captioned(split))
    _, told = made(small, prepared[1], prompt="caption", captions=f"file:{file}")
    work = Work.read(toy.parse(small), prepared[1], "asking")
    assert _revealing(work, told) == [True] * len(told)
    _, read = made(small, prepared[1], prompt="context")
    work = Work.read(toy.parse(small), prepared[1], "asking")
    assert _revealing(work, read) == [False] * len(read)
    assert _revealing(work, [dataclasses.replace(read[0], prompt="my house")]) == [True]
    file = described(prepared[1], SENTENCES)
    _, sentences = made(small, prepared[1], prompt="description", descriptions=file, templates=["the {class}"])
    work = Work.read(toy.parse(small), prepared[1], "asking")
    assert _revealing(work, sentences) == [False] * len(sentences)
