"""Types of values that several parts of ``params.yaml`` share."""

from typing import Annotated, Final, Literal

from dreamset.core.strict import Range

Count = Annotated[int, Range(low=1)]
Natural = Annotated[int, Range(low=0)]
Share = Annotated[float, Range(low=0, high=1)]
Positive = Annotated[float, Range(above=0)]

Scheduler = Literal["dpmsolver++", "ddim", "pndm", "unipc", "euler_ancestral", "lcm"]
Invariance = Literal["hflip", "vflip", "rotation", "colour"]
Saving = Literal["gradient_checkpointing", "attention_slicing", "vae_slicing", "offload"]
# Which pretrained weights: of a model's row, or what writes the captions of a recipe.
Part = Literal["generator", "student", "clip", "judge", "captioner"]

# Simple classifiers: each method on each kind of features of the shots.
METHODS: Final = ("nearest", "logistic", "forest")
FEATURES: Final = ("pixels", "clip", "judge")
Features = Literal["pixels", "clip", "judge"]
