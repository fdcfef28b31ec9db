"""A study: it prunes, it shares what trials have in common, and it never sees a test image."""

from __future__ import annotations

import copy
import dataclasses
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import optuna
import pytest

import toy
from dreamset import adapt, generate, train, tune
from dreamset.classifiers import parts as learned
from dreamset.command import cli, over_seeds, times, verbs
from dreamset.command.plan import describe
from dreamset.core import audit
from dreamset.core.errors import InputError
from dreamset.core.files import write_json
from dreamset.core.workspace import Workspace
from dreamset.data import folds, tuned
from dreamset.data.adapters import read_adapters
from dreamset.data.runs import runs
from dreamset.data.splits import read_split
from dreamset.data.synthetic import read_metadata
from dreamset.data.work import Work
from dreamset.study import choice, sampling, space
from dreamset.study.objective import Objective
from dreamset.sweep import cells, crossval
from small_study import BASE, LORA, PLAIN, parameters, record, scored_by

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dreamset.params import Params


@pytest.fixture
def small(tiny_generator: Path) -> Callable[..., Params]:
    return parameters(tiny_generator)


def test_what_is_known_to_be_bad_is_pruned(
    small: Callable[..., Params], place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Above a guidance of 3 nothing is learned, however many images there are. Which bracket a trial is in hangs on the
    # study's name, and that on the code.
    monkeypatch.setattr(Objective, "name", PLAIN)
    asked = scored_by(monkeypatch, lambda knobs, rung: 0.1 if knobs["guidance"] > 3 else 0.5 + 0.1 * rung)
    params = small(tune__trials=16, **{f"{BASE}tune__per_class": [3, 9, 27]})
    tune.run(params, place, PLAIN)
    found = record(place)
    pruned = [trial for trial in found["trials"] if trial["state"] == "PRUNED"]
    assert len(pruned) >= 3
    assert found["counts"] == {"complete": 16 - len(pruned), "pruned": len(pruned), "slow": 0, "failed": 0}
    assert all(trial["params"]["guidance"] > 3 and trial["values"] is None for trial in pruned)
    assert all("27" not in trial["rungs"] for trial in pruned)
    # Every rung that was drawn is reported, and no more was drawn than that.
    assert [int(rung) for trial in found["trials"] for rung in trial["rungs"]] == asked
    assert sum(asked) < 16 * 39
    best = found["trials"][found["best_trial"]]
    assert found["best"] == best["params"] and best["params"]["guidance"] <= 3
    assert best["values"] == [best["rungs"]["27"]]


def test_a_study_goes_on_as_if_it_had_not_stopped(small: Callable[..., Params], tmp_path: Path) -> None:
    found = []
    for name, parts in (("whole", (3,)), ("broken", (2, 3))):
        place = Workspace.at(tmp_path / name)
        toy.write_splits(place)
        for trials in parts:
            params = small(tune__trials=trials, tune__pruner="none", **{f"{BASE}tune__per_class": [1, 2]})
            tune.run(params, place, PLAIN)
        found.append(record(place))
        # Its working folders are gone, and only its values are kept.
        assert not list(place.trials.glob("*/*"))
    assert found[0]["study"] == found[1]["study"]
    facts = ("number", "state", "params", "values", "rungs")
    whole, broken = ([[trial[fact] for fact in facts] for trial in own["trials"]] for own in found)
    assert whole == broken and len(whole) == 3


def test_trial_0_is_the_recipe_s_own(small: Callable[..., Params], place: Workspace) -> None:
    tune.run(small(tune__trials=1), place, PLAIN)
    found = record(place)
    assert found["trials"][0]["params"] == {"guidance": 2.0, "steps": 2}
    assert found["default"] == {
        "values": {"guidance": 2.0, "steps": 2},
        "trial": 0,
        "cas": found["trials"][0]["values"][0],
    }


def test_no_test_image_is_opened(
    small: Callable[..., Params], place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    params, opened, watching = small(tune__trials=1), [], [True]

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and event == "open":
            opened.append(str(arguments[0]))

    sys.addaudithook(watch)
    try:
        with audit.closed(place):
            tune.run(params, place, PLAIN)
            with pytest.raises(RuntimeError, match="only evaluate opens"):
                place.test_split.read_text()
    finally:
        watching.clear()
    assert str(place.splits) in opened
    secret = [str(place.test_split), str(place.real_test)]
    # The one above, where the audit's own hook did not come first.
    assert [path for path in opened if path.startswith(tuple(secret))] in ([], secret[:1])


def test_without_a_feasible_trial_the_recipe_s_own_values_are_used(
    small: Callable[..., Params], place: Workspace
) -> None:
    params = small(tune__max_seconds_per_image=1e-9, tune__trials=2)
    summary = tune.run(params, place, PLAIN)
    found = record(place)
    assert found["best"] is None and found["best_trial"] is None
    assert "its own values are used" in summary["warnings"][0]
    # What takes too long at the first rung draws no second one.
    assert [(trial["state"], list(trial["rungs"])) for trial in found["trials"]] == [("PRUNED", ["1"])] * 2
    assert not any(trial["feasible"] for trial in found["trials"])
    assert found["counts"] == {"complete": 0, "pruned": 0, "slow": 2, "failed": 0}
    assert found["saved"]["resource_used"] is None
    assert tuned.values(params, place, PLAIN) == {}
    adapt.run(params, place, PLAIN)
    assert generate.run(params, place, PLAIN)["sampler"]["guidance"] == 2.0


def test_a_limit_is_set_once_and_the_best_is_within_it(
    small: Callable[..., Params], place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored_by(monkeypatch, lambda knobs, rung: knobs["guidance"] / 10)
    monkeypatch.setattr(Objective, "_fid", lambda self, places: (5.0 * len(distances.append(0) or distances), 12))
    distances: list[int] = []
    params = small(tune__max_fid=10.0, tune__trials=4)
    said: list[tuple[str, float]] = []
    set_constraint = optuna.Trial.set_constraint

    def watched(self: optuna.Trial, key: str, value: float) -> None:
        said.append((key, value))
        set_constraint(self, key, value)

    monkeypatch.setattr(optuna.Trial, "set_constraint", watched)
    tune.run(params, place, PLAIN)
    assert said == [("fid", -5.0), ("fid", 0.0), ("fid", 5.0), ("fid", 10.0)]
    found = record(place)
    # Nothing is pruned where the limit is known at the end alone.
    assert found["pruner"] == "none" and found["counts"]["complete"] == 4
    assert [trial["feasible"] for trial in found["trials"]] == [True, True, False, False]
    assert found["best_trial"] == max(found["trials"][:2], key=lambda trial: float(trial["values"][0]))["number"]
    # A trial that is taken over has its constraint already.
    study = optuna.create_study()
    trial = study.ask()
    made = tune.objective(Work.read(params, place, PLAIN))
    assert made._over(trial, "fid", 2.0) and made._over(trial, "fid", -1.0)


def test_of_two_objectives_the_fastest_good_enough_is_used(small: Callable[..., Params], place: Workspace) -> None:
    params = small(tune__objectives="cas_and_seconds", tune__trials=3)
    tune.run(params, place, PLAIN)
    found = record(place)
    assert found["directions"] == ["maximize", "minimize"] and found["counts"]["complete"] == 3
    for trial in found["trials"]:
        assert trial["values"] == [trial["rungs"]["4"], trial["seconds_per_image"]]
        assert set(trial["rungs"]) == {"1", "2", "4"}
    assert found["best_trial"] in found["front"]


def test_the_record_says_which_trial_is_best_and_which_is_chosen_and_why(
    small: Callable[..., Params], place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    # By a thousandth the recipe's own values are not the best: less than a standard error.
    scored_by(monkeypatch, lambda knobs, rung: 0.6 if knobs["guidance"] == 2.0 else 0.601)
    params = small(tune__trials=3, tune__pruner="none")
    summary = tune.run(params, place, PLAIN)
    found = record(place)
    assert found["choice"]["highest"] == 1 and found["choice"]["chosen"] == found["best_trial"] == 0
    assert found["best"] == {"guidance": 2.0, "steps": 2} == tuned.values(params, place, PLAIN)
    assert "within one standard error of the recipe’s own values, which are kept" in found["choice"]["reason"]
    assert [len(trial["right"]) for trial in found["trials"]] == [1000] * 3
    assert (summary["best_trial"], summary["cas"], summary["cas_default"]) == (0, 0.6, 0.6)
    assert "within one standard error" in found["sentences"][0]
    plotted = (place.plots("tune", PLAIN) / "history.csv").read_text().splitlines()
    assert [line.rpartition(",")[2] for line in plotted[1:]] == ["chosen", "complete", "complete"]
    # A gain that 1000 images tell replaces them.
    scored_by(monkeypatch, lambda knobs, rung: 0.6 if knobs["guidance"] == 2.0 else 0.65)
    tune.run(small(tune__trials=3, tune__pruner="none", seed=1), place, PLAIN)
    assert record(place)["choice"]["chosen"] == 1


def test_the_recipe_s_own_values_are_never_pruned(
    small: Callable[..., Params], place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Strict(optuna.pruners.BasePruner):
        def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
            return True

    scored_by(monkeypatch, lambda knobs, rung: 0.1)
    monkeypatch.setattr(sampling, "pruner", lambda *_: Strict())
    tune.run(small(tune__trials=3), place, PLAIN)
    found = record(place)
    assert [trial["state"] for trial in found["trials"]] == ["COMPLETE", "PRUNED", "PRUNED"]
    assert found["trials"][0]["params"] == found["default"]["values"]


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_the_recipe_s_own_values_are_tried_where_they_lie_outside_of_the_ranges(
    small: Callable[..., Params], place: Workspace, monkeypatch: pytest.MonkeyPatch, sampler: str
) -> None:
    scored_by(monkeypatch, lambda knobs, rung: 0.5 + knobs["guidance"] / 50)
    search = {"guidance": {"low": 4.0, "high": 5.0}, "steps": {"low": 5, "high": 9, "log": True}}
    params = small(tune__trials=8, tune__sampler=sampler, tune__pruner="none", **{f"recipes__{PLAIN}__search": search})
    tune.run(params, place, PLAIN)
    found = record(place)
    first, *others = found["trials"]
    assert first["params"] == found["default"]["values"] == {"guidance": 2.0, "steps": 2}
    assert all(4 <= trial["params"]["guidance"] <= 5 and 5 <= trial["params"]["steps"] <= 9 for trial in others)
    assert len({trial["params"]["guidance"] for trial in others}) >= 5
    # A scheduler that is not among the choices cannot be tried, and it is said that nothing was compared.
    chosen = {"scheduler": ["ddim", "euler_ancestral"]}
    tune.run(small(tune__trials=2, **{f"recipes__{PLAIN}__search": chosen}), place, PLAIN)
    assert record(place)["choice"]["own"] is None and record(place)["default"] is None
    assert "No trial can have the recipe’s own values" in record(place)["sentences"][0]


def test_a_trial_that_fails_says_why_and_the_study_goes_on(
    small: Callable[..., Params], place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def score(knobs: dict[str, Any], rung: int) -> float:
        if knobs["guidance"] == 2.0:
            raise InputError("black images.")
        return 0.5

    scored_by(monkeypatch, score)
    tune.run(small(tune__trials=3), place, PLAIN)
    found = record(place)
    assert found["counts"]["failed"] == 1
    assert found["trials"][0]["reason"] == "black images."
    assert found["best_trial"] == 1
    assert found["default"] == {"values": {"guidance": 2.0, "steps": 2}, "trial": 0, "cas": None}


def test_images_are_drawn_with_what_was_chosen(small: Callable[..., Params], place: Workspace) -> None:
    params = small()
    adapt.run(params, place, PLAIN)
    with pytest.raises(InputError, match=f"run `dreamset tune {PLAIN}` first"):
        generate.run(params, place, PLAIN)
    toy.write_study(params, place, PLAIN, best={"guidance": 4.5, "steps": 1})
    write_json(place.tuned(PLAIN) / "adapters.json", {"tuned": False, "adapters": []})
    summary = generate.run(params, place, PLAIN)
    assert (summary["sampler"]["guidance"], summary["sampler"]["steps"]) == (4.5, 1)
    assert "1 steps, guidance 4.5" in (place.synthetic(PLAIN) / "README.md").read_text()
    assert {row.sampler["guidance"] for row in read_metadata(place.synthetic(PLAIN))} == {4.5}
    assert "guidance: 4.5" in describe(params, place, "generate", PLAIN, verbose=True)
    # What starts from it has its sampler, where its own row says nothing else.
    after = small(after={"stable_diffusion": PLAIN})
    assert tuned.values(after, place, "stable_diffusion") == {"guidance": 4.5, "steps": 1}
    said = small(after={"stable_diffusion": PLAIN}, recipes__stable_diffusion__sampler={"guidance": 3.0})
    assert tuned.values(said, place, "stable_diffusion") == {"steps": 1}


def test_weights_that_a_study_chose_are_of_all_the_shots(
    small: Callable[..., Params], place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy.write_splits(place, shots=2)
    params = small(
        active=[LORA],
        tune__trials=2,
        **{f"{BASE}tune__per_class": [1], f"recipes__{LORA}__search": {"lr": {"low": 1e-3, "high": 2e-3, "log": True}}},
    )
    adapt.run(params, place, LORA)
    compared = dict.fromkeys(choice.Comparison._fields) | {"highest": 1, "own": None, "reason": "it is this one"}
    monkeypatch.setattr(choice, "choose", lambda *_: compared | {"chosen": 1})
    tune.run(params, place, LORA)
    found = record(place, LORA)
    (own,), (chosen,) = read_adapters(place.adapter(LORA)), read_adapters(place.tuned(LORA))
    assert set(found["best"]) == {"lr"}
    assert own.sha256 != chosen.sha256
    facts = json.loads((place.tuned(LORA) / "adapters.json").read_text())
    assert facts["tuned"] is True
    assert len(facts["trained_on"]) == 6
    generate.run(params, place, LORA)
    assert {row.adapter for row in read_metadata(place.synthetic(LORA))} == {chosen.sha256}
    # The folds of `selection: cv` take the value over, and learn from their own shots with it.
    row = dataclasses.replace(params.train, classifiers=("resnet20",))
    folded = dataclasses.replace(params, selection="cv", train=row)
    part = learned.Part(folded, place, read_split(place.splits), LORA, place.shards)
    _, seconds = train._over_folds(folded, part, runs(folded, LORA))
    assert seconds > 0
    folds = sorted(place.root.glob(".dreamset/folds/*/selection*"))
    assert len(folds) == 2
    for fold in folds:
        card = json.loads((fold / f"models/adapters/{LORA}/adapters.json").read_text())
        assert card["settings"]["lr"] == found["best"]["lr"]
        assert len(card["trained_on"]) == 3


def test_a_recipe_without_a_search_costs_nothing(small: Callable[..., Params], place: Workspace) -> None:
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, 'tests'); import toy\n"
        "from dreamset import tune; from dreamset.core.workspace import Workspace\n"
        f"tune.run(toy.params(), Workspace.at(Path({str(place.root)!r})), 'stable_diffusion')\n"
        "print([name for name in ('torch', 'optuna', 'diffusers', 'sqlalchemy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=toy.ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    found = record(place, "stable_diffusion")
    assert found.items() >= {"recipe": "stable_diffusion", "searched": [], "best": None, "inherited": {}}.items()
    assert json.loads((place.tuned("stable_diffusion") / "adapters.json").read_text())["tuned"] is False
    assert (place.plots("tune", "stable_diffusion") / "history.csv").is_file()


def test_ranges_stand_as_the_run_has_them(small: Callable[..., Params], place: Workspace) -> None:
    search = {"guidance": {"low": 0.1, "high_times_best": 2.0}, "steps": {"low": 1, "high_times_best": 1.0}}
    params = small(after={LORA: PLAIN}, **{f"recipes__{LORA}__search": search})
    toy.write_study(params, place, PLAIN, best={"guidance": 1.7, "steps": 3})
    found = space.ranges(params, place, LORA)
    assert found == {"guidance": space.Range(0.1, 3.4), "steps": space.Range(1, 3, 1)}
    # Without a feasible trial the parent's own values are its best.
    toy.write_study(params, place, PLAIN)
    assert space.ranges(params, place, LORA)["guidance"] == space.Range(0.1, 4.0)
    between = toy.params(recipes__datadream_dset__search={"epoch": {"low": 0.11, "high": 0.19}})
    with pytest.raises(InputError, match=r"search\.epoch: nothing is left"):
        space.ranges(between, place, LORA)


def test_a_multiple_of_another_study_s_value_stays_within_what_is_allowed(
    small: Callable[..., Params], place: Workspace
) -> None:
    search = {"real_weight": {"low": 0.1, "high_times_best": 9.0}, "guide_until": {"low": 0.1, "high_times_best": 5}}
    params = small(active=[PLAIN], after={LORA: PLAIN}, tune__objectives="gain", **{f"recipes__{LORA}__search": search})
    toy.write_study(params, place, PLAIN, best={"guidance": 2.0, "steps": 2})
    found = space.ranges(params, place, LORA)
    assert {knob: span.high for knob, span in found.items()} == {"real_weight": 1, "guide_until": 1}


def test_a_dry_run_counts_what_a_study_does_at_most(small: Callable[..., Params], place: Workspace) -> None:
    words = " ".join(describe(small(), place, "tune", PLAIN).split())
    # 3 trials of 4 images of each of 3 classes; 1, 2 and 4 steps.
    assert "trials: 3 rungs: 3 images at most: 36 classifier steps at most: 21" in words
    assert "guidance: low: 1.0 high: 7.5" in words
    times.remember(small(), place, "tune", PLAIN, {"seconds": 12.0}, 12.0)
    assert "takes: 12 s, as measured here on" in describe(small(), place, "tune", PLAIN)


def test_a_dry_run_says_what_has_to_come_first(small: Callable[..., Params], tmp_path: Path) -> None:
    search = {"guidance": {"low": 0.1, "high_times_best": 2.0}}
    params = small(after={LORA: PLAIN}, **{f"recipes__{LORA}__search": search})
    place = Workspace.at(tmp_path)
    for recipe in (PLAIN, LORA):
        assert "guidance: known when `dreamset prepare` has run" in describe(params, place, "tune", recipe)
    toy.write_splits(place)
    assert "known when" not in describe(params, place, "tune", PLAIN)
    assert "guidance: known when what it starts from is tuned" in describe(params, place, "tune", LORA)


def test_a_dry_run_shows_no_password(place: Workspace) -> None:
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, 'tests'); import toy\n"
        "from dreamset.command import plan; from dreamset.core.workspace import Workspace\n"
        "params = toy.params(tune__storage='postgresql+psycopg://me:secret@host/studies')\n"
        f"there = Workspace.at(Path({str(place.root / 'new')!r}))\n"
        f"print(plan.describe(params, there, 'tune', {PLAIN!r}, verbose=True))\n"
        "print([name for name in ('torch', 'optuna', 'sqlalchemy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=toy.ROOT, capture_output=True, text=True, check=True)
    assert "storage: postgresql+psycopg://me:***@host/studies" in done.stdout and "secret" not in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("arguments", [["adapt"], ["generate", "--dry-run"], ["train", "--dry-run"], ["table"]])
def test_a_unet_without_a_class_encoder_before_it_is_one_sentence(
    small: Callable[..., Params],
    place: Workspace,
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for module in (verbs, over_seeds):
        monkeypatch.setattr(module, "opened", lambda _: (small(), place))
    verb, *more = arguments
    named = ["--shots", "4", "--seeds", "0", "--recipes"] if verb == "table" else more
    with pytest.raises(SystemExit, match="2"):
        cli.main([verb, *named, "class_encoder_ft"])
    assert "say after: {class_encoder_ft: class_encoder}" in capsys.readouterr().err


def test_an_unknown_recipe_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(toy.ROOT)
    with pytest.raises(SystemExit, match="2"):
        cli.main(["tune", "nothing"])
    assert "no row 'nothing' in recipes" in capsys.readouterr().err


def test_folds_and_cells_are_made_again_when_a_study_would_choose_otherwise(
    small: Callable[..., Params], place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = [PLAIN, "stable_diffusion"]
    before, more = (small(active=both, after={LORA: PLAIN}, tune__trials=trials) for trials in (3, 4))
    moved = small(active=both, after={LORA: PLAIN}, tune__storage="sqlite:///b.db")
    rows = cells.rows_hashes(before, place, [*both, LORA])
    assert cells.rows_hashes(moved, place, [*both, LORA]) == rows
    other = cells.rows_hashes(more, place, [*both, LORA])
    # What starts from a study depends on it, and what has none does not.
    assert [name for name in rows if rows[name] != other[name]] == [PLAIN, LORA]
    monkeypatch.setattr(crossval, "fingerprint", lambda settings, *_: json.dumps(settings))
    fold = folds.Fold(0, place, read_split(place.splits), ())
    arms = ["real", *both, LORA]
    made = [
        [crossval._made_with(params, fold, arm, "dreamset.evaluate.logits") for arm in arms]
        for params in (before, moved, more)
    ]
    assert made[0] == made[1]
    assert [arm for arm, a, b in zip(arms, made[0], made[2], strict=True) if a != b] == [PLAIN, LORA]


def test_what_a_recipe_starts_from_comes_first(
    small: Callable[..., Params], place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    monkeypatch.setattr(adapt, "run", lambda params, workspace, recipe: ran.append(f"adapt {recipe}"))
    monkeypatch.setattr(tune, "run", lambda params, workspace, recipe: ran.append(f"tune {recipe}"))
    params = small(after={LORA: PLAIN})
    tune.adapt_and_tune(params, place, LORA)
    assert ran == [f"adapt {PLAIN}", f"tune {PLAIN}", f"adapt {LORA}"]


def test_a_follower_s_trials_start_from_what_was_chosen(small: Callable[..., Params], place: Workspace) -> None:
    params = small(
        after={LORA: PLAIN},
        tune__trials=1,
        **{f"{BASE}tune__per_class": [1], f"recipes__{LORA}__search": {"steps": {"low": 1, "high_times_best": 1.0}}},
    )
    toy.write_splits(place, shots=2)
    adapt.run(params, place, PLAIN)
    toy.write_study(params, place, PLAIN, best={"guidance": 4.5, "steps": 3})
    tune.run(params, place, LORA)
    assert record(place, LORA)["best"] == {"steps": 3}
    assert tuned.values(params, place, LORA) == {"guidance": 4.5, "steps": 3}
    key = record(place, LORA)["study"]
    toy.write_study(params, place, PLAIN, best={"guidance": 4.0, "steps": 3})
    assert tune.objective(Work.read(params, place, LORA)).name != key


def test_finalists_are_scored_again_and_a_stop_repeats_none_of_it(
    small: Callable[..., Params], place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored_by(monkeypatch, lambda knobs, rung: 0.7 if knobs["guidance"] > 3 else 0.5)
    asked: list[tuple[int, float]] = []

    def again(self: Objective, values: dict[str, Any]) -> str:
        asked.append((self.repetition, values["guidance"]))
        if len(asked) == 3 and stops:
            raise KeyboardInterrupt
        return "1" * 60 + "0" * 40 if values["guidance"] == lucky else "1" * 50 + "0" * 50

    def repeated(of: Objective, repetition: int) -> Objective:
        other = copy.copy(of)
        other.repetition = repetition
        return other

    stops, lucky = True, 0.0
    monkeypatch.setattr(Objective, "again", again)
    monkeypatch.setattr(Objective, "repeated", repeated)

    params = small(tune__trials=8, tune__rescored=2, tune__pruner="none")
    with pytest.raises(KeyboardInterrupt):
        tune.run(params, place, PLAIN)
    stops = False
    summary = tune.run(params, place, PLAIN)
    found = record(place)
    numbers = [row["number"] for row in found["choice"]["again"]]
    by_number = {trial["number"]: trial for trial in found["trials"]}
    guidance = [by_number[number]["params"]["guidance"] for number in numbers]
    assert numbers[0] == 0 and len(numbers) == 3 and min(guidance[1:]) > 3
    # The third scoring was begun twice, all others once.
    assert asked == [(1, guidance[0]), (1, guidance[1]), *[(1, guidance[2])] * 2, *[(2, each) for each in guidance]]
    # No finalist is better on fresh noise.
    assert (found["best_trial"], found["choice"]["chosen"]) == (0, 0) and summary["best_trial"] == 0
    assert any("in 2 repetitions from fresh noise (+0.0 ± 0.0 points)" in told for told in found["sentences"])
    # More repetitions go on with the same study.
    del asked[:]
    lucky = guidance[2]
    tune.run(small(tune__trials=8, tune__rescored=3, tune__pruner="none"), place, PLAIN)
    assert [repetition for repetition, _ in asked] == [3] * 3 and record(place)["study"] == found["study"]
    tune.run(small(tune__trials=8, tune__rescored=0, tune__pruner="none"), place, PLAIN)
    assert record(place)["best_trial"] == record(place)["choice"]["highest"] and "again" not in record(place)["choice"]


@pytest.mark.parametrize("who", ["one", "own", "others", "all"])
def test_a_finalist_that_cannot_be_scored_again_does_not_end_the_study(
    who: str, small: Callable[..., Params], place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored_by(monkeypatch, lambda knobs, rung: 0.7 if knobs["guidance"] > 3 else 0.5)
    asked: list[float] = []

    def again(self: Objective, values: dict[str, Any]) -> str:
        own, first = values["guidance"] <= 3, len(asked) < 2
        asked.append(values["guidance"])
        if {"one": not own and first, "own": own, "others": not own, "all": True}[who]:
            raise InputError("too many images came out black.")
        return "1" * 50 + "0" * 50 if own else "1" * 60 + "0" * 40

    monkeypatch.setattr(Objective, "again", again)
    monkeypatch.setattr(Objective, "repeated", lambda of, repetition: of)
    params = small(tune__trials=8, tune__rescored=2, tune__pruner="none")
    if who == "all":
        for _ in range(2):
            with pytest.raises(InputError, match="no finalist can be scored from fresh noise: too many images"):
                tune.run(params, place, PLAIN)
        assert len(asked) == 3  # none is tried twice
        return
    tune.run(params, place, PLAIN)
    found = record(place)["choice"]
    if who == "one":
        assert [row["number"] for row in found["again"]] == [0, found["chosen"]] and found["chosen"] != 0
        assert len(asked) == 5
    else:
        whose = "the recipe’s own values" if who == "own" else "any other finalist"
        assert (found["chosen"], "again" in found) == (0, False)
        assert found["reason"] == f"no images of {whose} could be scored from fresh noise, so the own values are kept"
