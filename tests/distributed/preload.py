"""What ranks need, imported once by the process that they are copies of: it takes ten seconds of a core."""

import torch

import pipelines.training.worker  # noqa: F401
from infra.engine.engine import _import_deepspeed

_import_deepspeed(torch.device("cpu"))
