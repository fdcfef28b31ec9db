"""What is wrong with the store of a study is one sentence."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

import pytest

import toy_study
from dreamset.core.errors import InputError, StoppedError
from dreamset.study import loop

if TYPE_CHECKING:
    from pathlib import Path

    from optuna.trial import Trial


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("mysql://me:secret@host/studies", "kept in sqlite or postgresql, not in mysql"),
        ("postgresql+pg8000://me:secret@host/studies", "pip install -e '.\\[postgresql\\]'"),
        ("postgresql://me:secret@127.0.0.1:9/studies", "me:\\*\\*\\*@127.0.0.1:9/studies cannot be opened"),
        ("sqlite://", "names no file"),
        ("nonsense://me:secret@host:port/x", r"nonsense://me:\*\*\*@host:port/x is no URL"),
        ("sqlite:////proc/nowhere/studies.db", "sqlite:////proc/nowhere/studies.db cannot be opened"),
    ],
)
def test_a_store_that_cannot_be_used_is_named_in_a_sentence(url: str, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        loop.open_study(toy_study.tune(storage=url), "toy", ["maximize"])
    said = str(caught.value)
    assert said.startswith("tune.storage: ") and said.endswith(".") and "secret" not in said and "\n" not in said


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "studies.db").write_text("guidance,steps\n" * 100)
    with pytest.raises(InputError, match=r"cannot be opened \(file is not a database"):
        loop.open_study(toy_study.tune(storage="sqlite:///studies.db"), "toy", ["maximize"], tmp_path)


def test_a_relative_path_is_the_projects(tmp_path: Path) -> None:
    loop.open_study(toy_study.tune(storage="sqlite:///deep/studies.db"), "toy", ["maximize"], tmp_path)
    assert (tmp_path / "deep/studies.db").is_file()


def test_a_study_with_other_objectives_is_refused(tmp_path: Path) -> None:
    tune = toy_study.tune(storage="sqlite:///studies.db")
    loop.open_study(tune, "toy", ["maximize"], tmp_path)
    with pytest.raises(InputError, match=r"other objectives \(maximize, not maximize and minimize\)"):
        loop.open_study(tune, "toy", ["maximize", "minimize"], tmp_path)


def test_a_store_of_another_optuna_is_refused(tmp_path: Path) -> None:
    tune = toy_study.tune(storage="sqlite:///studies.db")
    loop.open_study(tune, "toy", ["maximize"], tmp_path)
    with sqlite3.connect(tmp_path / "studies.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'v2.6.0.a'")
    with pytest.raises(InputError, match="made by another version of Optuna"):
        loop.open_study(tune, "toy", ["maximize"], tmp_path)


def test_a_store_that_goes_away_leaves_a_sentence(tmp_path: Path) -> None:
    tune = toy_study.tune(storage="sqlite:///studies.db", trials=4)
    study = loop.open_study(tune, "toy", ["maximize"], tmp_path)

    def losing(trial: Trial) -> float:
        (tmp_path / "studies.db").write_text("no database any more" * 1000)
        return toy_study.objective(trial)

    with pytest.raises(StoppedError, match=r"tune.storage: sqlite:///studies.db does not answer any more"):
        toy_study.optimise(study, tune, losing)
