"""Photos and masks as cameras and editors write them: formats, orientation, colours, lenses."""
