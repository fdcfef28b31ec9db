#!/usr/bin/env bash
# Our LoRA files in older releases of diffusers, transformers and peft: they draw the pixels that the present ones draw.
# Needs the package index, a few minutes and 300 MB; no part of `make test`. Run it after a change of how LoRAs are
# saved, or of the locked releases:
#   bash tests/older_loaders.sh [DIFFUSERS/TRANSFORMERS/PEFT ...]
# Each environment has its own three packages and what these pin; torch and all else is that of .venv.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
triples=("${@:-0.41.0/5.20.2/0.20.0}")
[ $# -gt 0 ] || triples+=(0.33.1/4.51.3/0.15.2)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export HF_HUB_OFFLINE=1 PYTHONPATH=
PYTHONPATH=$root:$root/src:$root/tests "$python" "$root/tests/older_loaders.py" write "$folder"
PYTHONPATH=$root:$root/src:$root/tests "$python" "$root/tests/older_loaders.py" draw "$folder" "$folder/present"
shared=$("$python" -c 'import torch, pathlib; print(pathlib.Path(torch.__file__).parents[1])')
for triple in "${triples[@]}"; do
  IFS=/ read -r diffusers transformers peft <<< "$triple"
  "$python" -m venv "$folder/venv"
  older=$folder/venv/bin/python
  echo "$shared" > "$("$older" -c 'import site; print(site.getsitepackages()[0])')/shared.pth"
  # pip counts what it sees of the project's own environment as conflicts: those lines mean nothing here.
  "$older" -m pip install -q "diffusers==$diffusers" "transformers==$transformers" "peft==$peft" 2> "$folder/pip.log" ||
    { cat "$folder/pip.log" >&2; exit 1; }
  "$older" "$root/tests/older_loaders.py" draw "$folder" "$folder/older"
  "$python" "$root/tests/older_loaders.py" compare "$folder/present" "$folder/older" "$triple"
  rm -rf "$folder/venv" "$folder/older"
done
