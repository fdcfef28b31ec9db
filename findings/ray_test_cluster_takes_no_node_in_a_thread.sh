#!/usr/bin/env bash
# Library: ray 2.60.0, ray.cluster_utils.Cluster, with which tests start several nodes on one machine.
# Behaviour: remove_node works in any thread, and add_node in the main thread alone. Elsewhere it raises ValueError, for it
# installs a signal handler for the node that it starts. So a test whose main thread waits for a program may take a node
# away meanwhile, and cannot bring another one. The nodes that were there stay usable.
# Seen on 2026-11-30:
#   a node leaves in a thread: 1 of 2 left
#   a node joins in a thread: ValueError: signal only works in main thread of the main interpreter
#   a node joins in the main thread: 2
# Exits with another status than 0 if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'ray==2.60.0'
cd "$folder"
cat > try.py <<'PYTHON'
import threading

from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
second = cluster.add_node(num_cpus=1)


def alive():
    return len(cluster.list_all_nodes())


def told(what, action):
    found = []

    def run():
        try:
            action()
            found.append(None)
        except ValueError as error:
            found.append(f"ValueError: {error}")

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    print(f"{what}: {found[0] or f'{alive()} of 2 left'}", flush=True)


told("a node leaves in a thread", lambda: cluster.remove_node(second, allow_graceful=False))
told("a node joins in a thread", lambda: cluster.add_node(num_cpus=1))
cluster.add_node(num_cpus=1)
print(f"a node joins in the main thread: {alive()}", flush=True)
cluster.shutdown()
PYTHON
RAY_USAGE_STATS_ENABLED=0 "$folder/venv/bin/python" try.py 2> /dev/null | tee output
diff output - <<'EXPECTED'
a node leaves in a thread: 1 of 2 left
a node joins in a thread: ValueError: signal only works in main thread of the main interpreter
a node joins in the main thread: 2
EXPECTED
