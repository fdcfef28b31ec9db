"""The rendered glyphs that the bundled base was trained on: fonts, renderer and parameters.

Retrieval searches these glyphs, and the folder ``base`` trains on them. The trained networks in ``models/base`` load
without this package, with diffusers, open_clip and :mod:`dreamset.weights.judge`.
"""
