"""``dreamset export --kohya``: the LoRAs of a recipe under the names of kohya's trainer, for ComfyUI and A1111."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from dreamset.core import shards
from dreamset.core.errors import InputError
from dreamset.core.files import atomic_write
from dreamset.data import cards, current, tuned
from dreamset.data.adapters import read_adapters
from dreamset.data.lora_file import NESTED, read_pairs, steady
from dreamset.data.splits import read_split
from dreamset.weights import hub

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

    from dreamset.core.workspace import Workspace
    from dreamset.data.lora_file import Pair
    from dreamset.params import Params

_ENCODER: Final = "text_encoder"
_SECOND: Final = "text_encoder_2"


def kohya(params: Params, workspace: Workspace, recipe: str, target: Path) -> dict[str, Any]:
    """Write the LoRAs that ``recipe`` draws with as one file each, and a card.

    A file holds ``lora_down.weight`` (rank, in), ``lora_up.weight`` (out, rank) and ``alpha`` of each adapted layer,
    with the values and dtypes of the adapter. At a strength s the layer's weight changes by s alpha / rank up down.

    Args:
        params: gives the recipe and the licence.
        workspace: holds the adapters and the shots.
        recipe: a row of ``recipes``.
        target: a new or empty folder.

    Returns:
        ``files``, the number of files written, and ``pairs``, the number of adapted layers in each.

    Raises:
        InputError: the recipe has no LoRA, an adapter is missing, damaged or of other settings, or the folder is not
            empty.
    """
    from safetensors.torch import save

    row = params.recipes[recipe]
    if not row.trains_lora:
        raise InputError(
            f"export --kohya: {recipe} has adapter: {row.adapter}, and kohya's layout holds only LoRAs; name a recipe "
            "with adapter: lora."
        )
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target}: exists already; name a new folder, or empty it.")
    current.check_adapters(params, workspace, recipe)
    source = tuned.adapters(params, workspace, recipe)
    stage = "adapt" if source == workspace.adapter(recipe) else "tune"
    adapters = read_adapters(source, stage)
    chosen, split = tuned.applied(params, workspace, recipe), read_split(workspace.splits)
    base = hub.identity(workspace.root, *params.base.pretrained)
    pairs = 0
    target.parent.mkdir(parents=True, exist_ok=True)
    with shards.assembling(target) as folder:
        for adapter in adapters:
            read = read_pairs(source / adapter.file)
            pairs = len(read)
            file = PurePosixPath(adapter.file)
            name = f"_{file.parent.name}" if row.has_adapter_per_class or row.has_adapter_per_shot else ""
            name += f"_{file.stem}" if row.has_adapter_per_shot else ""
            first = next(iter(read.values()))
            about = {
                "format": "pt",
                "ss_network_module": "networks.lora",
                "ss_network_dim": str(first.down.shape[0]),
                "ss_network_alpha": f"{first.alpha:g}",
            }
            atomic_write(folder / f"{recipe}{name}.safetensors", steady(save(renamed(read), about)))
        atomic_write(folder / "README.md", cards.kohya(chosen, split, recipe, base))
    return {"files": len(adapters), "pairs": pairs}


def renamed(pairs: Mapping[str, Pair]) -> dict[str, torch.Tensor]:
    """Return the tensors of a LoRA under kohya's names.

    Args:
        pairs: by the path of the layer in a pipeline, as ``read_pairs`` returns them.
    """
    import torch

    encoder = "lora_te1" if any(path.startswith(f"{_SECOND}.") for path in pairs) else "lora_te"
    names = {"unet": "lora_unet", _ENCODER: encoder, _SECOND: "lora_te2"}
    tensors: dict[str, torch.Tensor] = {}
    for path, pair in pairs.items():
        part, _, layer = path.partition(".")
        if part not in names:
            raise InputError(f"{path}: kohya's layout has no name for it; name an adapter of a Stable Diffusion.")
        nested = "" if part == "unet" else NESTED
        name = f"{names[part]}_{nested}{layer.removeprefix(nested)}".replace(".", "_")
        tensors[f"{name}.lora_down.weight"] = pair.down
        tensors[f"{name}.lora_up.weight"] = pair.up
        tensors[f"{name}.alpha"] = torch.tensor(float(pair.alpha))
    return tensors
