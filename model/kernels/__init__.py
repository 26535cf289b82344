"""Fast versions of the paper's section 3.2: unproject + aggregate of model/volume.py, ray march of model/rendering.py.

`aggregation.py` and `marching.py` each hold one operator: its definition for autograd and the compiler, and its version
for CPUs. The Triton versions for CUDA are in the files that start with `triton_`. `selection.py` says which one runs.
Each has the plain version in model/volume.py or model/rendering.py as its twin, and a test that compares outputs and
gradients with it.
"""
