"""Every wrong parameter is one sentence that names the key."""

import ast
import copy
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dreamset import classifiers
from dreamset.core.errors import InputError
from dreamset.core.strict import read_yaml
from toy import load, parse

ROOT = Path(__file__).parents[1]


def put(raw: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    changed = copy.deepcopy(raw)
    inner = changed
    *parents, last = path.split(".")
    for name in parents:
        inner = inner[name]
    inner[last] = value
    return changed


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (
            "shots",
            0,
            "shots: expected an integer of at least 1 or all or a mapping of names to an integer of at least 1, got 0",
        ),
        ("shots", "four", "or all or a mapping of names to an integer of at least 1, got 'four'"),
        ("shots", True, "shots: expected an integer of at least 1 or all or a mapping"),
        ("shots", 2.5, "shots: expected an integer"),
        ("shots", [4], "shots: expected an integer of at least 1 or all or a mapping"),
        ("shots", {}, "to an integer of at least 1, got an empty one"),
        ("shots", {"one": 0}, "shots.one: expected an integer of at least 1, got 0"),
        ("generate.per_class", "balanced", "expected an integer of at least 1 or balance, got 'balanced'"),
        ("prepare.window", [1], "prepare.window: expected [low, high] with low below high, got [1.0]"),
        ("prepare.window", [9, 3], "low below high"),
        ("prepare.window", ["a", 3], "prepare.window[0]: expected a number, got 'a'"),
        ("seed", -1, "seed: expected an integer of at least 0"),
        ("model", "sd9", "no row 'sd9' in models; there are bundled"),
        ("active", [], "active: names no recipe"),
        ("active", ["stable_diffusion", "stable_diffusion"], "active: names stable_diffusion twice"),
        ("after", {"stable_diffusion": "stable_diffusion"}, "names stable_diffusion, which `after` runs, too"),
        ("after", {"nothing": "stable_diffusion"}, "after: no row 'nothing' in recipes"),
        ("after", {"class_encoder_ft": "class_encoder_ft"}, "after.class_encoder_ft: starts from itself"),
        ("after", {"class_encoder_ft": "class_encoder"}, "'class_encoder' is not active before it; put it into active"),
        (
            "after",
            {"class_encoder_ft": "class_encoder", "class_encoder": "stable_diffusion"},
            "write class_encoder above class_encoder_ft in after",
        ),
        (
            "after",
            {"class_encoder_ft": "class_encoder", "class_encoder": "class_encoder_ft"},
            "after.class_encoder_ft: 'class_encoder' is not active before it; they start from each other",
        ),
        ("active", ["nothing"], "no row 'nothing' in recipes"),
        ("active", "datadream_dset", "active: expected a list"),
        ("prepare.test_share", float("nan"), "prepare.test_share: expected a number of at least 0.05"),
        ("prepare.invariances", ["hflop"], "prepare.invariances[0]: expected one of hflip, vflip, rotation, colour"),
        ("prepare.template", "a photo", "{class} exactly once"),
        ("adapt.max_grad_norm", 0, "adapt.max_grad_norm: expected a number above 0"),
        ("adapt.typo", 1, "adapt.typo: unknown key; allowed are weight_decay"),
        ("train.classifiers", ["resnet21"], "train.classifiers[0]: expected one of resnet20, clip_lora, resnet50"),
        ("accept_licence", "yes", "accept_licence: expected true or false"),
        ("models.bundled.train.resnet20.schedule", "plateau", "resnet20.schedule: plateau goes by images that are set"),
        ("models.bundled.train.resnet50.size", 32, "resnet50.size: expected an integer of at least 64"),
        ("train.scales", [2, 1], "train.scales: expected rising numbers, got [2, 1]"),
        ("train.scales", [0.5], "train.scales: expected a list of an integer of at least 1 or ravuri_vinyals"),
        ("deliver.precision", 1.0, "deliver.precision: expected a number above 0 and below 1"),
        ("models.bundled.resolution", 20, "divisible by 8"),
        ("models.bundled.adapt.ema", 1.0, "and below 1"),
        ("models.bundled.adapt.class.lr", float("inf"), "models.bundled.adapt.class.lr"),
        ("models.bundled.generate.scheduler", "euler", "expected one of dpmsolver++"),
        ("recipes.stable_diffusion.rank", 4, "recipes.stable_diffusion.rank: belongs only to adapter: lora"),
        ("recipes.datadream_dset.scope", None, "recipes.datadream_dset.scope: is missing"),
        ("recipes.stable_diffusion.adapter_scales", [1], "adapter_scales: only adapter: lora has a strength; remove"),
        ("recipes.datadream_dset.adapter_scales", [], "adapter_scales: name at least one above 0"),
        ("recipes.datadream_dset.adapter_scales", [0], "adapter_scales: name at least one above 0"),
        ("recipes.datadream_dset.adapter_scales", [0, 3], "adapter_scales[1]: expected a number of at least 0 and at"),
        ("recipes.real", {"adapter": "none", "prompt": "label", "sampler": {}}, "recipes.real: is not a name"),
        ("recipes.retrieved.adapter", "lora", "recipes.retrieved.scope: is missing"),
        ("recipes.retrieved.sampler", {"steps": 4}, "recipes.retrieved: origin: retrieval draws nothing"),
        ("recipes.retrieved.origin", "found", "expected one of generator, retrieval"),
        ("models.bundled.retrieval", "laion", "models.bundled.retrieval: expected glyphs, imagefolder:PATH or null"),
        ("models.bundled.retrieval", "imagefolder:", "models.bundled.retrieval: expected glyphs"),
        ("track", None, "track: expected a mapping"),
    ],
)
def test_a_wrong_value_names_its_key(raw: dict[str, Any], path: str, value: object, words: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(put(raw, path, value))
    assert words in str(caught.value)
    assert str(caught.value).startswith("params.yaml: ")
    assert "\n" not in str(caught.value)


def test_shots_take_three_forms(raw: dict[str, Any]) -> None:
    assert parse(put(raw, "shots", 3)).shots_of("any") == 3
    raw["selection"] = "coop"
    every = parse(put(raw, "shots", "all"))
    assert (every.shots_of("any"), every.selection_of("any")) == (None, 4)
    named = parse(put(raw, "shots", {"cat": 16, 7: 1}))
    assert [named.shots_of("cat"), named.shots_of("7")] == [16, 1]
    assert [named.selection_of("cat"), named.selection_of("7")] == [4, 1]
    with pytest.raises(InputError, match=r"prepare\.few_shot: .*one number"):
        parse(put(put(raw, "shots", "all"), "prepare.few_shot", "shots.json"))


def test_balance_brings_every_class_to_one_sum(raw: dict[str, Any]) -> None:
    params = parse(put(raw, "generate.per_class", "balance"))
    real = (16, 12, 1)
    more = params.synthetic_per_class(real)
    assert more == (50, 54, 65)
    assert {a + b for a, b in zip(real, more, strict=True)} == {66}
    assert parse(put(raw, "generate.per_class", 7)).synthetic_per_class(real) == (7, 7, 7)


def test_a_base_with_nothing_to_retrieve_from_is_told_where_the_recipe_is_active(raw: dict[str, Any]) -> None:
    parse(put(raw, "model", "sd21_base"))
    active = put(put(raw, "model", "sd21_base"), "active", ["retrieved"])
    with pytest.raises(InputError, match=r"models\.sd21_base\.retrieval: is null, so recipe retrieved has nothing"):
        parse(active)
    parse(put(active, "models.sd21_base.retrieval", "imagefolder:pictures"))


def test_a_missing_key_is_named(raw: dict[str, Any]) -> None:
    short = copy.deepcopy(raw)
    del short["evaluate"]["bootstrap"]
    with pytest.raises(InputError, match=r"evaluate\.bootstrap: is missing"):
        parse(short)


def test_numbers_in_exponent_notation_are_numbers(raw: dict[str, Any]) -> None:
    # YAML 1.1 reads 1e-3 as text.
    assert parse(put(raw, "models.bundled.adapt.class.lr", "1e-3")).base.adapt.class_.lr == 1e-3


@pytest.mark.parametrize("text", ["a: [", "!!python/object:os.system {}", "- 1", ""])
def test_a_file_that_is_no_mapping(tmp_path: Path, text: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"params\.yaml"):
        load(path)


def test_a_recipe_overrides_its_models_sampler(raw: dict[str, Any]) -> None:
    params = parse(put(raw, "recipes.datadream_cls.sampler", {"guidance": 0, "steps": 7}))
    own, other = params.sampler("datadream_cls"), params.sampler("datadream_dset")
    assert (own.guidance, own.steps, own.scheduler) == (0, 7, other.scheduler)
    assert other.steps == params.base.generate.steps


def test_bad_parameters_end_the_program_with_status_2(tmp_path: Path) -> None:
    text = (ROOT / "params.yaml").read_text().replace("shots: 4 ", "shots: none ")
    (tmp_path / "params.yaml").write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "dreamset", "prepare"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "shots: expected an integer" in done.stderr
    assert list(tmp_path.iterdir()) == [tmp_path / "params.yaml"]


def test_every_line_of_params_yaml_has_its_meaning() -> None:
    seen: set[str] = set()
    for line in (ROOT / "params.yaml").read_text().splitlines():
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        key = stripped.split(":")[0]
        has_children = stripped.endswith(":")
        # A key that an earlier row explained need not be explained again.
        assert "#" in line or has_children or key in seen, line
        seen.add(key)


def test_importing_the_package_and_reading_parameters_load_no_heavy_library() -> None:
    code = (
        "import pathlib, sys; from dreamset import adapt, deliver, evaluate, generate, prepare, report, track, train;"
        "from dreamset.command import cli, plan, verbs; from dreamset.use import export, predict;"
        "from dreamset import classifiers, params; params.load(pathlib.Path('params.yaml'), classifiers.ROWS);"
        "heavy = {'torch', 'diffusers', 'transformers', 'mlflow', 'sklearn', 'open_clip', 'matplotlib'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_name_is_text_as_it_is_written(tmp_path: Path) -> None:
    # DVC writes such keys without quotes, and refuses quotes in -S.
    names = ("yes", "no", "off", "null", "007", "1_0", "2026-01-01", "12:30", "cafe\u0301")
    text = (ROOT / "params.yaml").read_text().replace("shots: 4 ", f"shots: {{{', '.join(f'{n}: 4' for n in names)}}} ")
    (tmp_path / "params.yaml").write_text(text)
    assert load(tmp_path / "params.yaml").shots == dict.fromkeys((*names[:-1], "caf\u00e9"), 4)


def test_sets_grow_with_the_scales_and_all_else_learns_from_as_many_as_before(raw: dict[str, Any]) -> None:
    shots = (4, 4, 9)
    raw["generate"]["per_class"] = 20
    plain = parse(raw)
    assert plain.synthetic_per_class(shots) == plain.training_per_class(shots) == (20, 20, 20)
    raw["train"]["scales"] = [1, 4]
    params = parse(raw)
    assert (params.scales, params.synthetic_per_class(shots)) == ((1, 4), (20, 20, 36))
    assert params.training_per_class(shots) == (20, 20, 20)
    for key, value, said in (
        ("generate.budget_s", 60, "generate.budget_s gives no number of images"),
        ("selection", "cv", "selection: cv learns from fewer shots in its folds"),
        ("evaluate.protocol", "cv", "evaluate.protocol: cv learns from fewer shots in its folds"),
    ):
        with pytest.raises(InputError, match=f"train.distillation: {said}; change that, or set"):
            parse(put(put(put(raw, "train.distillation", True), "train.scales", []), key, value))
    with pytest.raises(InputError, match=r"train.scaled: name synthetic, both, or each once"):
        parse(put(raw, "train.scaled", []))
    raw["train"]["scales"] = "ravuri_vinyals"
    assert (parse(raw).scales, parse(raw).synthetic_per_class(shots)) == ((1,), (20, 20, 20))
    assert parse(put(raw, "generate.per_class", 5)).synthetic_per_class(shots) == (5, 5, 9)


def test_every_strength_of_an_adapter_has_its_turn_and_is_measured_against_the_whole(raw: dict[str, Any]) -> None:
    raw["recipes"]["weaker"] = raw["recipes"]["datadream_dset"] | {"adapter_scales": [0.0, 0.5, 1.0]}
    raw["active"] = ["stable_diffusion", "datadream_dset", "datadream_cls", "weaker"]
    params = parse(raw)
    assert params.steps_back("weaker") == ("datadream_dset",) and params.steps_back("datadream_dset") == ()
    assert params.recipes["weaker"].strengths == (0.0, 0.5, 1.0) and params.recipes["datadream_dset"].strengths == (
        1.0,
    )
    with pytest.raises(InputError, match=r"weaker.adapter_scales: 3 scales need as many images; raise generate.per_"):
        parse(put(raw, "generate.per_class", 2))


def test_a_knob_s_values_are_compared_in_its_own_file_alone() -> None:
    # Everybody else asks a recipe by a name that says why.
    knobs = {"adapter", "prompt", "origin", "init", "scope"}
    compared = {}
    for path in sorted((ROOT / "src/dreamset").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare) and isinstance(node.left, ast.Attribute) and node.left.attr in knobs:
                literal = any(isinstance(other, ast.Constant) and other.value for other in node.comparators)
                compared |= {path.name: ast.unparse(node)} if literal else {}
    assert compared.keys() == {"recipe.py"}


def test_a_classifier_is_named_in_its_own_file_and_the_list_of_them_alone() -> None:
    # The table over seeds shows the CAS of ResNet-20.
    shared = {
        "resnet20": {"sweep/table.py"},
        "clip_lora": {"classifiers/lora_attention.py"},
    }
    for name in classifiers.ROWS:
        files = [
            path.relative_to(ROOT / "src/dreamset").as_posix()
            for path in sorted((ROOT / "src/dreamset").rglob("*.py"))
            if re.search(rf"\b{name}\b", path.read_text(encoding="utf-8"))
        ]
        assert set(files) == {"classifiers/__init__.py", f"classifiers/{name}.py", *shared.get(name, ())}


def test_a_row_may_be_missing_of_a_classifier_that_is_not_used(raw: dict[str, Any]) -> None:
    rows = raw["models"]["bundled"]["train"]
    for name in classifiers.ROWS.keys() - {"resnet20", "clip_lora"}:
        rows.pop(name, None)
    raw["train"]["baselines"] = []
    assert parse(raw).base.train.rows.keys() == {"resnet20", "clip_lora"}
    raw["train"]["baselines"] = ["linear_probe"]
    with pytest.raises(InputError) as caught:
        parse(raw)
    said = "models.bundled.train.linear_probe: is missing, and linear_probe is used; give its row."
    assert str(caught.value) == f"params.yaml: {said}"
    del rows["resnet20"]
    with pytest.raises(InputError, match=r"models.bundled.train.resnet20: is missing, and resnet20 is used"):
        parse(put(raw, "train.baselines", []))
    with pytest.raises(InputError, match=r"train.deliver: expected one of resnet20, clip_lora, resnet50"):
        parse(put(raw, "models.bundled.train.deliver", "clip_zeroshot"))


def test_a_later_classifier_stands_in_a_setting_only_where_it_is_used(raw: dict[str, Any]) -> None:
    def rows(raw: dict[str, Any]) -> dict[str, Any]:
        return dict(parse(raw).setting(())["base"]["train"])

    assert "resnet50" in rows(raw) and "classifier_tuning" not in rows(raw)
    used = rows(put(raw, "train.baselines", ["classifier_tuning"]))
    assert used["classifier_tuning"]["soft"] == 0.5
    # Nor does a key that came later, at the value that it had before.
    assert "label_smoothing" not in used["classifier_tuning"]
    smoothed = put(raw, "models.bundled.train.clip_lora.label_smoothing", 0.1)
    assert rows(smoothed)["clip_lora"]["label_smoothing"] == 0.1


def test_plateau_is_for_what_is_trained_and_a_rule_that_sets_images_apart(raw: dict[str, Any]) -> None:
    raw["models"]["bundled"]["train"]["resnet50"]["schedule"] = "plateau"
    parse(raw)
    raw["train"]["scales"] = [1]
    raw["models"]["bundled"]["tune"]["classifier"] = "resnet50"
    for rule in ("fixed", "cv"):
        with pytest.raises(InputError, match=f"resnet50.schedule: plateau goes by .* selection: {rule} sets none"):
            parse(raw | {"selection": rule})
    for rule in ("holdout", "coop", "extra:2"):
        parse(raw | {"selection": rule})


def test_an_end_on_real_images_alone_is_for_what_has_last_steps_and_a_last_layer(raw: dict[str, Any]) -> None:
    older = copy.deepcopy(raw)
    del older["train"]["finish_on_real"], older["train"]["finish_part"]
    assert parse(older) == parse(raw)
    assert "finish_on_real" not in parse(raw).setting(())["train"]
    finishing = put(raw, "train.finish_on_real", 0.2)
    assert parse(finishing).setting(())["train"]["finish_on_real"] == 0.2
    with pytest.raises(InputError, match=r"train.finish_on_real: expected a number of at least 0 and below 1, got 1"):
        parse(put(raw, "train.finish_on_real", 1))
    said = r"train.finish_part: clip_lora has no last layer that learns; set it to whole, or take clip_lora out"
    with pytest.raises(InputError, match=said):
        parse(put(finishing, "train.finish_part", "head"))
    parse(put(put(finishing, "train.finish_part", "head"), "train.classifiers", ["resnet20", "linear_probe"]))
    finishing["selection"] = "holdout"
    with pytest.raises(InputError, match=r"train.finish_on_real: resnet20 ends when its plateau says so"):
        parse(put(finishing, "models.bundled.train.resnet20.schedule", "plateau"))


def test_a_row_s_own_number_and_weights_stand_for_those_of_all(raw: dict[str, Any]) -> None:
    light = put(put(raw, "recipes.datadream_light.per_class", 6), "recipes.datadream_light.real_weight", 0.25)
    params = parse(put(light, "recipes.datadream_light.finish_on_real", 0.2))
    own, others = params.of("datadream_light"), params.of("datadream_dset")
    assert others == params == params.of("real")
    assert (own.generate.per_class, own.train.real_weight, own.train.finish_on_real) == (6, 0.25, 0.2)
    assert own.synthetic_per_class((4, 4)) == params.drawn_per_class("datadream_light", (4, 4)) == (6, 6)
    assert params.drawn_per_class("datadream_dset", (4, 2)) == (50, 50)
    assert parse(put(raw, "recipes.datadream_light.nearness", -1.5)).of("datadream_light").train.nearness == -1.5
    assert "nearness" not in parse(raw).setting(())["train"]
    # Equal numbers, where the others balance.
    balanced = parse(put(light, "generate.per_class", "balance"))
    assert balanced.drawn_per_class("datadream_light", (4, 2)) == (6, 6)
    assert balanced.drawn_per_class("datadream_dset", (4, 2)) == (50, 52)
    # No training of adapters depends on them; the same row without them is one step back.
    assert params.recipes["datadream_light"].training() == parse(raw).recipes["datadream_light"].training()
    twin = put(light, "recipes.twin", raw["recipes"]["datadream_light"] | {"per_class": 6})
    twin["active"] = ["twin", "datadream_light"]
    assert parse(twin).steps_back("datadream_light") == ("twin",)
    assert "real_weight" not in parse(raw).recipes["datadream_light"].recorded()
    plateau = put(put(raw, "selection", "holdout"), "models.bundled.train.resnet20.schedule", "plateau")
    plateau = put(plateau, "models.bundled.tune.per_class", [2, 4, 8])
    for key, value in (("finish_on_real", 0.2), ("search", {"finish_on_real": {"low": 0, "high": 0.5}})):
        ending = put(put(plateau, f"recipes.datadream_light.{key}", value), "tune.objectives", "gain")
        with pytest.raises(InputError, match=rf"recipes.datadream_light.{key}.*: resnet20 ends when its plateau"):
            parse(ending)


def test_what_a_study_searches_of_a_training_needs_the_shots_in_it(raw: dict[str, Any]) -> None:
    raw = put(raw, "models.bundled.tune.per_class", [2, 4, 8])
    row = "recipes.datadream_light.search"
    for knob in ("real_weight", "finish_on_real"):
        searching = put(raw, row, {knob: {"low": 0.1, "high": 0.9}})
        with pytest.raises(InputError, match=rf"{row}.{knob}: needs tune.objectives: gain"):
            parse(searching)
        parse(put(searching, "tune.objectives", "gain"))
    with pytest.raises(InputError, match=rf"{row}.real_weight.high: expected a number of at most 1"):
        parse(put(put(raw, row, {"real_weight": {"low": 0.1, "high": 2}}), "tune.objectives", "gain"))
    # Below 0 alone where that has a meaning, and with no need of the shots.
    parse(put(raw, row, {"nearness": {"low": -2, "high": 2}}))
    for low in (-6, -1):
        knob = "nearness" if low == -6 else "guidance"
        with pytest.raises(InputError, match=rf"{row}.{knob}.low: expected a number of at least (0|-5), got {low}"):
            parse(put(raw, row, {knob: {"low": low, "high": 2}}))
    with pytest.raises(InputError, match=r"datadream_dset.search.per_class: expected whole numbers of at least 1"):
        parse(put(raw, "recipes.datadream_dset.search", {"per_class": {"low": 0, "high": 20}}))
    for key, value in (("generate.budget_s", 60), ("generate.per_class", "balance")):
        with pytest.raises(InputError, match=rf"{row}.per_class: a study needs a number of images.*{key}"):
            parse(put(put(raw, row, {"per_class": {"low": 4, "high": 20}}), key, value))
    for span in ({"low": 1, "high": 20}, {"low": 4, "high": 20, "log": True}):
        with pytest.raises(InputError, match=rf"{row}.per_class: 2 scales take multiples of 2 images"):
            parse(put(raw, row, {"per_class": span}))
    with pytest.raises(InputError, match=r"2 scales need as many images; raise recipes.datadream_light.per_class"):
        parse(put(raw, "recipes.datadream_light.per_class", 1))
    filtering = put(raw, "recipes.datadream_light.filter", "entropy")
    with pytest.raises(InputError, match=rf"{row}.per_class.low: the first 10 images of a class teach the filter"):
        parse(put(filtering, row, {"per_class": {"low": 5, "high": 50}}))


def test_a_guidance_at_which_no_label_reaches_its_image_is_refused(raw: dict[str, Any]) -> None:
    row = "recipes.stable_diffusion.sampler"
    with pytest.raises(InputError, match=rf"{row}.guidance: 0 draws every class alike.* set it to 1"):
        parse(put(raw, f"{row}.guidance", 0))
    with pytest.raises(InputError, match=r"models.bundled.generate.guidance: 0 draws every class of recipe"):
        parse(put(raw, "models.bundled.generate.guidance", 0.0))
    searched = put(raw, "recipes.stable_diffusion_tuned.search.guidance", {"low": 0, "high": 3})
    with pytest.raises(InputError, match=r"stable_diffusion_tuned.search.guidance.low: 0 leaves out the class"):
        parse(searched)
    parse(put(raw, f"{row}.guidance", 1))
    parse(put(raw, f"{row}.guidance", 0.1))
    # A shot of the class, or a U-Net of its own, says the class without a prompt.
    from_shots = raw["recipes"]["stable_diffusion"] | {"init": "image", "sampler": {"guidance": 0, "strength": 0.5}}
    parse(put(raw, "recipes.stable_diffusion", from_shots))
    own = put(raw, "recipes.datadream_cls.sampler.guidance", 0)
    parse(own)
    for change in ({"unet": False}, {"adapter_scales": [0, 1]}):
        with pytest.raises(InputError, match=r"datadream_cls.sampler.guidance: 0"):
            parse(put(own, "recipes.datadream_cls", own["recipes"]["datadream_cls"] | change))


def test_a_key_that_stands_there_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "names.yaml"
    path.write_text("nine: [a, b]\nten: c\nnine: again\n")
    with pytest.raises(
        InputError, match=r"names\.yaml, line 3: is not plain YAML \('nine' stands there already, in line 1"
    ):
        read_yaml(path)
    # What a merged mapping brings may be overridden, as the rows of models do, however often it is merged.
    path.write_text("x: &m {a: 1, b: 2}\ny:\n  <<: *m\n  a: 3\nz: *m\nw: {<<: *m, b: 5}\n")
    assert read_yaml(path) == {
        "x": {"a": 1, "b": 2},
        "y": {"a": 3, "b": 2},
        "z": {"a": 1, "b": 2},
        "w": {"a": 1, "b": 5},
    }


@pytest.mark.parametrize(
    ("recipe", "change", "sentence"),
    [
        (
            "fakeit",
            {"descriptions": "data/prompts/../x.yaml"},
            r"descriptions: data/prompts/\.\./x\.yaml is not in data",
        ),
        (
            "fakeit",
            {"templates": ["a {class} {clas}"]},
            r"templates: \{clas\} in 'a \{class\} \{clas\}' would stand in",
        ),
    ],
)
def test_what_would_go_into_prompts_in_silence_is_refused(
    raw: dict[str, Any], recipe: str, change: dict[str, Any], sentence: str
) -> None:
    raw["recipes"][recipe] |= change
    with pytest.raises(InputError, match=sentence):
        parse(raw)


@pytest.mark.parametrize(
    ("recipe", "search", "words"),
    [
        (
            "stable_diffusion_tuned",
            {"guide": ["adapted", "base"]},
            r"search\.guide: base is not possible here\. .*base",
        ),
        ("datadream_dset", {"guide": ["adapted", "adapted"]}, r"search\.guide: name at least two, and each once"),
        ("datadream_dset", {"filter": ["argmax"]}, r"search\.filter: name at least two"),
        ("stable_diffusion_tuned", {"adapter_scales": {"low": 0.1, "high": 1}}, "only adapter: lora has a strength"),
        ("datadream_dset", {"adapter_scales": {"low": 0.1, "high": 3}}, r"adapter_scales\.high: expected .* at most 2"),
        ("datadream_dset", {"guide_until": {"low": 0.1, "high": 1.5}}, r"guide_until\.high: expected .* at most 1"),
    ],
)
def test_what_a_study_cannot_search(raw: dict[str, Any], recipe: str, search: dict[str, Any], words: str) -> None:
    changed = put(raw, f"recipes.{recipe}.search", search)
    changed["active"] = [recipe]
    changed |= {"after": {}, "primary": recipe}
    with pytest.raises(InputError, match=words):
        parse(changed)


def test_a_row_that_searches_nothing_new_is_recorded_as_before(raw: dict[str, Any]) -> None:
    recorded = parse(raw).recipes["stable_diffusion_tuned"].recorded()
    assert {"guide", "filter", "adapter_scales", "guide_until"}.isdisjoint({*recorded, *recorded["search"]})
    assert {"guidance", "steps", "strength", "epoch", "lr", "epochs"} <= recorded["search"].keys()
    searched = put(raw, "recipes.stable_diffusion_tuned.search.filter", ["none", "argmax"])
    assert parse(searched).recipes["stable_diffusion_tuned"].recorded()["search"]["filter"] == ("none", "argmax")
