#!/usr/bin/env bash
# Library: optuna 5.0.0, with a relational store, a heartbeat and `RetryHeartbeatStaleTrialCallback`.
# Behaviour: `enqueue_trial` takes a value outside the range of its parameter, and the trial gets that value with a
# warning. Where the worker of such a trial falls silent, `optuna.storages.fail_stale_trials` fails the trial, and the
# callback, which is to queue it again, raises a ValueError: it hands the value on as one that was suggested, and those
# have to lie within the range. So the trial is failed and not tried again, and the exception reaches whoever asked for
# stale trials. One whose value lies within the range is queued again.
# Seen on 2026-12-01:
#   within: FAIL WAITING
#   outside: ValueError, FAIL
# Exits with another status than 0 if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'optuna==5.0.0' 'sqlalchemy==2.1.9'
cd "$folder"
cat > try.py <<'PYTHON'
import time
import warnings

import optuna

warnings.simplefilter("ignore")
optuna.logging.set_verbosity(optuna.logging.ERROR)
again = optuna.storages.RetryHeartbeatStaleTrialCallback()
store = optuna.storages.RDBStorage(
    "sqlite:///studies.db", heartbeat_interval=1, grace_period=1, heartbeat_stale_trial_callback=again
)
for name, value in (("within", 2.0), ("outside", 0.5)):
    study = optuna.create_study(study_name=name, storage=store)
    study.enqueue_trial({"scale": value})
    trial = study.ask()
    assert trial.suggest_float("scale", 1.0, 7.5) == value
    store.record_heartbeat(trial._trial_id)
    time.sleep(3)
    raised = ""
    try:
        optuna.storages.fail_stale_trials(study)
    except ValueError:
        raised = "ValueError, "
    print(f"{name}: {raised}{' '.join(found.state.name for found in study.trials)}")
PYTHON
"$folder/venv/bin/python" try.py | tee output
diff output - <<'EXPECTED'
within: FAIL WAITING
outside: ValueError, FAIL
EXPECTED
