#!/usr/bin/env bash
# Library: ruamel.yaml 0.19.1, with which DVC 3.67.1 reads dvc.yaml, dvc.lock and params.yaml (`YAML(typ="safe")`).
# Behaviour: up to 0.18, its wheel asked for ruamel.yaml.clib on CPython, and "safe" meant the parser in C. 0.19.1 asks
# for it only by an extra. Without a word it parses in Python then. Installing ruamel.yaml.clib 0.2.15 beside it brings
# the parser in C back.
# Seen on 2026-11-29:
#   0.18.6 alone: CParser
#   0.19.1 alone: Parser
#   0.19.1 with clib: CParser
# Exits with another status than 0 if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

parser() { # parser NAME PACKAGE...: the class that parses for typ="safe"
  python3 -m venv "$folder/$1"
  "$folder/$1/bin/pip" install -q "${@:2}"
  "$folder/$1/bin/python" -c '
from ruamel.yaml import YAML
yaml = YAML(typ="safe")
assert yaml.load("a: 1") == {"a": 1}
print(yaml.Parser.__name__)'
}

old=$(parser old 'ruamel.yaml==0.18.6')
new=$(parser new 'ruamel.yaml==0.19.1')
both=$(parser both 'ruamel.yaml==0.19.1' 'ruamel.yaml.clib==0.2.15')
echo "0.18.6 alone: $old"
echo "0.19.1 alone: $new"
echo "0.19.1 with clib: $both"
[ "$old" = CParser ] && [ "$new" != CParser ] && [ "$both" = CParser ]
