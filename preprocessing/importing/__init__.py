"""One's own captures: readers of what other tools write, and the writer that puts it down as CO3Dv2 does.

May import preprocessing's captures, pictures and normalisation, and infra; shards and batches are no business of it.
"""

import signal
import threading

# Before pycolmap: where pycolmap's copy of libpng is loaded first, Pillow crashes when it writes a PNG (pillow 13.0,
# pycolmap 4.2).
import PIL.Image  # noqa: F401
import pycolmap  # noqa: F401

# pycolmap takes SIGTERM to print addresses of its code; whoever had it before gets it back.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
