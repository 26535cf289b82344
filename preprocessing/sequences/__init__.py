"""One capture's pictures and cameras: decoding, cropping, recentring, and the reasons to reject it."""
