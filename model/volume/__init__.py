"""The paper's section 3.2: features of views fill a voxel grid, which is rendered from every view."""
