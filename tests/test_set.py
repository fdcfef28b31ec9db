"""`dreamset set`: one value changes, the rest of params.yaml stays, and nothing that would be refused is written."""

import shutil
from pathlib import Path

import pytest

from dreamset import classifiers
from dreamset.command.cli import main
from dreamset.params import load

ROOT = Path(__file__).parents[1]


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of params.yaml in the current folder."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml"))


def differing(params: Path) -> list[tuple[str, str]]:
    """Lines of the copy beside those of params.yaml, where they differ; both have as many."""
    before, after = (path.read_text().splitlines() for path in (ROOT / "params.yaml", params))
    return [(old, new) for old, new in zip(before, after, strict=True) if old != new]


def test_only_the_lines_of_the_keys_change(params: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["set", "shots=16", "active=[stable_diffusion, datadream_dset]", "track.uri=null"])
    assert capsys.readouterr().out.splitlines() == [
        "shots: 4 -> 16",
        "active: [stable_diffusion, stable_diffusion_tuned, datadream_dset, datadream_light] -> "
        "[stable_diffusion, datadream_dset]",
        "track.uri: 'sqlite:///mlflow.db' -> null",
    ]
    changed = differing(params)
    assert [new.split("#")[0].strip() for _, new in changed] == [
        "shots: 16",
        "active: [stable_diffusion, datadream_dset]",
        "uri: null",
    ]
    assert [old.partition("#")[2] for old, _ in changed] == [new.partition("#")[2] for _, new in changed]
    loaded = load(params, classifiers.ROWS)
    assert (loaded.shots, loaded.active, loaded.track.uri) == (16, ("stable_diffusion", "datadream_dset"), None)
    main(["set", "shots=16"])
    assert capsys.readouterr().out == "shots: is 16 already\n"


def test_a_key_that_a_row_takes_over_gets_a_line_there_alone(params: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = load(params, classifiers.ROWS)
    main(["set", "models.sd15.dtype=float16"])
    assert capsys.readouterr().out == "models.sd15.dtype: bfloat16 -> float16\n"
    after = load(params, classifiers.ROWS)
    assert after.models["sd15"].dtype == "float16"
    assert {name: row for name, row in after.models.items() if name != "sd15"} == {
        name: row for name, row in before.models.items() if name != "sd15"
    }


def test_a_key_that_may_be_given_is_added(params: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["set", "recipes.datadream_dset.lr=1e-3", "recipes.datadream_dset.sampler.guidance=3"])
    assert capsys.readouterr().out.splitlines()[0] == "recipes.datadream_dset.lr: not given -> 0.001"
    loaded = load(params, classifiers.ROWS)
    assert loaded.recipes["datadream_dset"].lr == 0.001
    assert loaded.sampler("datadream_dset").guidance == 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("shotz=3", "no key 'shotz'; did you mean shots?"),
        ("evaluate.fold=3", "did you mean evaluate.folds?"),
        ("recipes.datadream_dset.rnk=3", "did you mean recipes.datadream_dset.rank?"),
        ("active=[stable_difusion]", "active: no row 'stable_difusion' in recipes (did you mean stable_diffusion?)"),
        ("primary=datadream_ligth", "(did you mean datadream_light?)"),
        ("model=bundeld", "model: no row 'bundeld' in models (did you mean bundled?)"),
        ("train.classifiers=[resnet21]", "train.classifiers[0]: expected one of"),
        ("train.classifiers=[resnet21]", "got 'resnet21' (did you mean resnet20?)"),
        ("models.bundled.generate.scheduler=unipcc", "(did you mean unipc?)"),
        ("selection=hold", "(did you mean holdout?)"),
        ("shots=0", "shots: expected an integer of at least 1"),
        ("shots", "set 'shots': has no KEY=VALUE"),
        ("generate.budget_s=.nan", "set generate.budget_s: .nan is no finite number; give one, or null"),
        ("generate.budget_s=-.inf", "set generate.budget_s: -.inf is no finite number"),
        ("train.scales=[1, .nan]", "set train.scales: [1, .nan] is no finite number"),
        ("generate.budget_s=-5", "generate.budget_s: expected a number above 0, got -5"),
        (
            "prepare.template='a {clas} {class}'",
            "prepare.template: {clas} in 'a {clas} {class}' would stand in the prompt",
        ),
        ("prepare.clip_templates=['a {class} {x}']", "prepare.clip_templates: {x} in"),
        ("shots={one:3, two:3}", "set shots: one:3 has no blank after its colon; write one: 3."),
        ("shots={one: 3, two: 3, two: 4}", "set shots: '{one: 3, two: 3, two: 4}' is no value of YAML ('two' stands"),
        ("shots=[", "set shots: '[' is no value of YAML"),
        ("models.sd15.train.crop=0.5", "models.sd15.train is another row's"),
    ],
)
def test_what_would_be_refused_is_not_written(
    params: Path, capsys: pytest.CaptureFixture[str], change: str, words: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["set", "seed=5", change])
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1 and words in shown.err and not shown.out
    assert differing(params) == []


def test_names_of_classes_are_read_as_in_the_file(params: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["set", "shots={yes: 3, off: 4, 007: 5, null: 6}"])
    assert load(params, classifiers.ROWS).shots == {"yes": 3, "off": 4, "007": 5, "null": 6}
    assert capsys.readouterr().out.startswith("shots: 4 -> {'yes': 3, 'off': 4, '007': 5, 'null': 6}")


def test_values_that_fit_only_together_are_set_together(params: Path) -> None:
    main(["set", "train.configurations=2", "selection=holdout"])
    assert load(params, classifiers.ROWS).train.configurations == 2
