"""LoRA files: the pairs of matrices in diffusers' layout with the factor of each, and bytes in a fixed order."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from dreamset.core.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    import torch

NESTED: Final = "text_model."  # where files have the layers of a text encoder; transformers 5 leaves it out for some
_DOWN: Final = ".lora_A.weight"


class Pair(NamedTuple):
    """The two matrices of a layer: the layer's weight changes by alpha / rank times ``up @ down``.

    ``down`` is (rank, in) and ``up`` (out, rank), as in the file.
    """

    down: torch.Tensor
    up: torch.Tensor
    alpha: float

    @property
    def delta(self) -> torch.Tensor:
        """The change of the weight at scale 1: (out, in) float32."""
        return self.alpha / self.down.shape[0] * (self.up.float() @ self.down.float())


def read_pairs(file: Path) -> dict[str, Pair]:
    """Return the pairs of a LoRA file by the path of their layer in a pipeline, such as ``unet.mid_block...to_q``.

    Raises:
        InputError: the file is damaged, or holds anything but pairs of one alpha per model.
    """
    from safetensors import safe_open
    from safetensors.torch import load_file

    try:
        state = load_file(file)
        with safe_open(file, "pt") as opened:
            metadata: dict[str, Any] = dict(json.loads((opened.metadata() or {}).get("lora_adapter_metadata", "{}")))
    except Exception as error:  # safetensors raises bare Exception subclasses of its own
        raise InputError(f"{file}: is not a complete LoRA file ({error}); run `dreamset adapt` again.") from error
    for setting in ("alpha_pattern", "use_dora", "use_rslora"):
        if any(value and key.endswith(f".{setting}") for key, value in metadata.items()):
            raise InputError(f"{file}: was made with peft's {setting}, which dreamset cannot read; make it without.")
    pairs: dict[str, Pair] = {}
    for path in (key.removesuffix(_DOWN) for key in state if key.endswith(_DOWN)):
        down, up = state[f"{path}{_DOWN}"], state.get(f"{path}.lora_B.weight")
        if up is None or up.ndim != 2 or down.ndim != 2 or not 1 <= down.shape[0] <= 1024:
            raise InputError(f"{file}: {path} is no pair of matrices of rank 1 to 1024; run `dreamset adapt` again.")
        if up.shape[1] != down.shape[0]:
            raise InputError(f"{file}: the shapes of {path} do not fit each other; run `dreamset adapt` again.")
        alpha = metadata.get(f"{path.partition('.')[0]}.lora_alpha", down.shape[0])
        if not isinstance(alpha, int | float):
            raise InputError(f"{file}: gives {alpha!r} for the alpha of {path}; run `dreamset adapt` again.")
        pairs[path] = Pair(down, up, alpha)
    if len(state) != 2 * len(pairs) or not pairs:
        raise InputError(f"{file}: holds tensors other than LoRA pairs; name an adapter that dreamset wrote.")
    return pairs


def steady(data: bytes) -> bytes:
    """Return a safetensors file with its header's keys sorted: the library writes them in random order."""
    size = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[8 + size :]
