"""Make synthetic images: blocks to draw, drawing, images that start from shots, and retrieval."""
