"""Synthetic images: blocks to draw, the drawing itself, starts from shots, retrieval."""
