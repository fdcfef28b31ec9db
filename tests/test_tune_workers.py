"""Several workers of a study: whose folders go and when, and what `gc` leaves them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from dreamset import tune
from dreamset.command import cli, verbs
from dreamset.core import locks
from dreamset.core.workspace import Workspace
from dreamset.data.work import Work
from dreamset.study.objective import Objective
from small_study import BASE, LORA, PLAIN, RUNGS, parameters, scored_by

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dreamset.params import Params


@pytest.fixture
def small(tiny_generator: Path) -> Callable[..., Params]:
    return parameters(tiny_generator)


def test_who_writes_the_results_leaves_the_folders_of_live_workers(
    small: Callable[..., Params], place: Workspace
) -> None:
    params = small(tune__trials=1, **{f"{BASE}tune__per_class": [1]})
    folder = tune.objective(Work.read(params, place, PLAIN)).folder
    for name in ("here-1", "there-2"):
        (folder / name / "1234/part0").mkdir(parents=True)
    lock = locks.take(folder / "here-1.lock")
    assert lock is not None
    tune.run(params, place, PLAIN)
    assert sorted(path.name for path in folder.iterdir()) == ["here-1", "here-1.lock"]
    # A worker that ends after the results are there leaves nothing behind, nor do those that have died.
    lock.release()
    tune.join(params, place, PLAIN)
    assert not folder.exists()


def test_a_worker_leaves_trials_and_no_results(
    small: Callable[..., Params], place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = small(tune__trials=2)
    monkeypatch.setattr(verbs, "opened", lambda arguments: (params, place))
    cli.main(["tune", PLAIN, "--worker"])
    assert not place.result("tune", PLAIN).exists()
    scored_by(monkeypatch, lambda knobs, rung: 1 / 0)
    # Both trials are there: the stage runs none, and says what they say.
    assert tune.run(params, place, PLAIN)["trials"] == 2


def test_gc_waits_for_workers(
    small: Callable[..., Params], place: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    params = small(tune__trials=1)
    monkeypatch.setattr(verbs, "opened", lambda arguments: (params, place))

    def score(knobs: dict[str, Any], rung: int) -> float:
        with pytest.raises(SystemExit, match="1"):
            cli.main(["gc"])
        return 0.5

    scored_by(monkeypatch, score)
    cli.main(["tune", PLAIN, "--worker"])
    refused = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dreamset: gc:")]
    assert len(refused) == len(RUNGS)
    assert f"gc: study {PLAIN}-" in refused[0] and f"({locks.process()}) is running" in refused[0]
    cli.main(["gc"])


def test_gc_keeps_what_an_unfinished_study_uses(
    small: Callable[..., Params], place: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    search = {"epoch": {"low": 0.5, "high": 1.0}}
    params = small(tune__trials=1, active=[LORA], **{f"recipes__{LORA}__search": search, f"{BASE}adapt__kept": 2})
    opened = [params]
    monkeypatch.setattr(verbs, "opened", lambda arguments: (opened[0], place))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Objective, "_score", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        tune.join(params, place, LORA)
    before = set(place.shards.glob("[!.]*"))
    # Of each of four folds the adapter at its end, what was kept half way, and the images of the first rung.
    assert len(before) >= 4 * 3
    cli.main(["gc"])
    assert set(place.shards.glob("[!.]*")) == before
    # Of a study that no row asks for any more nothing stays, if its worker is gone.
    opened[0] = small()
    (study,) = place.trials.glob("*")
    lock = locks.take(study / f"{locks.process()}{locks.SUFFIX}")
    assert lock is not None
    with pytest.raises(SystemExit, match="1"):
        cli.main(["gc"])
    assert set(place.shards.glob("[!.]*")) == before
    lock.release()
    cli.main(["gc"])
    assert not study.exists()
    assert not list(place.shards.glob("[!.]*"))


def test_a_worker_that_is_done_leaves_no_folder(small: Callable[..., Params], place: Workspace) -> None:
    params = small(tune__trials=1)
    tune.join(params, place, PLAIN)
    assert not list(place.trials.glob("*/*"))
