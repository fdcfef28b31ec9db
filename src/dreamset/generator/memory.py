"""The memory that a run needs on a GPU, measured without one: the same code runs on tensors without content.

Torch's meta device carries shapes and types and computes nothing, so counting a full-size training step takes seconds
on any machine. The count is the bytes of all tensors alive at the peak. The CUDA context, the allocator's gaps and the
libraries' buffers come on top.
"""

from __future__ import annotations

import contextlib
import weakref
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from dreamset.generator import trained
from dreamset.generator.base_model import BaseModel, parameters, save_memory
from dreamset.generator.conditions import Condition

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from dreamset.generator.trained import Kind
    from dreamset.params.model import Model

# Bytes per trained number, in float32: weight, gradient, two moments of AdamW, average.
TRAINED_BYTES = 5 * 4


class Peak(TorchDispatchMode):
    """Count the bytes of the tensors created inside it: ``live`` now, and ``peak``, the most at any moment."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live: int = 0
        self.peak: int = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._count, result)
        return result

    def ignore(self, tensor: torch.Tensor) -> None:
        """Leave a tensor that existed before out of the count."""
        self._known.add(tensor.untyped_storage()._cdata)

    def _count(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._free, key, size)
        return tensor

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


class _Attention(torch.autograd.Function):
    """Attention that keeps what fused kernels keep: inputs, output and one number per row, but no square matrix."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        query, key, value, _, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


@contextlib.contextmanager
def fused_attention() -> Iterator[None]:
    """Replace torch's attention by ``_Attention``: on the meta device torch's would make the square matrix.

    The replacement is by name. A function mode is off during the backward pass, where checkpointing calls attention
    again.
    """
    original = F.scaled_dot_product_attention

    def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        out: torch.Tensor = _Attention.apply(query, key, value)
        return out

    F.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        F.scaled_dot_product_attention = original


def on_meta(folder: Path, model: Model) -> BaseModel:
    """The generator of a diffusers folder on the meta device, built from its configurations alone."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from diffusers.utils import logging as diffusers_logging
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    dtype: torch.dtype = getattr(torch, model.dtype)
    parts: dict[str, Any] = {}
    with torch.device("meta"):
        parts["unet"] = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder / "unet"))
        parts["vae"] = AutoencoderKL.from_config(AutoencoderKL.load_config(folder / "vae"))
        for name in ("text_encoder", "text_encoder_2"):
            if (folder / name).is_dir():
                kind = CLIPTextModel if name == "text_encoder" else CLIPTextModelWithProjection
                parts[name] = kind(CLIPTextConfig.from_pretrained(folder / name))
    diffusers_logging.set_verbosity_error()
    for part in parts.values():
        part.requires_grad_(False).eval().to(dtype)
    base = BaseModel(parts, (), _SCHEDULE, model.resolution, torch.device("meta"), dtype)
    save_memory(base, model.memory)
    return base


_SCHEDULE: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def of_adapting(base: BaseModel, kind: Kind, batch: int, together: int, *, offload: bool) -> dict[str, int]:
    """The bytes on the device while ``together`` adapters are trained at once, with ``batch`` images each.

    Args:
        base: a base from ``on_meta``; its adapters are removed again.
        kind: the kind of weights to train.
        batch: images per step of one adapter.
        together: number of adapters trained at once.
        offload: whether the autoencoder leaves the device once the latents are cached.

    Returns:
        ``weights``, ``trained`` (adapters with gradients, moments and average), ``step`` and their sum ``total``.
    """
    weights = sum(_bytes(part) for name, part in base.parts.items() if not (offload and name == "vae"))
    with torch.device("meta"):
        names = [f"adapter_{i}" for i in range(together)]
        adapters = trained.attach(base, kind, {name: i for i, name in enumerate(names)}, [batch] * together)
        adapters.select([range(batch)] * together)
    parameters_trained = adapters.tensors
    numbers = sum(parameter.numel() for parameter in parameters_trained)
    count = batch * together

    def step() -> None:
        with torch.set_grad_enabled(adapters.learns_conditions):
            own = count if adapters.tells_images_apart else together
            condition = _condition(base, own).rows([i % own for i in range(count)])
        latents = torch.empty((count, *base.latent_shape), device="meta")
        base.predict(latents, torch.empty(count, device="meta"), condition).float().square().mean().backward()

    peak = _peak(base, step)
    for parameter in parameters_trained:
        parameter.grad = None
    adapters.detach()
    # ``trained`` already counts the gradients, so they leave the step.
    sizes = {"weights": weights, "trained": numbers * TRAINED_BYTES, "step": max(0, peak - 4 * numbers)}
    return sizes | {"total": sum(sizes.values())}


def of_drawing(base: BaseModel, batch: int, *, guided: bool, offload: bool) -> dict[str, int]:
    """The bytes on the device while ``batch`` images are drawn: ``weights``, ``step`` and their sum ``total``.

    With ``guided`` the U-Net sees every image twice. With ``offload`` one part at a time is on the device, and the
    largest counts.
    """
    parts = [_bytes(part) for part in base.parts.values()]
    rows = batch * (2 if guided else 1)

    def step() -> None:
        condition = _condition(base, 1).expand(rows)
        latents, times = torch.empty((rows, *base.latent_shape), device="meta"), torch.empty(rows, device="meta")
        base.predict(latents, times, condition)
        base.decode(latents[:batch])

    with torch.no_grad():
        sizes = {"weights": max(parts) if offload else sum(parts), "step": _peak(base, step)}
    return sizes | {"total": sum(sizes.values())}


def _condition(base: BaseModel, count: int) -> Condition:
    if base.class_contexts is not None:
        return base.encode_each([""] * count)
    length = min(encoder.config.max_position_embeddings for encoder in base.encoders.values())
    return base.embed(torch.zeros((count, len(base.encoders), length), dtype=torch.int64, device="meta"))


def _peak(base: BaseModel, run: Callable[[], None]) -> int:
    with Peak() as peak, fused_attention():
        for part in base.parts.values():
            for tensor in (*part.parameters(), *part.buffers()):
                peak.ignore(tensor)
        run()
        most: int = peak.peak
    return most


def _bytes(part: Any) -> int:
    size: int = next(part.parameters()).element_size()
    return parameters(part) * size
