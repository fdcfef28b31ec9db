"""Low-rank adapters on attention: many at once over one frozen model, saved in diffusers' layout."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
import torch.nn.functional as F
from diffusers.loaders.lora_pipeline import StableDiffusionLoraLoaderMixin, StableDiffusionXLLoraLoaderMixin
from peft import LoraConfig
from torch import nn

from dreamset.core.errors import InputError
from dreamset.core.seeds import seed_for
from dreamset.data.adapters import shot_file
from dreamset.data.lora_file import NESTED, read_pairs, steady

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from dreamset.data.lora_file import Pair
    from dreamset.generator.base_model import BaseModel
    from dreamset.params.knobs import Lora

WEIGHTS: Final = "pytorch_lora_weights.safetensors"
_UNET: Final = ["to_k", "to_out.0", "to_q", "to_v"]
_TEXT: Final = ["k_proj", "out_proj", "q_proj", "v_proj"]
# All that a loader needs of peft's configuration. An older peft refuses a file that names a setting it does not know.
_SETTINGS: Final = (
    *("r", "lora_alpha", "lora_dropout", "bias", "rank_pattern", "alpha_pattern", "use_dora", "use_rslora"),
    *("init_lora_weights", "layers_to_transform", "layers_pattern"),
)


@dataclass
class _Rows:
    """The adapters that the rows of the present batch belong to.

    Attributes:
        jobs: adapters, an equal part of the batch for each; None: all of them.
        heads: of each row the number of its B matrix among those of all adapters; None: each adapter has one.
    """

    jobs: torch.Tensor | None = None
    heads: torch.Tensor | None = None


class _Stack(nn.Module):
    """A frozen linear layer with the matrices of several LoRAs in training.

    The frozen product is computed once for the whole batch, and the low-rank products in one batched product.
    ``down`` is (adapters, rank, in), and ``up`` (adapters, heads, out, rank), both float32.
    """

    def __init__(self, layer: nn.Module, down: torch.Tensor, up: torch.Tensor, scaling: float, rows: _Rows) -> None:
        super().__init__()
        self.base_layer, self.scaling, self.rows = layer, scaling, rows
        self.down, self.up = nn.Parameter(down), nn.Parameter(up)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map activations (rows, ..., in) to (rows, ..., out); the rows are in the order of the adapters."""
        out: torch.Tensor = self.base_layer(x)
        down: torch.Tensor = self.down
        up: torch.Tensor = self.up
        if self.rows.jobs is not None:
            down, up = down.index_select(0, self.rows.jobs), up.index_select(0, self.rows.jobs)
        parts = torch.bmm(x.reshape(len(down), -1, x.shape[-1]).to(down.dtype), down.mT)
        heads = up[:, 0]
        if self.rows.heads is not None:
            heads = self.up.flatten(0, 1).index_select(0, self.rows.heads)
            parts = parts.reshape(len(heads), -1, parts.shape[-1])
        low = torch.bmm(parts, heads.mT) * self.scaling
        return out + low.view(out.shape).to(out.dtype)


@dataclass
class Adapters:
    """Adapters in training, attached to the base's models; each layer holds the matrices of all of them.

    Attributes:
        base: the frozen model.
        lora: the rank, alpha, and the adapted models.
        names: of the adapters.
        heads: of each adapter, the number of B matrices beside its A.
        layers: the adapted layers, by the model and the path in it.
        rows: what the layers must know of the present batch.
    """

    base: BaseModel
    lora: Lora
    names: tuple[str, ...]
    heads: tuple[int, ...]
    layers: dict[tuple[str, str], _Stack]
    rows: _Rows

    @property
    def models(self) -> dict[str, nn.Module]:
        """The adapted models by their names in a pipeline."""
        return models(self.base, self.lora)

    @property
    def learns_conditions(self) -> bool:
        """Whether the text encoder is adapted too."""
        return self.lora.text_encoder

    @property
    def tells_images_apart(self) -> bool:
        """Whether the condition of a caption depends on the image that it belongs to."""
        return self.lora.shared and self.lora.text_encoder

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All trainable tensors, float32; the first axis is that of the adapters."""
        return [tensor for layer in self.layers.values() for tensor in (layer.down, layer.up)]

    def parameters(self, name: str, head: int = 0) -> dict[str, torch.Tensor]:
        """Views of the tensors of an adapter, with one of its B matrices, by their names in a diffusers LoRA file."""
        index, tensors = self.names.index(name), {}
        for (prefix, path), layer in self.layers.items():
            key = f"{prefix}.{_filed(prefix, path)}"
            tensors[f"{key}.lora_A.weight"] = layer.down[index]
            tensors[f"{key}.lora_B.weight"] = layer.up[index, head]
        return tensors

    def select(self, images: Sequence[Sequence[int]], jobs: Sequence[int] | None = None) -> None:
        """Say what the rows of the next batch belong to.

        Args:
            images: for each adapter the images, by index among its own, that its rows show.
            jobs: the adapters; None: all of them, in order.
        """
        device = self.base.device
        self.rows.jobs = None if jobs is None else torch.tensor(list(jobs), device=device)
        if not self.lora.shared:
            return
        most, chosen = max(self.heads), range(len(self.names)) if jobs is None else jobs
        numbers = [job * most + image for job, part in zip(chosen, images, strict=True) for image in part]
        self.rows.heads = torch.tensor(numbers, device=device)

    @torch.no_grad()
    def clip(self, most: float) -> None:
        """Scale the gradients of each adapter to a norm of at most ``most``."""
        tensors = [tensor for tensor in self.tensors if tensor.grad is not None]
        if len(self.names) == 1:
            torch.nn.utils.clip_grad_norm_(tensors, most, foreach=True)
            return
        gradients = [tensor.grad for tensor in tensors if tensor.grad is not None]
        norms = torch.stack([torch.linalg.vector_norm(gradient.flatten(1), dim=1) for gradient in gradients])
        factors = (most / (torch.linalg.vector_norm(norms, dim=0) + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(factors.view(-1, *[1] * (gradient.ndim - 1)))

    def save(self, name: str, folder: Path) -> None:
        """Write one adapter in diffusers' LoRA layout, with rank and alpha in its metadata.

        An adapter with several B matrices becomes one file for each of them (``adapters.shot_file``), with the same A.
        Older releases load the files too, down to those of ``tests/older_loaders.sh``.
        """
        for head in range(self.heads[self.names.index(name)]):
            tensors = self.parameters(name, head)
            layers: dict[str, Any] = {}
            for prefix in self.models:
                start = f"{prefix}."
                own = {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}
                layers[f"{prefix}_lora_layers"] = {key: value.detach().cpu().contiguous() for key, value in own.items()}
                # Without this metadata, diffusers assumes alpha == rank when it loads the file.
                layers[f"{prefix}_lora_adapter_metadata"] = _metadata(config(self.base, prefix, self.lora), prefix)
            xl = len(self.base.encoders) > 1
            loader = StableDiffusionXLLoraLoaderMixin if xl else StableDiffusionLoraLoaderMixin
            file = shot_file(head) if self.lora.shared else WEIGHTS
            loader.save_lora_weights(folder, safe_serialization=True, weight_name=file, **layers)
            (folder / file).write_bytes(steady((folder / file).read_bytes()))

    def detach(self) -> None:
        """Remove the adapters, as the function ``detach`` does."""
        detach(self)


def attach(base: BaseModel, lora: Lora, seeds: Mapping[str, int], images: Sequence[int] = ()) -> Adapters:
    """Add one new adapter per entry of ``seeds``: A ~ N(0, 1/r^2), B = 0, float32.

    Args:
        base: the frozen model; its layers are wrapped in place.
        lora: the rank, alpha, and the models to adapt.
        seeds: the seed of each adapter's initial weights, by the adapter's name.
        images: of each adapter, the number of images that have a B of their own; only where ``lora.shared``.
    """
    heads = tuple(images) if lora.shared else (1,) * len(seeds)
    adapters = Adapters(base, lora, tuple(seeds), heads, {}, _Rows())
    # New weights are created where the layer is, and must be trained on the device.
    base.kept |= adapters.models.keys()
    base.need()
    for prefix, model in adapters.models.items():
        linear = _linear(base, prefix, model)
        drawn = [_drawn(prefix, lora.rank, linear, seed) for seed in seeds.values()]
        for number, (path, layer) in enumerate(linear):
            down = torch.stack([matrices[number] for matrices in drawn]).to(layer.weight.device)
            up = down.new_zeros(len(seeds), max(heads), layer.out_features, lora.rank)
            adapters.layers[prefix, path] = _Stack(layer, down, up, lora.alpha / lora.rank, adapters.rows)
    for (prefix, path), stack in adapters.layers.items():
        put(adapters.models[prefix], path, stack)
    return adapters


def detach(adapters: Adapters) -> None:
    """Remove every adapter, so that the models are as they were loaded."""
    for (prefix, path), stack in adapters.layers.items():
        put(adapters.models[prefix], path, stack.base_layer)
    adapters.base.kept -= adapters.models.keys()


def _drawn(prefix: str, rank: int, linear: Sequence[tuple[str, Any]], seed: int) -> list[torch.Tensor]:
    """Return the initial A of each layer, (rank, in) float32, with the random numbers that peft draws."""
    found = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for("lora", prefix, seed))
        for _, layer in linear:
            # peft makes both matrices with torch's own initial values, and then draws A anew.
            down = nn.Linear(layer.in_features, rank, bias=False)
            nn.Linear(rank, layer.out_features, bias=False)
            nn.init.normal_(down.weight, std=1 / rank)
            found.append(down.weight.detach().to(layer.weight.dtype).float())
    return found


def models(base: BaseModel, lora: Lora) -> dict[str, nn.Module]:
    """Return the models that a LoRA adapts, by their names in a pipeline."""
    names = ["unet"] * lora.unet + [*base.encoders] * lora.text_encoder
    return {name: base.parts[name] for name in names}


def _linear(base: BaseModel, prefix: str, model: nn.Module) -> list[tuple[str, Any]]:
    """Return the layers of a model that get a LoRA, by their paths."""
    ends = tuple(f".{target}" for target in _targets(prefix))
    layers = [(path, module) for path, module in model.named_modules() if path.endswith(ends)]
    unused = _unused(base, prefix)
    return [(path, module) for path, module in layers if unused is None or f".layers.{unused}." not in f".{path}"]


def _unused(base: BaseModel, prefix: str) -> int | None:
    """Return the number of the layer that is never used, so that an adapter on it would never have a gradient.

    XL uses the last layer but one of its first encoder.
    """
    if prefix == "text_encoder" and len(base.encoders) > 1:
        return int(base.encoders[prefix].config.num_hidden_layers) - 1
    return None


def put(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module in the place of the one at ``path``."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


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


def _targets(prefix: str) -> list[str]:
    return _UNET if prefix == "unet" else _TEXT


def _filed(prefix: str, path: str) -> str:
    """A layer's path in a file: that of transformers before 5, which later releases read too."""
    return path if prefix == "unet" else NESTED + path.removeprefix(NESTED)


def _metadata(config: LoraConfig, prefix: str) -> dict[str, Any]:
    values = {name: getattr(config, name) for name in _SETTINGS}
    # peft's set of modules has no fixed order, so the file's bytes would change from run to run.
    return {"target_modules": _targets(prefix)} | {name: value for name, value in values.items() if value is not None}


def config(base: BaseModel, prefix: str, lora: Lora) -> LoraConfig:
    """Return peft's configuration of a LoRA on the model ``prefix``."""
    layer_choice: dict[str, Any] = {}
    unused = _unused(base, prefix)
    if unused is not None:
        layer_choice = {"layers_to_transform": list(range(unused)), "layers_pattern": "layers"}
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
    layers = adapted(base, file)
    pristine: list[tuple[nn.Parameter, torch.Tensor]] = []
    try:
        with torch.no_grad():
            for at in layers:
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
        for at in layers:
            at.replace(at.layer)


@dataclass(frozen=True)
class Adapted:
    """A layer and the LoRA that adapts it; the model of that name in a pipeline holds the layer, under ``path``."""

    name: str
    model: nn.Module
    path: str
    layer: Any
    pair: Pair

    def replace(self, module: nn.Module) -> None:
        """Put a module in the place of the layer."""
        put(self.model, self.path, module)


class _Beside(nn.Module):
    """A linear layer with a LoRA beside its weights.

    One product sums up both and rounds once. A second sum would lose what is below the last bit of the first. The
    tensors are buffers, so that a compiled U-Net takes another adapter of the same shapes as it is.
    """

    down: torch.Tensor
    weights: torch.Tensor

    def __init__(self, at: Adapted, scale: float) -> None:
        super().__init__()
        weight, self.bias, pair = at.layer.weight, at.layer.bias, at.pair
        up = scale * pair.alpha / pair.down.shape[0] * pair.up.float()
        self.register_buffer("down", pair.down.to(weight), persistent=False)  # (rank, in)
        self.register_buffer("weights", torch.cat([weight, up.to(weight)], dim=1), persistent=False)  # (out, in + rank)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map activations (..., in) to (..., out)."""
        return F.linear(torch.cat([x, F.linear(x, self.down)], dim=-1), self.weights, self.bias)


def adapted(base: BaseModel, file: Path) -> list[Adapted]:
    """Return the layers that a file adapts.

    Raises:
        InputError: the file holds anything but finite LoRA weights that fit this base.
    """
    found: list[Adapted] = []
    for path, pair in read_pairs(file).items():
        prefix, _, inner = path.partition(".")
        try:
            model = base.parts[prefix]
            # Files name a text encoder's layers with or without `text_model.`.
            own = (NESTED if hasattr(model, "text_model") else "") + inner.removeprefix(NESTED)
            layer = model.get_submodule(own)
            layer = getattr(layer, "layer", layer)  # of a layer that has LoRAs beside it
            weight: torch.Tensor = layer.weight
        except (KeyError, AttributeError) as error:
            raise InputError(f"{file}: adapts {path}, which the base does not have; adapt this base.") from error
        if (pair.up.shape[0], pair.down.shape[1]) != tuple(weight.shape):
            raise InputError(f"{file}: the shapes of {path} do not fit the base; run `dreamset adapt` again.")
        if any(layer is other.layer for other in found):
            raise InputError(f"{file}: adapts {path} twice, under two names; run `dreamset adapt` again.")
        if not pair.delta.isfinite().all():
            raise InputError(f"{file}: {path} holds NaN or infinite weights; adapt with a lower learning rate.")
        found.append(Adapted(prefix, model, own, layer, pair))
    return found
