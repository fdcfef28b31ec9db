"""Low-rank adapters on attention: several at once over one frozen model, saved in diffusers' layout.

peft holds the weights and their names. Training several adapters together changes only the forward pass of each
adapted layer: it computes the frozen product once for the whole batch, and the low-rank products in one batched
product.
"""

from __future__ import annotations

import contextlib
import functools
import json
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
import torch.nn.functional as F
from diffusers.loaders.lora_pipeline import StableDiffusionLoraLoaderMixin, StableDiffusionXLLoraLoaderMixin
from peft import LoraConfig, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from dreamset.core.errors import InputError
from dreamset.core.seeds import seed_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from dreamset.generator.base_model import BaseModel
    from dreamset.params.recipe import Lora

WEIGHTS: Final = "pytorch_lora_weights.safetensors"
_UNET: Final = ["to_k", "to_out.0", "to_q", "to_v"]
_TEXT: Final = ["k_proj", "out_proj", "q_proj", "v_proj"]


@dataclass
class Adapters:
    """Adapters in training, one per name, attached to the base's models."""

    base: BaseModel
    lora: Lora
    names: tuple[str, ...]

    @property
    def models(self) -> dict[str, nn.Module]:
        """The adapted models by their names in a pipeline."""
        names = ["unet"] * self.lora.unet + [*self.base.encoders] * self.lora.text_encoder
        return {name: self.base.parts[name] for name in names}

    @property
    def learns_conditions(self) -> bool:
        """Whether the text encoder is adapted too."""
        return self.lora.text_encoder

    def parameters(self, name: str) -> dict[str, torch.Tensor]:
        """The trainable tensors of one adapter by their names in a diffusers LoRA file."""
        tensors: dict[str, torch.Tensor] = {}
        for prefix, model in self.models.items():
            for path, layer in _layers(model):
                tensors[f"{prefix}.{path}.lora_A.weight"] = layer.lora_A[name].weight
                tensors[f"{prefix}.{path}.lora_B.weight"] = layer.lora_B[name].weight
        return tensors

    def save(self, name: str, folder: Path) -> None:
        """Write one adapter in diffusers' LoRA layout, with rank and alpha in its metadata."""
        layers: dict[str, Any] = {}
        for prefix, model in self.models.items():
            state = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
            layers[f"{prefix}_lora_layers"] = {key: value.cpu() for key, value in state.items()}
            # Without this metadata, diffusers assumes alpha == rank when it loads the file.
            metadata = _config(self.base, prefix, self.lora).to_dict()
            # peft's set of modules has no fixed order, so the file's bytes would change from run to run.
            layers[f"{prefix}_lora_adapter_metadata"] = metadata | {"target_modules": _targets(prefix)}
        xl = len(self.base.encoders) > 1
        loader = StableDiffusionXLLoraLoaderMixin if xl else StableDiffusionLoraLoaderMixin
        loader.save_lora_weights(folder, safe_serialization=True, **layers)
        _sort_header(folder / WEIGHTS)

    def detach(self) -> None:
        """Remove the adapters, as the function ``detach`` does."""
        detach(self)


def _sort_header(file: Path) -> None:
    """Rewrite a safetensors file with its header's keys sorted: the library writes them in random order."""
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    file.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + size :])


def attach(base: BaseModel, lora: Lora, seeds: Mapping[str, int]) -> Adapters:
    """Add one new adapter per entry of ``seeds``: A ~ N(0, 1/r^2), B = 0, float32.

    Args:
        base: the frozen model; its layers are wrapped in place.
        lora: the rank, alpha, and the models to adapt.
        seeds: the seed of each adapter's initial weights, by the adapter's name.
    """
    adapters = Adapters(base, lora, tuple(seeds))
    # New weights are created where the layer is, and must be trained on the device.
    base.kept |= adapters.models.keys()
    base.need()
    for prefix, model in adapters.models.items():
        for name, seed in seeds.items():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed_for("lora", prefix, seed))
                with warnings.catch_warnings():
                    # Several adapters on one model are intended here.
                    warnings.filterwarnings("ignore", "Already found a `peft_config`")
                    model.add_adapter(_config(base, prefix, lora), adapter_name=name)  # type: ignore[operator]
        for _, layer in _layers(model):
            for name in seeds:
                for side in (layer.lora_A[name], layer.lora_B[name]):
                    side.float().requires_grad_(True)
            layer.forward = functools.partial(_together, layer, tuple(seeds))
    return adapters


def detach(adapters: Adapters) -> None:
    """Remove every adapter, so that the models are as they were loaded."""
    for model in adapters.models.values():
        for path, layer in _layers(model):
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, layer.base_layer)
        del model.peft_config
        model._hf_peft_config_loaded = False  # type: ignore[assignment]
    adapters.base.kept -= adapters.models.keys()


@contextlib.contextmanager
def swapped(parameters: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> Iterator[None]:
    """Give parameters other values (their average, for example) inside a ``with`` block."""
    original = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        torch._foreach_copy_(list(parameters), list(values))
        try:
            yield
        finally:
            torch._foreach_copy_(list(parameters), original)


def _together(layer: Any, names: tuple[str, ...], x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    """The output of an adapted linear layer for a batch of equal parts, one per adapter in the order of ``names``.

    Args:
        layer: peft's wrapped linear layer.
        names: the adapters.
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
    layer_choice: dict[str, Any] = {}
    if prefix == "text_encoder" and len(base.encoders) > 1:
        # XL uses the last layer but one of its first encoder: an adapter on the last would never have a gradient.
        layers = base.encoders[prefix].config.num_hidden_layers
        layer_choice = {"layers_to_transform": list(range(layers - 1)), "layers_pattern": "layers"}
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=0.0,
        bias="none",
        init_lora_weights="gaussian",
        target_modules=_targets(prefix),
        **layer_choice,
    )


@contextlib.contextmanager
def fused(base: BaseModel, file: Path | None, scale: float = 1.0) -> Iterator[None]:
    """Adapt the base's layers to W + scale (alpha / r) B A; restore the exact weights afterwards.

    A float32 base gets the sum as its weights. In half precision that sum would be rounded to W wherever the adapter
    is below the last bit of W. There the adapter stays beside the weights.

    Args:
        base: a base without attached adapters.
        file: a LoRA file in diffusers' layout, or None for the unchanged base.
        scale: the adapter's scale, as in diffusers' ``set_adapters``; 1 is the scale of its training.

    Raises:
        InputError: the file holds anything but finite LoRA weights that fit this base.
    """
    if file is None:
        yield
        return
    pairs = _pairs(base, file)
    pristine: list[tuple[nn.Parameter, torch.Tensor]] = []
    try:
        with torch.no_grad():
            for pair in pairs:
                weight = pair.layer.weight
                if weight.dtype == torch.float32:
                    pristine.append((weight, weight.detach().clone()))
                    weight.add_(scale * pair.delta().to(weight.device))
                else:
                    pair.replace(_Beside(pair, scale))
        yield
    finally:
        with torch.no_grad():
            for weight, original in pristine:
                weight.copy_(original)
        for pair in pairs:
            pair.replace(pair.layer)


@dataclass(frozen=True)
class _Pair:
    """The LoRA of a layer: the float32 change of its weight is ``scale`` up @ down.

    ``model`` holds the layer, under ``path``.
    """

    model: nn.Module
    path: str
    layer: Any
    down: torch.Tensor
    up: torch.Tensor
    scale: float

    def delta(self) -> torch.Tensor:
        """The change of the layer's weight, (out, in) float32."""
        return self.scale * (self.up @ self.down)

    def replace(self, module: nn.Module) -> None:
        """Put a module in the place of the layer."""
        parent, _, name = self.path.rpartition(".")
        setattr(self.model.get_submodule(parent), name, module)


class _Beside(nn.Module):
    """A linear layer with a LoRA beside its weights.

    One product sums up both and rounds once. A second sum would lose what is below the last bit of the first. The
    tensors are buffers, so that a compiled U-Net takes another adapter of the same shapes as it is.
    """

    down: torch.Tensor
    weights: torch.Tensor

    def __init__(self, pair: _Pair, scale: float) -> None:
        super().__init__()
        weight, self.bias = pair.layer.weight, pair.layer.bias
        up = scale * pair.scale * pair.up
        self.register_buffer("down", pair.down.to(weight), persistent=False)  # (rank, in)
        self.register_buffer("weights", torch.cat([weight, up.to(weight)], dim=1), persistent=False)  # (out, in + rank)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map activations (..., in) to (..., out)."""
        return F.linear(torch.cat([x, F.linear(x, self.down)], dim=-1), self.weights, self.bias)


def _pairs(base: BaseModel, file: Path) -> list[_Pair]:
    """The LoRAs of a file with the layers that they adapt."""
    try:
        state = load_file(file)
        with safe_open(file, "pt") as opened:
            metadata = json.loads((opened.metadata() or {}).get("lora_adapter_metadata", "{}"))
    except Exception as error:  # safetensors raises bare Exception subclasses of its own
        raise InputError(f"{file}: is not a complete LoRA file ({error}); run `dreamset adapt` again.") from error
    pairs = []
    for key, down in state.items():
        if not key.endswith(".lora_A.weight"):
            continue
        path = key.removesuffix(".lora_A.weight")
        up = state.get(f"{path}.lora_B.weight")
        prefix, _, inner = path.partition(".")
        try:
            layer = base.parts[prefix].get_submodule(inner)
            weight = layer.weight
        except (KeyError, AttributeError) as error:
            raise InputError(f"{file}: adapts {path}, which the base does not have; adapt this base.") from error
        if up is None or up.ndim != 2 or down.ndim != 2 or not 1 <= down.shape[0] <= 1024:
            raise InputError(f"{file}: {path} is no pair of matrices of rank 1 to 1024; run `dreamset adapt` again.")
        if (up.shape[0], down.shape[1]) != tuple(weight.shape) or up.shape[1] != down.shape[0]:
            raise InputError(f"{file}: the shapes of {path} do not fit the base; run `dreamset adapt` again.")
        rank = down.shape[0]
        scale = metadata.get(f"{prefix}.lora_alpha", rank) / rank
        pair = _Pair(base.parts[prefix], inner, layer, down.float(), up.float(), scale)
        if not pair.delta().isfinite().all():
            raise InputError(f"{file}: {path} holds NaN or infinite weights; adapt with a lower learning rate.")
        pairs.append(pair)
    if len(state) != 2 * len(pairs) or not pairs:
        raise InputError(f"{file}: holds tensors other than LoRA pairs; name an adapter that dreamset wrote.")
    return pairs
