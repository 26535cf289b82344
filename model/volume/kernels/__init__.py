"""Fast versions of the paper's section 3.2: unproject + aggregate of filling.py, the ray march of rendering.py.

`aggregation.py` and `marching.py` each hold one operator: its definition for autograd and the compiler, and its version
for CPUs. Their versions for CUDA are in `triton/`. `inputs.py` says what all versions are given, `selection.py` which
one runs. Each has the plain version in model/volume/ as its twin, and a test that compares outputs and gradients
with it.
"""
