"""Low-rank adapters on attention: several at once over one frozen model, saved as diffusers loads them.

peft holds the weights and their names. Training several adapters together changes only the forward pass of each
adapted layer: the frozen product is computed once for the whole batch, the low-rank ones in one batched product.
"""

from __future__ import annotations

import contextlib
import functools
import json
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from diffusers.loaders.lora_pipeline import StableDiffusionLoraLoaderMixin, StableDiffusionXLLoraLoaderMixin
from peft import LoraConfig, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import load_file

from dreamset.core.errors import InputError
from dreamset.core.seeds import seed_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import nn

    from dreamset.generator.base_model import BaseModel
    from dreamset.params.recipe import Lora

WEIGHTS: Final = "pytorch_lora_weights.safetensors"
_UNET: Final = ["to_k", "to_out.0", "to_q", "to_v"]
_TEXT: Final = ["k_proj", "out_proj", "q_proj", "v_proj"]


@dataclass
class Adapters:
    """Adapters under training, one per name, attached to the base's models."""

    base: BaseModel
    lora: Lora
    names: tuple[str, ...]

    @property
    def models(self) -> dict[str, nn.Module]:
        """The adapted models by their name in a pipeline."""
        chosen = ["unet"] * self.lora.unet + [*self.base.encoders] * self.lora.text_encoder
        return {name: self.base.parts[name] for name in chosen}

    @property
    def learns_conditions(self) -> bool:
        """Whether the text encoder changes too."""
        return self.lora.text_encoder

    def parameters(self, name: str) -> dict[str, torch.Tensor]:
        """Trainable tensors of one adapter by their name in a diffusers LoRA file."""
        found: dict[str, torch.Tensor] = {}
        for prefix, model in self.models.items():
            for path, layer in _layers(model):
                found[f"{prefix}.{path}.lora_A.weight"] = layer.lora_A[name].weight
                found[f"{prefix}.{path}.lora_B.weight"] = layer.lora_B[name].weight
        return found

    def save(self, name: str, folder: Path) -> None:
        """Write one adapter in diffusers' LoRA layout, with rank and alpha in its metadata."""
        layers: dict[str, Any] = {}
        for prefix, model in self.models.items():
            state = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
            layers[f"{prefix}_lora_layers"] = {key: value.cpu() for key, value in state.items()}
            # Without the metadata diffusers assumes alpha == rank when it loads.
            metadata = _config(self.base, prefix, self.lora).to_dict()
            # peft keeps a set, whose order would change the file's bytes from run to run.
            layers[f"{prefix}_lora_adapter_metadata"] = metadata | {"target_modules": _targets(prefix)}
        xl = len(self.base.encoders) > 1
        loader = StableDiffusionXLLoraLoaderMixin if xl else StableDiffusionLoraLoaderMixin
        loader.save_lora_weights(folder, safe_serialization=True, **layers)
        _sort_header(folder / WEIGHTS)

    def detach(self) -> None:
        """As the function ``detach``."""
        detach(self)


def _sort_header(file: Path) -> None:
    """Rewrite a safetensors file with its header's keys in order: the library writes them in a random one."""
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    file.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + size :])


def attach(base: BaseModel, lora: Lora, seeds: Mapping[str, int]) -> Adapters:
    """Add one fresh adapter per entry of ``seeds``: A ~ N(0, 1/r^2), B = 0, float32.

    Args:
        base: the frozen model; its layers are wrapped in place.
        lora: rank, alpha, and which models are adapted.
        seeds: by adapter name, the seed of its initial weights.
    """
    adapters = Adapters(base, lora, tuple(seeds))
    # New weights are made where the layer is, and are trained on the device.
    base.kept |= adapters.models.keys()
    base.need()
    for prefix, model in adapters.models.items():
        for name, seed in seeds.items():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed_for("lora", prefix, seed))
                with warnings.catch_warnings():
                    # Several adapters on one model are what is wanted here.
                    warnings.filterwarnings("ignore", "Already found a `peft_config`")
                    model.add_adapter(_config(base, prefix, lora), adapter_name=name)  # type: ignore[operator]
        for _, layer in _layers(model):
            for name in seeds:
                for side in (layer.lora_A[name], layer.lora_B[name]):
                    side.float().requires_grad_(True)
            layer.forward = functools.partial(_together, layer, tuple(seeds))
    return adapters


def detach(adapters: Adapters) -> None:
    """Take every adapter off again: the models are as they were loaded."""
    for model in adapters.models.values():
        for path, layer in _layers(model):
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, layer.base_layer)
        del model.peft_config
        model._hf_peft_config_loaded = False  # type: ignore[assignment]
    adapters.base.kept -= adapters.models.keys()


@contextlib.contextmanager
def swapped(parameters: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> Iterator[None]:
    """Parameters that hold other values (their average, say) for a while."""
    kept = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        torch._foreach_copy_(list(parameters), list(values))
        try:
            yield
        finally:
            torch._foreach_copy_(list(parameters), kept)


def _together(layer: Any, names: tuple[str, ...], x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    """An adapted linear layer over a batch made of equal parts, one per adapter, in the order of ``names``.

    Args:
        layer: peft's wrapped linear layer.
        names: adapters.
        x: (len(names) * b, ..., in) activations.
    """
    out: torch.Tensor = layer.base_layer(x)
    down = torch.stack([layer.lora_A[name].weight for name in names])
    up = torch.stack([layer.lora_B[name].weight for name in names])
    parts = x.reshape(len(names), -1, x.shape[-1]).to(down.dtype)
    low: torch.Tensor = torch.bmm(torch.bmm(parts, down.mT), up.mT) * layer.scaling[names[0]]
    return out + low.view(out.shape).to(out.dtype)


def _layers(model: nn.Module) -> list[tuple[str, Any]]:
    return [(path, layer) for path, layer in model.named_modules() if isinstance(layer, LoraLayer)]


def _targets(prefix: str) -> list[str]:
    return _UNET if prefix == "unet" else _TEXT


def _config(base: BaseModel, prefix: str, lora: Lora) -> LoraConfig:
    chosen: dict[str, Any] = {}
    if prefix == "text_encoder" and len(base.encoders) > 1:
        # XL reads its first encoder one layer before the end: an adapter on the last would never have a gradient.
        layers = base.encoders[prefix].config.num_hidden_layers
        chosen = {"layers_to_transform": list(range(layers - 1)), "layers_pattern": "layers"}
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=0.0,
        bias="none",
        init_lora_weights="gaussian",
        target_modules=_targets(prefix),
        **chosen,
    )


@contextlib.contextmanager
def fused(base: BaseModel, file: Path | None, scale: float = 1.0) -> Iterator[None]:
    """The base with an adapter added to its weights: W + scale (alpha / r) B A, put back exactly afterwards.

    Args:
        base: a base without attached adapters.
        file: a LoRA file in diffusers' layout, or None for the base as it is.
        scale: of the adapter, as diffusers' ``set_adapters`` takes it; 1: as it was trained.

    Raises:
        InputError: the file holds anything but finite LoRA weights that fit this base.
    """
    if file is None:
        yield
        return
    pristine: list[tuple[nn.Parameter, torch.Tensor]] = []
    try:
        with torch.no_grad():
            for weight, delta in _deltas(base, file):
                pristine.append((weight, weight.detach().clone()))
                weight.copy_((weight.float() + scale * delta.to(weight.device)).to(weight.dtype))
        yield
    finally:
        with torch.no_grad():
            for weight, kept in pristine:
                weight.copy_(kept)


def _deltas(base: BaseModel, file: Path) -> list[tuple[nn.Parameter, torch.Tensor]]:
    """Every weight that an adapter changes, with what is added to it (float32)."""
    try:
        state = load_file(file)
        with safe_open(file, "pt") as opened:
            metadata = json.loads((opened.metadata() or {}).get("lora_adapter_metadata", "{}"))
    except Exception as error:  # safetensors raises bare Exception subclasses of its own
        raise InputError(f"{file}: is not a whole LoRA file ({error}); run `dreamset adapt` again.") from error
    found = []
    for key, down in state.items():
        if not key.endswith(".lora_A.weight"):
            continue
        path = key.removesuffix(".lora_A.weight")
        up = state.get(f"{path}.lora_B.weight")
        prefix, _, inner = path.partition(".")
        try:
            weight = base.parts[prefix].get_parameter(f"{inner}.weight")
        except (KeyError, AttributeError) as error:
            raise InputError(f"{file}: adapts {path}, which the base does not have; adapt this base.") from error
        if up is None or up.ndim != 2 or down.ndim != 2 or not 1 <= down.shape[0] <= 1024:
            raise InputError(f"{file}: {path} is no pair of matrices of rank 1 to 1024; run `dreamset adapt` again.")
        if (up.shape[0], down.shape[1]) != tuple(weight.shape) or up.shape[1] != down.shape[0]:
            raise InputError(f"{file}: the shapes of {path} do not fit the base; run `dreamset adapt` again.")
        rank = down.shape[0]
        scale = metadata.get(f"{prefix}.lora_alpha", rank) / rank
        delta = scale * (up.float() @ down.float())
        if not delta.isfinite().all():
            raise InputError(f"{file}: {path} holds NaN or infinite weights; adapt with a lower learning rate.")
        found.append((weight, delta))
    if len(state) != 2 * len(found) or not found:
        raise InputError(f"{file}: holds other tensors than LoRA pairs; only dreamset's own adapters are loaded.")
    return found
