"""The trials of a study, run by any number of workers that come and go.

Optuna's own loop lets a worker die that wakes after its trial was given to another, and gives a stopped trial up. Here
a trial is left in one of these ways:

- it ends: complete, pruned, or failed with its ``reason``;
- its worker is stopped, or the machine can go no further: whoever comes next, however late, goes on with the same
  trial, by its number, so that a study that was stopped is the one that was not;
- its worker is killed: the same on one machine, ``tune.retries`` times at most, since the trial may be why; elsewhere
  nobody can tell, and it is stale when its heartbeat has been silent for ``tune.grace_s``;
- it is stale: failed, and tried again under a new number, ``tune.retries`` times at most.

``tune.trials`` counts what ended and was not tried again, over all workers.
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

from dreamset.addresses import shown
from dreamset.core import locks
from dreamset.core.errors import InputError, StoppedError
from dreamset.core.files import disk_full
from dreamset.core.progress import bar
from dreamset.study import storage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import optuna
    from optuna.trial import FrozenTrial, Trial, TrialState

    from dreamset.params.sections import Tune

    Objective = Callable[[Trial], float | tuple[float, float]]

_POLL: Final = 5.0  # seconds between two looks at what other workers still run
# Of a trial that is tried again: whose it was, and values that were asked for. Pruners and constraints leave notes,
# too, which the new trial must not begin with.
_KEPT: Final = ("failed_trial", "retry_history", "fixed_params")


@dataclass(frozen=True)
class _Claim:
    """A trial that is this worker's, and its lock beside a SQLite file."""

    trial: Trial
    lock: locks.Lock | None


def worker() -> str:
    """The name of this process over all machines: host and process number."""
    return f"{socket.gethostname()}:{os.getpid()}"


def open_study(
    tune: Tune, name: str, directions: Sequence[Literal["maximize", "minimize"]], root: Path | None = None
) -> optuna.Study:
    """The study of that name in ``tune.storage``; made where it is missing, by one of the workers that want it.

    Args:
        tune: the section of the parameters.
        name: of the study; Hyperband's brackets depend on it.
        directions: of each objective.
        root: the folder that a relative path of SQLite starts from; None: the current one.

    Raises:
        InputError: the store cannot be used, or holds a study of that name with other directions.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    kept = storage.connect(tune, root or Path.cwd(), partial(_stale, tune))
    with _unless_gone(tune):
        study = optuna.create_study(storage=kept, study_name=name, directions=list(directions), load_if_exists=True)
        found = [direction.name.lower() for direction in study.directions]
    if found != list(directions):
        raise InputError(
            f"tune.storage: study {name} in {shown(tune.storage)} is there with other objectives "
            f"({' and '.join(found)}, not {' and '.join(directions)}); remove it with `optuna delete-study`, or name "
            "another store."
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

    A trial ends in ``optuna.TrialPruned``, in values, or in an ``InputError``: then it is failed, with the sentence in
    its user attribute ``reason``, and the study goes on. ``worker``, ``started`` (epoch seconds) and ``retried_from``
    (the number of the trial that it repeats) are set before ``objective`` is called.

    Args:
        study: of ``open_study``; its sampler and pruner are set here.
        objective: of one trial. It is called again with a trial that it has left half done.
        tune: the section of the parameters.
        seed: of the sampler.
        max_resource: images per class at the last rung.
        min_resource: images per class at the first.
        first: values of the trials that come before what the sampler draws.

    Raises:
        InputError: no trial of the study has come to a value.
        StoppedError: the store is gone.
    """
    import optuna

    from dreamset.study import sampling

    study.sampler = sampling.sampler(tune.sampler, seed)
    study.pruner = sampling.pruner(tune, min_resource, max_resource)
    with _unless_gone(tune), bar(total=tune.trials, what="tune", unit="trial") as progress:
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
                    _say(f"waiting for {_count(_running(trials))} that other workers run.")
                waiting = True
                time.sleep(min(_POLL, tune.heartbeat_s))
    if all(trial.state == optuna.trial.TrialState.FAIL for trial in trials):
        reasons = [found for trial in trials if (found := reason(trial))]
        raise InputError(f"{study.study_name}: all of its {_count(trials)} failed; the last: {reasons[-1]}")


def repeated(trials: Iterable[FrozenTrial]) -> set[int]:
    """Numbers of the failed trials that were tried again."""
    return {number for trial in trials for number in trial.system_attrs.get("retry_history", ())}


def ended(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that count: those that ended and were not tried again."""
    again = repeated(trials)
    return [trial for trial in trials if trial.state.is_finished() and trial.number not in again]


def reason(trial: FrozenTrial) -> str | None:
    """Why a trial failed; None of one that did not."""
    import optuna

    if trial.state != optuna.trial.TrialState.FAIL:
        return None
    silent = f"its worker {trial.user_attrs.get('worker') or 'without a name'} fell silent"
    return str(trial.user_attrs.get("reason", silent))


def _claim(study: optuna.Study, tune: Tune) -> _Claim | None:
    """The trial to run next, marked as this worker's: one that was left, one that waits, or a new one."""
    import optuna

    trials = study.get_trials(deepcopy=False)
    if len(ended(trials)) >= tune.trials:
        return None
    # Before any is called stale: what was stopped, and went on with after the grace, goes on as within it.
    for trial in _running(trials):
        if (left := _take_over(study, trial, tune)) is not None:
            return left
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
        # Optuna's heartbeat beats in its own loop alone; `_beating` is this one's.
        warnings.simplefilter("ignore", UserWarning)
        asked = study.ask()
    return _mine(study, asked, storage.hold(study, asked._trial_id))


def _take_over(study: optuna.Study, trial: FrozenTrial, tune: Tune) -> _Claim | None:
    """A running trial whose worker has left it, or is known to be dead."""
    import optuna

    whose = trial.user_attrs.get("worker")
    lock = storage.hold(study, trial._trial_id, taken_over=True)
    # Its worker may have ended it since it was read. A worker is named before others can look: one without a name
    # has been stopped, or died between the two.
    now = study._storage.get_trial(trial._trial_id)
    if now.state != optuna.trial.TrialState.RUNNING or (lock is None and whose):
        if lock is not None:
            lock.release()
        return None
    lock = lock or storage.hold(study, trial._trial_id)
    killed = int(now.user_attrs.get("killed", 0)) + bool(whose)
    if killed > tune.retries:
        study._storage.set_trial_user_attr(trial._trial_id, "reason", f"its worker was killed {killed} times")
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        if lock is not None:
            lock.release()
        _say(f"trial {trial.number} failed: its worker was killed {killed} times.")
        return None
    if whose:
        _say(f"trial {trial.number}: its worker {whose} is gone; going on with it.")
    taken = optuna.Trial(study, trial._trial_id)
    taken.set_user_attr("killed", killed)
    return _mine(study, taken, lock)


def _mine(study: optuna.Study, trial: Trial, lock: locks.Lock | None) -> _Claim:
    """Marks of the worker, set before any other can look; the name last, since it says that the rest is there."""
    if (database := storage.backend(study)) is not None:
        database.record_heartbeat(trial._trial_id)
    before = study._storage.get_trial(trial._trial_id).system_attrs.get("failed_trial")
    if before is not None:
        trial.set_user_attr("retried_from", before)
    trial.set_user_attr("started", time.time())
    trial.set_user_attr("worker", worker())
    return _Claim(trial, lock)


def _run(study: optuna.Study, objective: Objective, claim: _Claim, tune: Tune) -> None:
    """One trial to its end.

    Raises:
        Exception: whatever ``objective`` raised that says nothing of the trial's values, which is then left to others,
            or that nobody foresaw, which fails it; not of a trial that was given to another worker meanwhile.
    """
    from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError

    trial = claim.trial
    unforeseen: Exception | None = None
    try:
        with _beating(study, trial, tune):
            values, state, why, unforeseen = _outcome(objective, trial)
        if why is not None:
            trial.set_user_attr("reason", why)
            _say(f"trial {trial.number} failed: {why}")
        lost = study.tell(trial, values, state, skip_if_finished=True).state != state
    except UpdateFinishedTrialError:
        lost = True
    except StorageInternalError:
        raise  # nothing can be said in the store; the lock is left behind, for whoever finds it back
    except BaseException:
        with suppress(UpdateFinishedTrialError):  # it was lost, and is another's already
            trial.set_user_attr("worker", None)  # anybody's
        _release(claim)
        raise
    _release(claim)
    if lost:  # paused for longer than the grace
        _say(f"trial {trial.number}: was silent for too long and given to another worker; going on with the next.")
    elif unforeseen is not None:
        raise unforeseen


def _outcome(
    objective: Objective, trial: Trial
) -> tuple[float | tuple[float, float] | None, TrialState, str | None, Exception | None]:
    """Values and state of a trial, why it failed, and what it failed with where nobody foresaw that."""
    from optuna.exceptions import StorageInternalError, TrialPruned, UpdateFinishedTrialError
    from optuna.trial import TrialState

    try:
        with warnings.catch_warnings():
            # What a trial reports again, after it was taken over, is what it has reported.
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
def _beating(study: optuna.Study, trial: Trial, tune: Tune) -> Iterator[None]:
    """Inside, a thread says every ``tune.heartbeat_s`` that this worker lives."""
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
                # A server that comes back within the grace has lost nothing.
                _say(f"no heartbeat of trial {trial.number}: {storage.cause(error)}.")
        database.remove_session()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _stale(tune: Tune, study: optuna.Study, trial: FrozenTrial) -> None:
    """What is done with a trial that was failed because its worker fell silent."""
    import optuna

    whose = trial.user_attrs.get("worker")
    trial.system_attrs = {key: value for key, value in trial.system_attrs.items() if key in _KEPT}
    trial.user_attrs = {}
    before = len(study.get_trials(deepcopy=False))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=tune.retries)(study, trial)
    again = "it is tried again" if len(study.get_trials(deepcopy=False)) > before else "it is not tried again"
    _say(f"trial {trial.number}: its worker {whose} has been silent for over {tune.grace_s} s; {again}.")


@contextmanager
def _unless_gone(tune: Tune) -> Iterator[None]:
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (StorageInternalError, SQLAlchemyError) as error:
        raise StoppedError(
            f"tune.storage: {shown(tune.storage)} does not answer any more ({storage.cause(error)}); run the "
            "same command to go on when it does."
        ) from error


def _running(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    from optuna.trial import TrialState

    return [trial for trial in trials if trial.state == TrialState.RUNNING]


def _count(trials: Sequence[FrozenTrial]) -> str:
    return f"{len(trials)} trial{'' if len(trials) == 1 else 's'}"


def _say(what: str) -> None:
    print(f"dreamset: tune: {what}", file=sys.stderr, flush=True)
