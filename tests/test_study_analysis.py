"""What a study says of itself, from a record alone."""

from __future__ import annotations

import csv
import json
import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

import studied
from dreamset.study import analysis, plots, sentences
from dreamset.study.choice import choose
from studied import RESOURCE, SPACE, failed, stopped, trial

ROOT = Path(__file__).parents[1]


def record(*trials: dict[str, Any], best: int | None = 0, **more: Any) -> dict[str, Any]:
    """A record of these trials; with ``best`` None nothing is chosen."""
    choice = choose(trials, None, "cas") if best is not None else None
    chosen = next((made for made in trials if choice and made["number"] == choice["chosen"]), None)
    made: dict[str, Any] = {
        "searched": list(SPACE),
        "space": SPACE,
        "resource": list(RESOURCE),
        "best": chosen and chosen["params"],
        "best_trial": chosen and chosen["number"],
        "choice": choice,
        "default": None,
        "selection": {"images": 40},
        "limits": {"max_seconds_per_image": 0.01, "max_fid": None},
        "trials": list(trials),
    }
    return made | more


def told(of: dict[str, Any]) -> str:
    return " ".join(sentences.of({**of, **analysis.summarise(of)}))


def test_what_pruning_saved_is_a_share_of_the_same_trials_unpruned() -> None:
    # 10 s each: 6 of generation, 3 of training and 1 of neither. Stopped at 3 of 27: 1 s for 9, and 1 s.
    trials = [trial(0), stopped(1, 3), stopped(2, 9), failed(3)]
    found = analysis.saved(trials, RESOURCE)
    assert found["resource_used"] == pytest.approx((27 + 3 + 9) / 81, abs=1e-4)
    assert found["seconds"] == pytest.approx(10 + 2 + 4)
    assert found["seconds_unpruned"] == pytest.approx(30)
    assert found["seconds_used"] == pytest.approx(16 / 30, abs=1e-4)
    assert (found["trials"], found["failed"], found["seconds_failed"]) == (3, 1, 4.0)


def test_adapting_is_not_spared_by_stopping_early() -> None:
    adapted = stopped(0, 3, seconds=101.0)
    found = analysis.saved([adapted], RESOURCE)
    assert found["seconds_unpruned"] == pytest.approx(100 + 9)


def test_of_failed_trials_alone_nothing_was_saved() -> None:
    found = analysis.saved([failed(0), failed(1, seconds=None)], RESOURCE)
    assert found["resource_used"] is None and found["seconds_used"] is None
    assert found["failed"] == 2


def ranked(number: int, low: float, middle: float, high: float) -> dict[str, Any]:
    return trial(number, rungs={"3": low, "9": middle, "27": high}, values=[high])


def test_rank_agreement_is_tau_b_over_the_trials_scored_at_both() -> None:
    trials = [
        ranked(0, 0.1, 0.1, 0.1),
        ranked(1, 0.2, 0.3, 0.2),
        ranked(2, 0.3, 0.2, 0.3),
        ranked(3, 0.4, 0.4, 0.4),
        ranked(4, 0.5, 0.5, 0.5),
        stopped(5, 9),
    ]
    assert analysis.rank_agreement(trials, RESOURCE) == [
        {"rung": 3, "full": 27, "n": 5, "tau": 1.0},
        {"rung": 9, "full": 27, "n": 5, "tau": 0.8},
    ]
    # With a tie at the lower rung: 9 pairs agree of 10 and of 9 that are not tied.
    tied = [ranked(n, low, 0, (n + 1) / 10) for n, low in enumerate((0.1, 0.1, 0.3, 0.4, 0.5))]
    low, middle = analysis.rank_agreement(tied, RESOURCE)
    assert low["tau"] == pytest.approx(9 / math.sqrt(9 * 10), abs=1e-4)
    assert middle == {"rung": 9, "full": 27, "n": 5, "tau": None}  # does not vary
    assert [row["tau"] for row in analysis.rank_agreement(tied[:4], RESOURCE)] == [None, None]


def test_low_agreement_is_warned_of_and_high_is_not() -> None:
    rising = [ranked(n, n / 10, n / 10, n / 10) for n in range(5)]
    falling = [ranked(n, -n / 10, n / 10, n / 10) for n in range(5)]
    assert "few images favour high guidance" not in told(record(*rising))
    assert "−1.00 from 3 images per class, 1.00 from 9 images per class, over 5 trials." in told(record(*falling))
    assert "few images favour high guidance" in told(record(*falling))
    # What is missing is told where something is.
    assert "are missing" not in told(record(*rising))
    assert "trials stopped early are missing" in told(record(*rising, stopped(9, 3)))
    assert "is unknown (trials scored at both: 1, needed: 5)." in told(record(rising[0]))
    level = [studied.trial(n, rungs={"3": 0.5, "9": 0.5, "27": n / 10}, values=[n / 10]) for n in range(5)]
    assert "(all 5 trials that were scored at both had the same CAS at one of them)." in told(record(*level))


def test_the_front_holds_what_nothing_beats_in_both() -> None:
    values = [(0.5, 0.02), (0.6, 0.03), (0.55, 0.04), (0.6, 0.05), (0.4, 0.01), (0.7, 0.09), (0.3, 0.01), (0.9, 0.001)]
    trials = [trial(n, values=list(pair), feasible=n != 7) for n, pair in enumerate(values)]
    assert analysis.front(trials) == [4, 0, 1, 5]
    brute = {
        a["number"]
        for a in trials[:7]
        if not any(
            b["values"][0] >= a["values"][0] and b["values"][1] <= a["values"][1] and b["values"] != a["values"]
            for b in trials[:7]
        )
    }
    assert set(analysis.front(trials)) == brute
    assert "No other trial beats 4 trials in both" in told(record(*trials))
    assert "40.0% at 10 ms to 70.0% at 90 ms." in told(record(*trials))
    assert "No other trial beats 1 trial in both CAS and the time per image: 50.0% at 20 ms." in told(record(trials[0]))
    assert analysis.front([trial(0), stopped(1, 3)]) == []


def chosen(*trials: dict[str, Any], own: int | None = 0, objectives: str = "cas") -> dict[str, Any]:
    """A record of these trials with what the rule chooses, where trial ``own`` has the values of the recipe's row."""
    values = None if own is None else trials[own]["params"]
    choice = choose(trials, values, objectives)
    assert choice is not None
    params = trials[choice["chosen"]]["params"]
    return record(*trials, best_trial=choice["chosen"], choice=choice, best=params, selection={"images": 1000})


def placed(number: int, cas: float, *seconds: float, **more: Any) -> dict[str, Any]:
    """A finished trial with values of its own."""
    return trial(number, params={"guidance": 2.0 + number, "steps": 20}, values=[cas, *seconds], **more)


def test_the_choice_is_told_with_its_gain_here_and_why_that_flatters() -> None:
    said = told(chosen(placed(0, 0.5), placed(1, 0.534)))
    assert "Chosen: guidance 3, steps 20 (trial 1), with a CAS of 53.4% on the 1000 images" in said
    assert "It is better than the recipe’s own values by more than one standard error." in said
    assert "with 50.0%, trial 1 gets 34 images more right and 0 more wrong: +3.4 percentage points" in said
    assert "with a standard error of 0.6." in said
    assert "one of 2 finished trials on the images that chose it, so its CAS is too favourable" in said
    same = told(chosen(placed(0, 0.5), placed(1, 0.49)))
    assert "No trial is better than the recipe’s own values, which are kept." in same
    assert "too favourable" not in same
    # What cannot be told from the recipe's own values does not replace them.
    kept = told(chosen(placed(0, 0.6, right="1" * 24 + "0" * 16), placed(1, 0.65, right="0" * 7 + "1" * 26 + "0" * 7)))
    assert "Chosen: guidance 2, steps 20 (trial 0), with a CAS of 60.0%" in kept
    assert "Trial 1 is within one standard error of the recipe’s own values, which are kept." in kept
    assert "Trial 1 (guidance 3, steps 20) has the highest CAS, 65.0%." in kept
    assert "9 images more right and 7 more wrong: +5.0 percentage points, with a standard error of 9.8." in kept
    # Of two objectives, a faster one may be chosen than that of the highest CAS.
    pair = placed(0, 0.6, 0.05), placed(1, 0.599, 0.01)
    faster = told(chosen(*pair, objectives="cas_and_seconds"))
    assert (
        "No trial is more than one standard error better than the recipe’s own values, and this one is quicker."
        in faster
    )


def test_where_nothing_could_be_chosen_it_is_said_why() -> None:
    beyond = record(trial(0, feasible=False), best=None, limits={"max_seconds_per_image": None, "max_fid": 9.0})
    assert "Nothing was chosen, because none of the 1 finished trials is within tune.max_fid (9); the recipe" in told(
        beyond
    )
    nothing = told(record(failed(0), best=None))
    assert "no trial finished" in nothing
    assert "1 failed" in nothing


def test_what_a_limit_stopped_is_not_the_pruner_s_doing() -> None:
    slow = [stopped(number, 3, feasible=False) for number in (4, 5)]
    pruned = [trial(0), stopped(1, 3), stopped(2, 9), failed(3)]
    with_slow, without = (analysis.saved(own, RESOURCE) for own in ([*pruned, *slow], pruned))
    assert (with_slow["slow"], with_slow["seconds_slow"]) == (2, 4.0)
    assert with_slow | {"slow": 0, "seconds_slow": 0} == without
    said = told(record(*pruned, *slow))
    assert "1 finished, 2 were stopped early, 2 took longer for an image than tune.max_seconds_per_image" in said
    assert "The pruner stopped none" in told(record(trial(0), *slow))
    assert "are missing" not in told(record(*[ranked(n, n / 10, n / 10, n / 10) for n in range(4)], *slow))
    nothing = told(record(*slow, best=None))
    assert "2 of 2 trials took longer for an image than tune.max_seconds_per_image (0.01) allows; the recipe" in nothing
    assert "allows, and no other finished;" in told(record(*slow, failed(0), best=None))


def test_counts_and_shares_in_words() -> None:
    said = told(record(trial(0), stopped(1, 3), stopped(2, 9), failed(3)))
    assert "Of 4 trials 1 finished, 2 were stopped early, 1 failed." in said
    assert "took 48% of the images and 53% of the seconds" in said
    assert "pruning saved 52% and 47%." in said
    assert "it takes 20 finished trials" in said
    assert "nothing was saved" in told(record(trial(0)))


def test_shares_that_may_be_noise_are_called_so() -> None:
    found = {"trials": 20, "main": {"guidance": 0.61, "steps": 0.2}, "pairs": [], "r2": -0.2}
    made = {**record(trial(0)), **analysis.summarise(record(trial(0)))}
    assert "guidance 61%, steps 20%" in sentences.of(made | {"importance": found})[-1]
    assert "may be noise" in sentences.of(made | {"importance": found})[-1]
    assert "may be noise" not in sentences.of(made | {"importance": found | {"r2": 0.4}})[-1]
    # Where interactions are absent it is said why; one knob has none.
    few = "Interactions of knobs are not shown: it takes 160 finished trials to see them."
    assert few in sentences.of(made | {"importance": found})[-1]
    many = found | {"trials": 160, "pairs": [{"knobs": ["guidance", "steps"], "share": 0.3}]}
    assert "guidance × steps, 30%" in sentences.of(made | {"importance": many})[-1]
    assert few not in sentences.of(made | {"importance": many})[-1]
    assert few not in sentences.of(made | {"importance": found | {"main": {"guidance": 1.0}}})[-1]


def test_history_keeps_the_best_finished_one() -> None:
    of = record(trial(3, values=[0.7], feasible=False), ranked(0, 0, 0, 0.4), stopped(1, 9), ranked(2, 0, 0, 0.3))
    rows = plots.history(of)
    assert [(row["trial"], row["best"]) for row in rows] == [(0, 0.4), (1, 0.4), (2, 0.4), (3, 0.4)]
    assert rows[1]["cas"] == pytest.approx(0.19)
    assert [row["state"] for row in rows] == ["chosen", "pruned", "complete", "complete"]
    assert plots.history(record(failed(0)))[0] == {"trial": 0, "cas": None, "best": None, "state": "fail"}


def test_the_surface_follows_the_trials_and_stops_where_there_are_none() -> None:
    spots = [(g, s) for g in (1.0, 2.0, 3.0) for s in (5, 12, 20)]
    made = [trial(n, params={"guidance": g, "steps": s}, values=[0.3 + g / 10]) for n, (g, s) in enumerate(spots)]
    cells = plots.surface(record(*made))
    assert min(cell["cas"] for cell in cells) >= 0.4 and max(cell["cas"] for cell in cells) <= 0.6
    low = next(cell for cell in cells if cell["guidance"] < 1.5 and cell["steps"] < 6)
    high = next(cell for cell in cells if 3 < cell["guidance"] < 3.5 and cell["steps"] < 6)
    assert low["cas"] < high["cas"] - 0.05
    assert max(cell["guidance"] for cell in cells) < 7
    # Stopped trials were scored on fewer images.
    assert plots.surface(record(*made, stopped(20, 3))) == cells
    assert plots.surface(record(*made[:2])) == []


def test_the_contour_is_of_guidance_and_steps_or_of_what_numbers_there_are() -> None:
    lr = {"name": "FloatDistribution", "attributes": {"step": None, "low": 1e-4, "high": 1e-2, "log": True}}
    scheduler = {"name": "CategoricalDistribution", "attributes": {"choices": ["ddim", "pndm"]}}
    assert plots.axes({"space": {"lr": lr, "scheduler": scheduler, **SPACE}}) == ("guidance", "steps")
    assert plots.axes({"space": {"lr": lr, "scheduler": scheduler, "steps": SPACE["steps"]}}) == ("steps", "lr")
    assert plots.axes({"space": {"scheduler": scheduler, "steps": SPACE["steps"]}}) is None
    made = [trial(n, params={"lr": 10 ** (-4 + n / 2), "steps": 5 + 6 * n}) for n in range(5)]
    cells = plots.surface(record(*made, space={"lr": lr, "steps": SPACE["steps"]}))
    assert all(1e-4 < cell["lr"] < 1e-2 for cell in cells)
    assert {round(cell["lr"], 6) for cell in cells} >= {round(1e-4 * 100 ** ((i + 0.5) / 16), 6) for i in (3, 8, 12)}


def test_plots_are_tables_of_every_trial(tmp_path: Path) -> None:
    made = studied.record(26, two=True)
    plots.write_plots(made, tmp_path)
    tables = {path.stem: list(csv.DictReader(path.open())) for path in tmp_path.iterdir()}
    assert set(tables) == {"history", "rungs", "contour", "surface", "importance", "timeline", "front"}
    assert len(tables["history"]) == 26 == len(tables["timeline"])
    assert len(tables["rungs"]) == 3 * 25
    assert {row["of"] for row in tables["importance"]} == {"guidance", "steps"}
    assert {int(row["trial"]) for row in tables["front"] if row["front"] == "True"} == set(made["front"])
    assert min(float(row["started"]) for row in tables["timeline"]) == 0
    assert {row["worker"] for row in tables["timeline"]} == {"machine-a:4000", "machine-b:4001"}
    json.dumps(made, allow_nan=False)


def test_where_images_are_searched_a_rung_is_a_share_of_a_trials_own(tmp_path: Path) -> None:
    trials = [trial(n, **studied.own_images(4, 10, 30)) for n in range(5)]
    trials.append(stopped(5, 3, **studied.own_images(2, 2, 6)))
    of = record(*trials, **studied.OWN_IMAGES)
    of |= analysis.summarise(of)
    plots.write_plots(of, tmp_path)
    rows = list(csv.DictReader((tmp_path / "rungs.csv").open()))
    assert [int(row["images_per_class"]) for row in rows[:3]] == [4, 10, 30]
    assert [int(row["images_per_class"]) for row in rows if row["trial"] == "5"] == [2]
    same = sentences.of(of | {"rank_agreement": [{"rung": 3, "full": 27, "n": 5, "tau": 0.8}]})[-2]
    assert same.startswith("Kendall’s tau with the ranking at all images: 0.80 from 11% of a trial’s images, over 5")
    # Five trials of 30 and one of 6, which was stopped at 2.
    assert of["saved"]["resource_used"] == pytest.approx(152 / 156, abs=1e-4)
    older = {key: value for key, value in trials[0].items() if key != "images_per_class"}
    assert analysis.images(older, RESOURCE) == {3: 3, 9: 10, 27: 30}
    assert sentences.share({"resource": [1, 1000]}, 1) == "0.1%"
    assert sentences.rungs_text(of) == "11%, 33%, 100% of a trial’s images"
    assert sentences.rungs_text(record(trial(0))) == "3, 9, 27 images per class"


@pytest.mark.skipif(shutil.which("dvc") is None, reason="dvc is not on the path")
@pytest.mark.parametrize("count", [0, 8])
def test_dvc_draws_them_where_they_are_and_does_not_fail_where_they_are_not(count: int, tmp_path: Path) -> None:
    known = [plot for plot in yaml.safe_load((ROOT / "dvc.yaml").read_text())["plots"] if "/tune/" in str(plot)]
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"plots": known}, sort_keys=False))
    subprocess.run(["dvc", "init", "--no-scm", "-q"], cwd=tmp_path, check=True)
    shutil.copytree(ROOT / ".dvc/plots", tmp_path / ".dvc/plots")
    if count:
        plots.write_plots(studied.record(count), tmp_path / "results/plots/tune/stable_diffusion_tuned")
    done = subprocess.run(["dvc", "plots", "show", "--json"], cwd=tmp_path, check=True, capture_output=True, text=True)
    shown = json.loads(done.stdout)
    drawn = {name: plot[0]["content"] for name, plot in shown["data"].items() if plot}
    if not count:
        assert drawn == {}
        return
    # Of eight trials there is no importance to draw.
    assert {name for plot in known for name in plot} - set(drawn) == {"Study, importance"}
    assert len(drawn["Study, CAS by trial"]["data"]["values"]) == count
    assert drawn["Study, timeline"]["encoding"]["x"]["field"] == "started"
    assert drawn["Study, CAS by guidance and steps"]["encoding"]["y"]["field"] == "steps"
    assert drawn["Study, CAS by trial"]["spec"]["layer"][1]["encoding"]["y"]["field"] == "cas"
    assert "<DVC_METRIC" not in json.dumps(drawn)
    assert done.stderr == ""


def test_a_study_of_one_knob_has_no_contour(tmp_path: Path) -> None:
    of = record(*[trial(n, params={"guidance": 2.0 + n}) for n in range(4)], space={"guidance": SPACE["guidance"]})
    plots.write_plots({**of, **analysis.summarise(of)}, tmp_path)
    assert {path.stem for path in tmp_path.iterdir()} == {"history", "rungs", "importance", "timeline"}
