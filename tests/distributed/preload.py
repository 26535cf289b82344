"""What ranks need, imported once by the process that they are copies of: it takes ten seconds of a core."""

import torch

import pipelines.training.worker  # noqa: F401
from infra.engine.deepspeed_internals import import_deepspeed

import_deepspeed(torch.device("cpu"))
