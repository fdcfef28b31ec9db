#!/usr/bin/env bash
# Library: datasets 5.2.0, the loader of image folders.
# Behaviour: a class folder whose name holds a word of a split between separators (`train`, `test`, `val`, `dev`,
# `eval` ..., as in `train_station`) makes the loader take the folder for that split. The other classes' images are not
# loaded, and no warning or error says so. Of a single class that is left, the labels are gone too. Where two classes hold
# words of different splits, each becomes a split of its own.
# Seen on 2026-11-29, with three images in each of three class folders:
#   apple, pear, plum: {'train': 9} ['image', 'label']
#   apple, pear, train_station: {'train': 3} ['image']
#   apple, crash_test, train_station: {'train': 3, 'test': 3} ['image', 'label']
# Exits with another status than 0 if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'datasets==5.2.0' 'pillow==13.0.0'
cd "$folder"
cat > try.py <<'PYTHON'
import warnings
from pathlib import Path

import datasets
from PIL import Image

warnings.simplefilter("error")
datasets.disable_progress_bars()
for number, classes in enumerate(
    [("apple", "pear", "plum"), ("apple", "pear", "train_station"), ("apple", "crash_test", "train_station")]
):
    place = Path(f"set{number}")
    for name in classes:
        (place / name).mkdir(parents=True)
        for index in range(3):
            Image.new("RGB", (8, 8), (index, 0, 0)).save(place / name / f"{index}.png")
    loaded = datasets.load_dataset(str(place), cache_dir=f"cache{number}")
    columns = loaded["train"].column_names
    print(f"{', '.join(classes)}: { {split: len(rows) for split, rows in loaded.items()} } {columns}")
PYTHON
HF_HUB_OFFLINE=1 HF_HOME="$folder/home" "$folder/venv/bin/python" try.py 2>&1 | tee output
diff output - <<'EXPECTED'
apple, pear, plum: {'train': 9} ['image', 'label']
apple, pear, train_station: {'train': 3} ['image']
apple, crash_test, train_station: {'train': 3, 'test': 3} ['image', 'label']
EXPECTED
