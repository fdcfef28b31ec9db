#!/usr/bin/env bash
# Library: optuna 5.0.0, with a relational store and a heartbeat.
# Behaviour: `optuna.copy_study` copies a trial that is running, but not its heartbeat. In the study that it came from,
# `optuna.storages.fail_stale_trials` fails such a trial once its heartbeat has been silent for the grace period. In the
# copy it never does: a trial without a heartbeat is not stale, so it stays RUNNING for ever, and whoever waits for the
# copy's running trials waits for ever.
# Seen on 2026-11-29:
#   original: FAIL
#   copy: RUNNING
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
store = optuna.storages.RDBStorage("sqlite:///studies.db", heartbeat_interval=1, grace_period=1)
study = optuna.create_study(study_name="original", storage=store)
trial = study.ask()
store.record_heartbeat(trial._trial_id)
optuna.copy_study(from_study_name="original", from_storage=store, to_storage=store, to_study_name="copy")
time.sleep(3)
for name in ("original", "copy"):
    found = optuna.load_study(study_name=name, storage=store)
    optuna.storages.fail_stale_trials(found)
    print(f"{name}: {found.trials[0].state.name}")
PYTHON
"$folder/venv/bin/python" try.py | tee output
diff output - <<'EXPECTED'
original: FAIL
copy: RUNNING
EXPECTED
