#!/usr/bin/env bash
# Library: dvc 3.67.1, `dvc exp run`.
# Behaviour: a folder holds a file that git tracks. Someone puts a link in the folder's place, so that git sees the file
# deleted and an untracked link. `dvc repro` runs. `dvc exp run` puts the changes into git's stash, cannot apply them
# again, and stops with "1 conflict prevents checkout"; the stash stays. A folder that git
# ignores, and holds no file of, runs.
# Seen on 2026-11-29:
#   tracked, exp run: 255
#   1 conflict prevents checkout
#   tracked, repro: 0
#   ignored, exp run: 0
# Exits with another status than 0 if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'dvc==3.67.1'
export PATH="$folder/venv/bin:$PATH" DVC_NO_ANALYTICS=1
cat > "$folder/dvc.yaml" <<'YAML'
stages:
  list:
    cmd: ls raw
    params: [shots]
    deps: [raw]
YAML
mkdir "$folder/photos"
touch "$folder/photos/a.png"

project() { # project NAME: a repository whose folder raw is replaced by a link after the commit
  mkdir "$folder/$1"
  cd "$folder/$1"
  git init -q
  git config user.email someone@example.com
  git config user.name someone
  dvc init -q
  cp "$folder/dvc.yaml" .
  echo 'shots: 4' > params.yaml
  mkdir raw
  if [ "$1" = tracked ]; then echo words > raw/README; else echo /raw > .gitignore; fi
  git add -A
  git commit -qm first
  rm -r raw
  ln -s ../photos raw
}

status() { # status COMMAND...: its exit status
  if "$@" > "$folder/log" 2>&1; then echo 0; else echo $?; fi
}

project tracked
told=$(
  echo "tracked, exp run: $(status dvc exp run -S shots=8)"
  grep -o '1 conflict prevents checkout' "$folder/log"
  git stash drop -q
  echo "tracked, repro: $(status dvc repro)"
)
project ignored
told+=$'\n'"ignored, exp run: $(status dvc exp run -S shots=8)"
echo "$told"
[ "$told" = $'tracked, exp run: 255\n1 conflict prevents checkout\ntracked, repro: 0\nignored, exp run: 0' ]
