"""The tokenizers of a generator, and how much of a prompt its text encoders read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dreamset.core.files import read_json

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Tokens:
    """The tokenizers of a generator, one per text encoder, and its window: the tokens that all encoders read."""

    tokenizers: tuple[Any, ...]
    length: int

    @classmethod
    def of(cls, folder: Path) -> Tokens:
        """Return the tokenizers of a diffusers folder."""
        from transformers import CLIPTokenizer

        parts = [name for name in ("text_encoder", "text_encoder_2") if (folder / name).is_dir()]
        tokenizers = tuple(
            CLIPTokenizer.from_pretrained(folder / part.replace("text_encoder", "tokenizer")) for part in parts
        )
        configs = [read_json(folder / part / "config.json", "dreamset fetch") for part in parts]
        positions = [int(config["max_position_embeddings"]) for config in configs]
        return cls(tokenizers, min(*positions, *(int(tokenizer.model_max_length) for tokenizer in tokenizers)))

    def whole(self, prompt: str) -> list[list[int]]:
        """Return the tokens of a prompt for each encoder, none cut, with its start and its end."""
        return [tokenizer(prompt).input_ids for tokenizer in self.tokenizers]

    def read(self, prompt: str) -> tuple[tuple[int, ...], ...]:
        """Return the tokens that each encoder reads of a prompt."""
        return tuple(
            tuple(tokenizer(prompt, truncation=True, max_length=self.length).input_ids) for tokenizer in self.tokenizers
        )

    def lost(self, prompt: str) -> int:
        """Return how many tokens of a prompt no encoder reads; 0 where it fits."""
        return max(0, max(map(len, self.whole(prompt))) - self.length)
