"""What ``older_loaders.sh`` runs: write LoRAs of the bundled base, draw with them in any release, compare the pixels.

``write FOLDER`` uses the project; ``draw FOLDER OUT`` uses a stock pipeline alone, of whatever release is installed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

PROMPT = "a photo of the digit three"
# A diffusers before 0.34 takes alpha for the rank, save in kohya's layout; so there it shall equal the rank.
FILES = ("adapter.safetensors", "kohya.safetensors")


def write(folder: Path) -> None:
    """The bundled base and a small XL for transformers 4 too; a LoRA of each, and one of an alpha unlike its rank."""
    from base import older
    from safetensors.torch import save_file

    import tiny
    import toy
    from dreamset.data.lora_file import read_pairs
    from dreamset.generator import base_model, lora
    from dreamset.params.knobs import Lora
    from dreamset.use.kohya import renamed
    from test_generator import shaken

    row = toy.load(toy.ROOT / "params.yaml").base
    older.write(folder / "sd/base")
    older.write(folder / "xl/base", tiny.write_xl_pipeline(folder / "random"))
    for place in (folder / "sd", folder / "xl"):
        base = base_model.load(place / "base", row, torch.device("cpu"))
        for name, alpha in zip(FILES, (4.0, 6.0), strict=True):
            adapters = shaken(base, Lora(4, alpha, unet=True, text_encoder=True), ("one",), amount=0.05)
            adapters.save("one", place / "saved")
            lora.detach(adapters)
            (place / "saved" / lora.WEIGHTS).rename(place / name)
        save_file(renamed(read_pairs(place / FILES[1])), place / FILES[1])


def draw(folder: Path, out: Path) -> None:
    """An image of each base alone, and one with each of its files, at two scales."""
    import diffusers
    import peft
    import transformers
    from diffusers import DiffusionPipeline
    from transformers import CLIPTextModel

    found = f"diffusers {diffusers.__version__}, transformers {transformers.__version__}, peft {peft.__version__}"
    print(f"drawing with {found}", flush=True)
    drawn = {}
    for place in (folder / "sd", folder / "xl"):
        _, report = CLIPTextModel.from_pretrained(place / "base/text_encoder", output_loading_info=True)
        assert not report["missing_keys"], f"{found}: leaves weights of the text encoder at random"
        pipeline = DiffusionPipeline.from_pretrained(place / "base")
        pipeline.set_progress_bar_config(disable=True)
        drawn[f"{place.name} base"] = _image(pipeline)
        for name in FILES:
            pipeline.load_lora_weights(place, weight_name=name, adapter_name=name.partition(".")[0])
            for scale in (1.0, 0.25):
                pipeline.set_adapters([name.partition(".")[0]], adapter_weights=[scale])
                drawn[f"{place.name} {name} at {scale}"] = _image(pipeline)
            pipeline.unload_lora_weights()
    np.savez(out.with_suffix(".npz"), **drawn)


def _image(pipeline: object) -> np.ndarray:
    latents = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    kind = {"num_inference_steps": 5, "guidance_scale": 2.0, "height": 16, "width": 16, "output_type": "np"}
    image: np.ndarray = pipeline(PROMPT, latents=latents, **kind).images[0]  # type: ignore[operator]
    return image


def compare(present: Path, older: Path, name: str) -> None:
    """Exit with 1 where a pixel differs by more than rounding, or an adapter changed nothing."""
    ours, theirs = np.load(present.with_suffix(".npz")), np.load(older.with_suffix(".npz"))
    for key in ours:
        base = f"{key.partition(' ')[0]} base"
        apart, changed = np.abs(ours[key] - theirs[key]).max(), np.abs(ours[key] - ours[base]).max()
        print(f"{name}: {key}: {apart:.2g} apart, {changed:.2g} from the base alone")
        if apart > 1e-5 or (key != base and changed < 1e-3):
            sys.exit(f"{name}: {key}: differs from what the present releases draw")


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(Path(sys.argv[2]))
    elif sys.argv[1] == "draw":
        draw(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        compare(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
