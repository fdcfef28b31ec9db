"""``python -m base.older FOLDER``: write a copy of the bundled Stable Diffusion that transformers 4 reads too.

The committed files stay as transformers 5 wrote them: the hash of their bytes stands in every picture drawn with them.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Final

from dreamset.core.errors import InputError

SOURCE: Final = Path(__file__).parents[1] / "models/base/sd"


def write(folder: Path, source: Path = SOURCE) -> None:
    """Copy a diffusers folder, with the keys of its text encoders and its tokenizers in the form of transformers 4.

    Args:
        folder: a new folder.
        source: a folder that transformers 5 wrote.

    Raises:
        InputError: ``folder`` exists already.
    """
    from safetensors.torch import load_file, save_file

    if folder.exists():
        raise InputError(f"{folder}: exists already; name a new folder.")
    shutil.copytree(source, folder)
    for weights in folder.glob("text_encoder*/model.safetensors"):
        state = load_file(weights)
        placed = ("text_model.", "text_projection.")
        named = {key if key.startswith(placed) else f"text_model.{key}": value for key, value in state.items()}
        save_file(named, weights, {"format": "pt"})
    for tokenizer in folder.glob("tokenizer*/tokenizer.json"):
        pairs = json.loads(tokenizer.read_text(encoding="utf-8"))["model"]
        merges = ["#version: 0.2", *(" ".join(pair) for pair in pairs["merges"])]
        tokenizer.with_name("vocab.json").write_text(json.dumps(pairs["vocab"], ensure_ascii=False), encoding="utf-8")
        tokenizer.with_name("merges.txt").write_text("\n".join(merges) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m base.older FOLDER")
    try:
        write(Path(sys.argv[1]))
    except InputError as error:
        print(f"base: {error}", file=sys.stderr)
        sys.exit(2)
