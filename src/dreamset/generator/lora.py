"""Low-rank adapters on attention: several at once over one frozen model, saved in diffusers' layout.

peft holds the weights and their names. Training several adapters together changes only the forward pass of each
adapted layer: it computes the frozen product once for the whole batch, and the low-rank products in one batched
product.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
import torch.nn.functional as F
from diffusers.loaders.lora_pipeline import StableDiffusionLoraLoaderMixin, StableDiffusionXLLoraLoaderMixin
from peft import LoraConfig, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import nn

from dreamset.core.errors import InputError
from dreamset.core.seeds import seed_for
from dreamset.data.lora_file import NESTED, read_pairs, steady

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from dreamset.data.lora_file import Pair
    from dreamset.generator.base_model import BaseModel
    from dreamset.params.recipe import Lora

WEIGHTS: Final = "pytorch_lora_weights.safetensors"
_UNET: Final = ["to_k", "to_out.0", "to_q", "to_v"]
_TEXT: Final = ["k_proj", "out_proj", "q_proj", "v_proj"]
# All that a loader needs of peft's configuration. An older peft refuses a file that names a setting it does not know.
_SETTINGS: Final = (
    *("r", "lora_alpha", "lora_dropout", "bias", "rank_pattern", "alpha_pattern", "use_dora", "use_rslora"),
    *("init_lora_weights", "layers_to_transform", "layers_pattern"),
)


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
                tensors[f"{prefix}.{_filed(prefix, path)}.lora_A.weight"] = layer.lora_A[name].weight
                tensors[f"{prefix}.{_filed(prefix, path)}.lora_B.weight"] = layer.lora_B[name].weight
        return tensors

    def save(self, name: str, folder: Path) -> None:
        """Write one adapter in diffusers' LoRA layout, with rank and alpha in its metadata.

        Older releases load it too, down to those of ``tests/older_loaders.sh``.
        """
        layers: dict[str, Any] = {}
        for prefix, model in self.models.items():
            state = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
            layers[f"{prefix}_lora_layers"] = {_filed(prefix, key): value.cpu() for key, value in state.items()}
            # Without this metadata, diffusers assumes alpha == rank when it loads the file.
            layers[f"{prefix}_lora_adapter_metadata"] = _metadata(_config(self.base, prefix, self.lora), prefix)
        xl = len(self.base.encoders) > 1
        loader = StableDiffusionXLLoraLoaderMixin if xl else StableDiffusionLoraLoaderMixin
        loader.save_lora_weights(folder, safe_serialization=True, **layers)
        (folder / WEIGHTS).write_bytes(steady((folder / WEIGHTS).read_bytes()))

    def detach(self) -> None:
        """Remove the adapters, as the function ``detach`` does."""
        detach(self)


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


def _filed(prefix: str, path: str) -> str:
    """A layer's path in a file: that of transformers before 5, which later releases read too."""
    return path if prefix == "unet" else NESTED + path.removeprefix(NESTED)


def _metadata(config: LoraConfig, prefix: str) -> dict[str, Any]:
    values = {name: getattr(config, name) for name in _SETTINGS}
    # peft's set of modules has no fixed order, so the file's bytes would change from run to run.
    return {"target_modules": _targets(prefix)} | {name: value for name, value in values.items() if value is not None}


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
    adapted = _adapted(base, file)
    pristine: list[tuple[nn.Parameter, torch.Tensor]] = []
    try:
        with torch.no_grad():
            for at in adapted:
                weight = at.layer.weight
                if weight.dtype == torch.float32:
                    pristine.append((weight, weight.detach().clone()))
                    weight.add_(scale * at.pair.delta.to(weight.device))
                else:
                    at.replace(_Beside(at, scale))
        yield
    finally:
        with torch.no_grad():
            for weight, original in pristine:
                weight.copy_(original)
        for at in adapted:
            at.replace(at.layer)


@dataclass(frozen=True)
class _Adapted:
    """A layer and the LoRA that adapts it; ``model`` holds the layer, under ``path``."""

    model: nn.Module
    path: str
    layer: Any
    pair: Pair

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

    def __init__(self, at: _Adapted, scale: float) -> None:
        super().__init__()
        weight, self.bias, pair = at.layer.weight, at.layer.bias, at.pair
        up = scale * pair.alpha / pair.down.shape[0] * pair.up.float()
        self.register_buffer("down", pair.down.to(weight), persistent=False)  # (rank, in)
        self.register_buffer("weights", torch.cat([weight, up.to(weight)], dim=1), persistent=False)  # (out, in + rank)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map activations (..., in) to (..., out)."""
        return F.linear(torch.cat([x, F.linear(x, self.down)], dim=-1), self.weights, self.bias)


def _adapted(base: BaseModel, file: Path) -> list[_Adapted]:
    """The layers that a file adapts."""
    adapted: list[_Adapted] = []
    for path, pair in read_pairs(file).items():
        prefix, _, inner = path.partition(".")
        try:
            model = base.parts[prefix]
            # Files name a text encoder's layers with or without `text_model.`.
            own = (NESTED if hasattr(model, "text_model") else "") + inner.removeprefix(NESTED)
            layer = model.get_submodule(own)
            weight: torch.Tensor = layer.weight
        except (KeyError, AttributeError) as error:
            raise InputError(f"{file}: adapts {path}, which the base does not have; adapt this base.") from error
        if (pair.up.shape[0], pair.down.shape[1]) != tuple(weight.shape):
            raise InputError(f"{file}: the shapes of {path} do not fit the base; run `dreamset adapt` again.")
        if any(layer is other.layer for other in adapted):
            raise InputError(f"{file}: adapts {path} twice, under two names; run `dreamset adapt` again.")
        if not pair.delta.isfinite().all():
            raise InputError(f"{file}: {path} holds NaN or infinite weights; adapt with a lower learning rate.")
        adapted.append(_Adapted(model, own, layer, pair))
    return adapted
