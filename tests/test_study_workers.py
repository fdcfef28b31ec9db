"""Several workers of one study, as processes that are killed, stopped and woken, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import postgres
import toy_study
from dreamset.core.errors import InputError
from dreamset.study import loop
from faults import _main, finish, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.process import BaseProcess

    from optuna.trial import FrozenTrial, Trial

_fork = multiprocessing.get_context("fork")  # with the libraries loaded: a worker begins at once


def _work(url: str, trials: int, seconds: float, settings: dict[str, int]) -> None:
    """A worker of the toy study: trials of three rungs, ``seconds`` each in all; what it does goes to ``log_PID``."""
    tune = toy_study.tune(storage=url, trials=trials, heartbeat_s=1, grace_s=3, **settings)
    with Path(f"log_{os.getpid()}").open("w", buffering=1) as log:

        def objective(trial: Trial) -> float:
            def pause(rung: int) -> None:
                log.write(f"trial {trial.number} rung {rung}\n")
                time.sleep(seconds / 3)

            return toy_study.objective(trial, pause)

        study = loop.open_study(tune, "toy", ["maximize"])
        toy_study.optimise(study, tune, objective)
        log.write("done\n")


@dataclass
class Worker:
    """A worker's process, what it has done, and what it says at its end."""

    process: BaseProcess
    folder: Path

    @property
    def done(self) -> str:
        path = self.folder / f"log_{self.process.pid}"
        return path.read_text() if path.is_file() else ""

    @property
    def trial(self) -> int:
        """The number of the one that it runs now."""
        return int(self.done.split()[-3])

    def within_a_trial(self) -> None:
        """Wait until it has begun another one."""
        before = self.done.count("rung 3")
        until(lambda: self.done.count("rung 3") > before)

    def send(self, number: signal.Signals) -> None:
        assert self.process.pid
        os.kill(self.process.pid, number)

    def finish(self) -> tuple[int, str]:
        return finish(self.process, self.folder)


class Workers:
    """Those that a test starts, ended with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.all: list[Worker] = []

    def start(self, url: str, trials: int, seconds: float, **settings: int) -> Worker:
        process = _fork.Process(target=_main, args=(self.folder, _work, (url, trials, seconds, settings)))
        process.start()
        self.all.append(Worker(process, self.folder))
        return self.all[-1]


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    started = Workers(tmp_path)
    yield started
    for worker in started.all:
        worker.process.kill()
        worker.process.join()


@pytest.fixture(scope="module")
def server() -> Iterator[postgres.Server]:
    with postgres.running() as started:
        yield started


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty store of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/studies.db"
    return _emptied(request.getfixturevalue("server"))


def _emptied(server: postgres.Server) -> str:
    import psycopg

    address = {"host": "127.0.0.1", "port": server.port, "user": postgres.USER, "password": postgres.PASSWORD}
    with psycopg.connect(**address, dbname=postgres.DATABASE) as connection:  # type: ignore[arg-type]
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
    return server.url


def _trials(url: str) -> list[FrozenTrial]:
    return loop.open_study(toy_study.tune(storage=url, heartbeat_s=1, grace_s=3), "toy", ["maximize"]).trials


def _check_accounted(trials: list[FrozenTrial], wanted: int) -> None:
    """Every trial has ended; as many count as were wanted, and one alone began with the recipe's values."""
    states = Counter(trial.state.name for trial in trials)
    assert not states["RUNNING"] and not states["WAITING"], states
    ended = loop.ended(trials)
    assert len(ended) == wanted, states
    assert [trial.params for trial in ended].count(toy_study.FIRST) == 1


def test_workers_that_meet_an_empty_store_share_the_trials(workers: Workers, url: str) -> None:
    started = [workers.start(url, 9, 0.3) for _ in range(3)]
    assert [worker.finish()[0] for worker in started] == [0, 0, 0]
    trials = _trials(url)
    _check_accounted(trials, 9)
    assert len(trials) == 9
    assert len({trial.user_attrs["worker"] for trial in trials}) > 1
    # No trial was run by two.
    rungs = "".join(worker.done for worker in started).splitlines()
    assert not [line for line, count in Counter(rungs).items() if count > 1 and line != "done"]


def test_of_two_workers_one_is_killed_and_every_trial_is_accounted_for(workers: Workers, url: str) -> None:
    victim, other = (workers.start(url, 6, 0.9) for _ in range(2))
    until(lambda: "rung 3" in other.done)
    victim.within_a_trial()
    victim.send(signal.SIGKILL)
    victim.finish()
    lost = victim.trial
    status, said = other.finish()
    assert status == 0, said
    trials = _trials(url)
    _check_accounted(trials, 6)
    if url.startswith("sqlite"):
        assert f"trial {lost}: its worker" in said and "is gone; going on with it" in said
        assert len(trials) == 6 and trials[lost].user_attrs["killed"] == 1
    else:
        assert f"trial {lost}: its worker" in said and "it is tried again" in said
        assert trials[lost].state.name == "FAIL" and "fell silent" in (loop.reason(trials[lost]) or "")
        [again] = [trial for trial in trials if trial.user_attrs.get("retried_from") == lost]
        assert again.params == trials[lost].params


def test_a_worker_paused_past_its_grace_wakes_and_goes_on(workers: Workers, url: str) -> None:
    sleeper, other = (workers.start(url, 6, 0.9) for _ in range(2))
    until(lambda: "rung 3" in other.done)
    sleeper.within_a_trial()
    sleeper.send(signal.SIGSTOP)
    lost = sleeper.trial
    until(lambda: loop.repeated(_trials(url)) == {lost}, 30)
    sleeper.send(signal.SIGCONT)
    status, said = sleeper.finish()
    assert status == 0, said
    assert said.startswith(f"dreamset: tune: trial {lost}: was silent for too long") and "done" in sleeper.done
    status, said = other.finish()
    assert status == 0, said
    assert "silent for over 3 s; it is tried again" in said
    _check_accounted(_trials(url), 6)


@pytest.mark.parametrize(
    ("url", "number"),
    [
        ("sqlite", signal.SIGINT),
        ("sqlite", signal.SIGKILL),
        # Who was killed elsewhere is told by silence alone.
        pytest.param("postgresql", signal.SIGINT, marks=pytest.mark.postgres),
    ],
    indirect=["url"],
)
def test_a_worker_that_is_stopped_leaves_a_study_that_goes_on_as_if_it_had_not(
    workers: Workers, url: str, number: signal.Signals
) -> None:
    first = workers.start(url, 6, 0.6)
    until(lambda: "trial 3 rung 3" in first.done)
    first.send(number)
    assert first.finish()[0] != 0
    # However late it is gone on with.
    toy_study.silent_for_long(loop.open_study(toy_study.tune(storage=url, heartbeat_s=1), "toy", ["maximize"]))
    assert workers.start(url, 6, 0).finish()[0] == 0
    study = loop.open_study(toy_study.tune(trials=6), "toy", ["maximize"])
    toy_study.optimise(study, toy_study.tune(trials=6))
    assert toy_study.told(_trials(url)) == toy_study.told(study.trials)


def test_a_trial_that_kills_its_workers_is_given_up(workers: Workers, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/studies.db"
    for _ in range(2):
        worker = workers.start(url, 2, 30, retries=1)
        until(lambda: "trial 0 rung 3" in worker.done)  # noqa: B023
        worker.process.kill()
        worker.finish()
    status, said = workers.start(url, 2, 0, retries=1).finish()
    assert status == 0, said
    trials = _trials(url)
    assert [trial.state.name for trial in trials] == ["FAIL", "COMPLETE"]
    assert loop.reason(trials[0]) == "2 workers in a row were lost at its step rung 3"


@pytest.mark.postgres
def test_a_server_that_restarts_within_a_trial_loses_nothing(workers: Workers, server: postgres.Server) -> None:
    url = _emptied(server)
    worker = workers.start(url, 2, 3)
    until(lambda: "trial 0 rung 3" in worker.done)
    server.stop()
    server.start()
    status, said = worker.finish()
    assert status == 0, said
    trials = _trials(url)
    assert len(trials) == 2
    _check_accounted(trials, 2)


@pytest.mark.postgres
def test_a_wrong_password_is_a_sentence_without_it(server: postgres.Server) -> None:
    wrong = server.url.replace("tests", "other")
    with pytest.raises(InputError, match=r"tuner:\*\*\*@127.0.0.1:\d+/postgres cannot be opened .*password") as caught:
        loop.open_study(toy_study.tune(storage=wrong), "toy", ["maximize"])
    assert "other" not in str(caught.value) and "{only}" not in str(caught.value)
