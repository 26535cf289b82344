"""Settings as dataclasses: those of a run, its presets, and those of the other commands. Imports nothing heavy."""
