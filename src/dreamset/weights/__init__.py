"""Where pretrained weights are, and what they are."""
