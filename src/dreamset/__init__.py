"""Few labelled images in; a labelled synthetic dataset, a better classifier and an honest measurement out."""

__version__ = "0.1.0"
