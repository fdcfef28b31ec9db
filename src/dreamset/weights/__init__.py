"""Pretrained weights: their location on this machine, and their identity."""
