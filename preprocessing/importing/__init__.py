"""One's own captures: readers of what other tools write, and the writer that puts it down as CO3Dv2 does.

May import preprocessing's captures, pictures and normalisation, and infra; shards and batches are no business of it.
"""

# Before pycolmap: where pycolmap's copy of libpng is loaded first, Pillow crashes when it writes a PNG (pillow 13.0,
# pycolmap 4.2).
import PIL.Image  # noqa: F401
