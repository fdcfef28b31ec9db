"""The judge's frozen features under the head of a simple classifier of the shots.

The judge scores synthetic images. No classifier that learns from these uses it, so that their scores stay fair. A
simple classifier learns from the shots alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamset.core.errors import InputError
from dreamset.core.files import write_json
from dreamset.weights import judge

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_PLAIN: Final = {"mean": [0.0] * 3, "std": [1.0] * 3, "resize": "bicubic"}
_NORMAL: Final = """
mean, std = (torch.tensor(record["judge"][key])[:, None, None] for key in ("mean", "std"))


def features(images):
    return F.normalize(network((images - mean) / std){output}, dim=-1)
"""
# How others get the features, by the kind of the judge; `read` gives images in 0..1.
PROGRAMS: Final = {
    "glyphs": f"""
judge = load_file("{judge.WEIGHTS}")


def norm(x, name):
    mean, var, weight, bias = (judge[f"{{name}}.{{key}}"] for key in ("running_mean", "running_var", "weight", "bias"))
    return F.batch_norm(x, mean, var, weight, bias)


def block(x, name, stride):
    inner = norm(F.conv2d(x, judge[f"{{name}}.first.weight"], stride=stride, padding=1), f"{{name}}.first_norm")
    inner = norm(F.conv2d(inner.relu(), judge[f"{{name}}.second.weight"], padding=1), f"{{name}}.second_norm")
    beside = judge.get(f"{{name}}.shortcut.weight")
    return (inner + (x if beside is None else F.conv2d(x, beside, stride=stride))).relu()


def features(images):
    x = F.conv2d(images * 2 - 1, judge["stem.weight"], judge["stem.bias"], padding=1).relu()
    for index, stride in enumerate((1, 2, 1, 2)):
        x = block(x, f"blocks.{{index}}", stride)
    return F.normalize(F.linear(x.flatten(1), judge["embed.weight"], judge["embed.bias"]).tanh(), dim=-1)
""",
    "dinov2": """
from transformers import AutoModel

network = AutoModel.from_pretrained(".", use_safetensors=True).eval()
"""
    + _NORMAL.format(output=".pooler_output"),
    "inception_v3": """
from torchvision.models import inception_v3

network = inception_v3(weights=None, aux_logits=False, transform_input=False, init_weights=False)
network.fc = torch.nn.Identity()
network.load_state_dict(load_file("model.safetensors"))
network.eval()
"""
    + _NORMAL.format(output=""),
}


class JudgeFeatures(nn.Module):
    """The judge's features, of length one, under a head.

    Args:
        network: the frozen judge.
        identity: its name, commit and sha256, as ``weights.judging.identity`` returns them.
        head: from features (n, d) to logits; None where only the features are needed.
    """

    label_smoothing = 0.0

    def __init__(
        self,
        network: judge.Judge | judge.Dinov2 | judge.Inception,
        identity: Mapping[str, Any],
        head: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.network, self.identity = network.requires_grad_(False), dict(identity)
        self.size = network.size
        self.answer = head or nn.Identity()

    def features(self, images: Tensor) -> Tensor:
        """Return features (n, d) float32 of length one of (n, 3, size, size) images in 0..1."""
        return F.normalize(self.network.features(images * 2 - 1).float(), dim=-1)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (n, classes) of (n, 3, size, size) images in 0..1."""
        features = self.features(images)
        # Distances and thresholds need all digits of the features.
        with torch.autocast(images.device.type, enabled=False):
            logits: Tensor = self.answer(features)
        return logits


def save(classifier: JudgeFeatures, folder: Path) -> dict[str, Any]:
    """Write the judge as ``judge.load_network`` reads it; return the facts that ``load`` and the program need."""
    network = classifier.network
    facts: dict[str, Any] = {"kind": "glyphs"}
    if isinstance(network, judge.Judge):
        judge.save_judge(network, folder)
    else:
        facts = {"mean": network.shift.flatten().tolist(), "std": network.scale.flatten().tolist()}
        inner: Any = network.network
        if isinstance(network, judge.Dinov2):
            facts["kind"] = "dinov2"
            inner.save_pretrained(folder, max_shard_size="100GB")  # one file, whatever the size
        else:
            from safetensors.torch import save_file

            facts["kind"] = "inception_v3"
            weights = {name: value.cpu().contiguous() for name, value in inner.state_dict().items()}
            save_file(weights, folder / "model.safetensors")
            normal = {"mean": facts["mean"], "std": facts["std"]}
            write_json(folder / judge.CONFIG, {"architecture": facts["kind"], "pretrained_cfg": normal})
    identity = classifier.identity
    return {
        "judge": facts,
        "transform": {"size": classifier.size, **_PLAIN},
        "base": identity["name"],
        "base_commit": identity["commit"],
        "base_sha256": identity["sha256"],
    }


def load(folder: Path, record: Mapping[str, Any], head: nn.Module) -> JudgeFeatures:
    """Return the classifier that ``save`` wrote.

    Raises:
        InputError: its files are not whole.
    """
    network = judge.load_network(folder)
    if isinstance(network, judge.Clip):  # a CLIP has another record
        raise InputError(f"{folder}: holds a CLIP and not the judge; run `dreamset train real` again.")
    identity = {"name": record["base"], "commit": record["base_commit"], "sha256": record["base_sha256"]}
    return JudgeFeatures(network, identity, head)
