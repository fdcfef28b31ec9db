"""The loop that runs the trials of a study, with any number of workers that come and go.

Optuna's own loop gives up a stopped trial. It also kills a worker that wakes up after its trial went to another one.
In this loop, a worker leaves a trial in one of these ways:

- The trial ends: complete, pruned, or failed with its ``reason``.
- The worker is stopped, or the machine cannot go on. The next worker, however late, continues the same trial by its
  number. So a stopped study has the same trials as one that was never stopped.
- The worker is killed. On one machine the next worker continues the trial by its number, however often. From other
  machines nobody sees the kill; there the trial is stale once its heartbeat has been silent for ``tune.grace_s``.
- The trial is stale. It fails and is tried again under a new number, with its values.

A kill is not the trial's fault, unless workers die at the same step of it one after the other (``kills``). After more
than ``tune.retries`` of them the trial fails for good.

``tune.trials`` counts the trials of all workers that ended and were not tried again.
"""

from __future__ import annotations

import math
import os
import socket
import sys
import threading
import time
import warnings
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from dreamset.core import locks
from dreamset.core.addresses import without_password
from dreamset.core.errors import InputError, StoppedError
from dreamset.core.files import disk_full
from dreamset.core.progress import bar
from dreamset.study import kills, storage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import optuna
    from optuna.trial import FrozenTrial, Trial, TrialState

    from dreamset.params.sections import Tune

    Objective = Callable[[Trial], float | tuple[float, float]]

_POLL: Final = 5.0  # seconds between two looks at the trials of other workers
_NAME: Final = "name"  # user attribute of a study: its name without the hash of the code
# System attributes that pass to the new number of a trial that is tried again. The others are notes of pruners and
# constraints, which a new trial must not begin with.
_INHERITED: Final = ("failed_trial", "retry_history", "fixed_params")


@dataclass(frozen=True)
class _Claim:
    """A trial that this worker runs, and its lock beside a SQLite file."""

    trial: Trial
    lock: locks.Lock | None


def worker() -> str:
    """Return the name of this process over all machines: host and process number."""
    return f"{socket.gethostname()}:{os.getpid()}"


def open_study(
    tune: Tune,
    name: str,
    directions: Sequence[Literal["maximize", "minimize"]],
    root: Path | None = None,
    code: str = "",
) -> optuna.Study:
    """Return the study of that name in ``tune.storage``; one of the workers creates it if it is missing.

    Trials that other code scored do not mix with new ones: in the store the name of a study ends in a hash of the code.
    Nothing that is seeded depends on that ending.

    Args:
        tune: the section of the parameters.
        name: of the study; Hyperband's brackets depend on it.
        directions: of each objective.
        root: the folder that a relative path of SQLite starts from; None: the current folder.
        code: hash of the code that scores a trial; empty: the name stands alone.

    Raises:
        InputError: the store cannot be used, or has a study of that name with other directions.
        StoppedError: the store is gone.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    store = storage.connect(tune, root or Path.cwd(), partial(_retry_stale, tune))

    stored = f"{name}.{code[:8]}" if code else name
    with _stopping_if_gone(tune):
        study = optuna.create_study(storage=store, study_name=stored, directions=list(directions), load_if_exists=True)
        study.set_user_attr(_NAME, name)
        existing = [direction.name.lower() for direction in study.directions]
    if existing != list(directions):
        raise InputError(
            f"tune.storage: study {stored} in {without_password(tune.storage)} exists with other objectives "
            f"({' and '.join(existing)}, not {' and '.join(directions)}); remove it with `optuna delete-study`, or "
            "name another store."
        )
    return study


def optimise(
    study: optuna.Study,
    objective: Objective,
    tune: Tune,
    seed: int,
    max_resource: int,
    min_resource: int,
    first: Iterable[dict[str, Any]],
) -> None:
    """Run trials until ``tune.trials`` of them have ended, those of other workers included.

    A trial ends with values, with ``optuna.TrialPruned`` or with an ``InputError``. An error fails the trial, its
    sentence becomes the user attribute ``reason``, and the study goes on. Before the call of ``objective`` a trial has
    the attributes ``worker``, ``started`` (epoch seconds) and ``retried_from`` (the number of the trial it repeats).

    Args:
        study: of ``open_study``; this function sets its sampler and pruner.
        objective: of one trial. It is called again with an unfinished trial.
        tune: the section of the parameters.
        seed: of the sampler.
        max_resource: images per class at the last rung.
        min_resource: images per class at the first.
        first: values of the trials before those that the sampler draws.

    Raises:
        InputError: all trials of the study failed.
        StoppedError: the store is gone.
    """
    import optuna

    from dreamset.study import sampling

    study.sampler = sampling.sampler(tune.sampler, seed)
    study.pruner = sampling.pruner(tune, min_resource, max_resource, study.user_attrs[_NAME])
    with _stopping_if_gone(tune), bar(total=tune.trials, what="tune", unit="trial") as progress:
        with storage.exclusive(study):
            for values in first:
                study.enqueue_trial(values, skip_if_exists=True)
        waiting = False
        while True:
            locks.boundary()
            with storage.exclusive(study):
                claim = _claim(study, tune)
                trials = study.get_trials(deepcopy=False)
            progress.n = min(len(ended(trials)), tune.trials)
            progress.refresh()
            if claim is not None:
                waiting = False
                _run(study, objective, claim, tune)
            elif len(ended(trials)) >= tune.trials:
                break
            else:
                if not waiting:
                    _print(f"waiting for {_count(_running(trials))} that other workers run.")
                waiting = True
                time.sleep(min(_POLL, tune.heartbeat_s))
    if all(trial.state == optuna.trial.TrialState.FAIL for trial in trials):
        reasons = [why for trial in trials if (why := reason(trial))]
        raise InputError(f"{study.study_name}: all of its {_count(trials)} failed; the last: {reasons[-1]}")


def repeated(trials: Iterable[FrozenTrial]) -> set[int]:
    """Return the numbers of the failed trials that were tried again."""
    return {number for trial in trials for number in trial.system_attrs.get("retry_history", ())}


def ended(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials that count: those that ended and were not tried again."""
    again = repeated(trials)
    return [trial for trial in trials if trial.state.is_finished() and trial.number not in again]


def reason(trial: FrozenTrial) -> str | None:
    """Return why a trial failed; None for a trial that did not fail."""
    import optuna

    if trial.state != optuna.trial.TrialState.FAIL:
        return None
    silent = f"its worker {trial.user_attrs.get('worker') or 'without a name'} fell silent"
    return str(trial.user_attrs.get("reason", silent))


def _claim(study: optuna.Study, tune: Tune) -> _Claim | None:
    """Return the next trial, claimed by this worker: an abandoned one, a waiting one or a new one; None without any."""
    import optuna

    trials = study.get_trials(deepcopy=False)
    if len(ended(trials)) >= tune.trials:
        return None
    # This comes before the test for stale trials, so that a stopped trial also continues after the grace.
    for trial in _running(trials):
        if (claim := _take_over(study, trial, tune)) is not None:
            return claim
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        optuna.storages.fail_stale_trials(study)
    trials = study.get_trials(deepcopy=False)
    if len(ended(trials)) >= tune.trials:
        return None
    waiting = any(trial.state == optuna.trial.TrialState.WAITING for trial in trials)
    if not waiting and len(trials) - len(repeated(trials)) >= tune.trials:
        return None
    with warnings.catch_warnings():
        # Optuna warns that its heartbeat works in its own loop alone; this loop has `_heartbeat`.
        warnings.simplefilter("ignore", UserWarning)
        new = study.ask()
    return _mark(study, new, storage.hold(study, new._trial_id))


def _take_over(study: optuna.Study, trial: FrozenTrial, tune: Tune) -> _Claim | None:
    """Claim a running trial if its worker has abandoned it or is known to be dead; None if not."""
    import optuna

    previous = trial.user_attrs.get("worker")
    lock = storage.hold(study, trial._trial_id, taken_over=True)
    # The worker may have ended the trial since it was read. A trial has the name of its worker before others can see
    # it. Without a name the worker was stopped, or died in between.
    now = study._storage.get_trial(trial._trial_id)
    if now.state != optuna.trial.TrialState.RUNNING or (lock is None and previous):
        if lock is not None:
            lock.release()
        return None
    lock = lock or storage.hold(study, trial._trial_id)
    lost = kills.count(now.user_attrs) if previous else {}
    if lost and (why := kills.exceeds(lost, tune.retries)) is not None:
        study._storage.set_trial_user_attr(trial._trial_id, "reason", why)
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        if lock is not None:
            lock.release()
        _print(f"trial {trial.number} failed: {why}.")
        return None
    if previous:
        _print(f"trial {trial.number}: its worker {previous} is gone; going on with it.")
    again = optuna.Trial(study, trial._trial_id)
    # The step is forgotten first: if this worker dies here, the loss of the one before is not counted twice.
    for name, value in ({kills.STEP: None} | lost).items():
        again.set_user_attr(name, value)
    return _mark(study, again, lock)


def _mark(study: optuna.Study, trial: Trial, lock: locks.Lock | None) -> _Claim:
    """Mark a trial as this worker's before any other can look; the worker's name comes last and completes the marks."""
    if (database := storage.backend(study)) is not None:
        database.record_heartbeat(trial._trial_id)
    before = study._storage.get_trial(trial._trial_id).system_attrs.get("failed_trial")
    if before is not None:
        trial.set_user_attr("retried_from", before)
    trial.set_user_attr("started", time.time())
    trial.set_user_attr("worker", worker())
    return _Claim(trial, lock)


def _run(study: optuna.Study, objective: Objective, claim: _Claim, tune: Tune) -> None:
    """Run one trial to its end.

    Raises:
        Exception: what ``objective`` raised. An error that has nothing to do with the trial's values leaves the trial
            to others. An unforeseen one fails it, and is not raised if another worker has the trial meanwhile.
    """
    from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError

    trial = claim.trial
    unforeseen: Exception | None = None
    try:
        with _heartbeat(study, trial, tune):
            values, state, why, unforeseen = _outcome(objective, trial)
        if why is not None:
            trial.set_user_attr("reason", why)
            _print(f"trial {trial.number} failed: {why}")
        lost = study.tell(trial, values, state, skip_if_finished=True).state != state
    except UpdateFinishedTrialError:
        lost = True
    except StorageInternalError:
        raise  # the store is gone; the lock's file stays, so that a later worker can take the trial over
    except BaseException:
        with suppress(UpdateFinishedTrialError):  # another worker has the trial already
            trial.set_user_attr("worker", None)  # anybody may continue it
        _release(claim)
        raise
    _release(claim)
    if lost:  # this process was paused for longer than the grace
        _print(f"trial {trial.number}: was silent for too long and given to another worker; going on with the next.")
    elif unforeseen is not None:
        raise unforeseen


def _outcome(
    objective: Objective, trial: Trial
) -> tuple[float | tuple[float, float] | None, TrialState, str | None, Exception | None]:
    """Return the values and the state of a trial, why it failed, and its error if that was unforeseen."""
    from optuna.exceptions import StorageInternalError, TrialPruned, UpdateFinishedTrialError
    from optuna.trial import TrialState

    try:
        with warnings.catch_warnings():
            # A trial that was taken over reports the same values again.
            warnings.filterwarnings("ignore", message="The (reported|constraint) value is ignored")
            values = objective(trial)
    except TrialPruned:
        return None, TrialState.PRUNED, None, None
    except InputError as error:
        return None, TrialState.FAIL, str(error), None
    except (StoppedError, StorageInternalError, UpdateFinishedTrialError):
        raise
    except Exception as error:
        if disk_full(error, Path.cwd()) is not None:
            raise
        return None, TrialState.FAIL, f"{type(error).__name__}: {error}", error
    if any(math.isnan(value) for value in (values if isinstance(values, tuple) else (values,))):
        return None, TrialState.FAIL, f"the objective gave {values}", None
    return values, TrialState.COMPLETE, None, None


def _release(claim: _Claim) -> None:
    if claim.lock is not None:
        claim.lock.release()


@contextmanager
def _heartbeat(study: optuna.Study, trial: Trial, tune: Tune) -> Iterator[None]:
    """Run a thread that reports every ``tune.heartbeat_s`` that this worker is alive."""
    from optuna.exceptions import StorageInternalError

    database = storage.backend(study)
    if database is None:
        yield
        return
    over = threading.Event()

    def beat() -> None:
        while not over.wait(tune.heartbeat_s):
            try:
                database.record_heartbeat(trial._trial_id)
            except StorageInternalError as error:
                # If the server comes back within the grace, nothing is lost.
                _print(f"no heartbeat of trial {trial.number}: {storage.cause(error)}.")
        database.remove_session()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _retry_stale(tune: Tune, study: optuna.Study, trial: FrozenTrial) -> None:
    """Queue a trial again that failed because its worker fell silent, unless it is suspected (``kills``)."""
    import optuna

    lost = kills.count(trial.user_attrs)
    silent = f"its worker {trial.user_attrs.get('worker')} has been silent for over {tune.grace_s} s"
    if (why := kills.exceeds(lost, tune.retries)) is not None:
        _print(f"trial {trial.number}: {silent}; it is not tried again, since {why}.")
        return
    trial.system_attrs = {key: value for key, value in trial.system_attrs.items() if key in _INHERITED}
    trial.user_attrs = lost
    if "fixed_params" in trial.system_attrs:
        # The recipe's own values may lie outside the ranges, where Optuna takes them from here alone.
        trial.params, trial.distributions = {}, {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        optuna.storages.RetryHeartbeatStaleTrialCallback()(study, trial)
    _print(f"trial {trial.number}: {silent}; it is tried again.")


@contextmanager
def _stopping_if_gone(tune: Tune) -> Iterator[None]:
    """Turn the errors of a store that is gone into a ``StoppedError``."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (StorageInternalError, SQLAlchemyError) as error:
        raise StoppedError(
            f"tune.storage: {without_password(tune.storage)} does not answer any more ({storage.cause(error)}); when "
            "it does again, run the same command to go on."
        ) from error


def _running(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    from optuna.trial import TrialState

    return [trial for trial in trials if trial.state == TrialState.RUNNING]


def _count(trials: Sequence[FrozenTrial]) -> str:
    return f"{len(trials)} trial{'' if len(trials) == 1 else 's'}"


def _print(text: str) -> None:
    print(f"dreamset: tune: {text}", file=sys.stderr, flush=True)
