"""The bundled base: how the small pretrained networks under ``models/base`` are made.

Nothing here is needed to *use* them: they load with diffusers, open_clip and :mod:`dreamset.metrics.judge`.
"""
