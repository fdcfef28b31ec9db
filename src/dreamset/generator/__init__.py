"""The text-to-image model: the frozen base, its adapters, their training, and the drawing of images."""
