#!/usr/bin/env bash
# Libraries: webdataset 1.0.2, and the loader of tar files of datasets 5.2.0.
# Behaviour: both cut a member's name at the first dot of its last part. Files of several images whose names hold a further
# dot (`photo.1.txt`, `photo.2.txt`) follow one another with the same key, and so become one sample with the fields
# `1.txt`, `2.txt` ... No warning or error says so. A dot in a folder's name does no harm.
# Seen on 2026-11-30, with three samples of two files each:
#   webdataset 1/a 1/b 1/c: 3 samples of cls txt
#   webdataset photo.1 photo.2 photo.3: 1 samples of 1.cls 1.txt 2.cls 2.txt 3.cls 3.txt
#   datasets: the same
# Exits with another status than 0 if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'webdataset==1.0.2' 'datasets==5.2.0'
cd "$folder"
cat > try.py <<'PYTHON'
import io
import tarfile

import datasets
import webdataset

datasets.disable_progress_bars()
for number, names in enumerate([("v1.5/a", "v1.5/b", "v1.5/c"), ("1/a", "1/b", "1/c"), ("photo.1", "photo.2", "photo.3")]):
    with tarfile.open("set.tar", "w") as tar:
        for label, name in enumerate(names):
            for ending, data in (("txt", b"words"), ("cls", b"%d" % label)):
                about = tarfile.TarInfo(f"{name}.{ending}")
                about.size = len(data)
                tar.addfile(about, io.BytesIO(data))
    read = list(webdataset.WebDataset("set.tar", shardshuffle=False))
    rows = datasets.load_dataset("webdataset", data_files="set.tar", split="train", cache_dir=f"cache{number}")
    for what, count, fields in (("webdataset", len(read), read[0]), ("datasets", len(rows), rows.column_names)):
        shown = " ".join(sorted(field for field in fields if not field.startswith("__")))
        print(f"{what} {' '.join(names)}: {count} samples of {shown}")
PYTHON
HF_HUB_OFFLINE=1 HF_HOME="$folder/home" "$folder/venv/bin/python" try.py | tee output
diff output - <<'EXPECTED'
webdataset v1.5/a v1.5/b v1.5/c: 3 samples of cls txt
datasets v1.5/a v1.5/b v1.5/c: 3 samples of cls txt
webdataset 1/a 1/b 1/c: 3 samples of cls txt
datasets 1/a 1/b 1/c: 3 samples of cls txt
webdataset photo.1 photo.2 photo.3: 1 samples of 1.cls 1.txt 2.cls 2.txt 3.cls 3.txt
datasets photo.1 photo.2 photo.3: 1 samples of 1.cls 1.txt 2.cls 2.txt 3.cls 3.txt
EXPECTED
