"""The running average of a training's weights."""

from __future__ import annotations

from diffusers.training_utils import EMAModel
from torch import Tensor

from infra.checkpoints.snapshots import Snapshot
from model.unet import ViewDiffUNet
from pipelines.training.loop import StepInfo

AVERAGE_PART = "average"  # file name inside a checkpoint


class WeightAverage:
    """Running average of the weights, which models made from it are better for (Karras et al. 2024, section 3).

    On rank 0, which has all weights after every step. Its decay rises with the steps, as long as these are few.
    """

    def __init__(self, unet: ViewDiffUNet, decay: float, snapshot: Snapshot | None) -> None:
        self._unet = unet
        self._average = EMAModel(unet.parameters(), decay=decay, foreach=True)
        if snapshot is not None:
            saved = snapshot.tensors(AVERAGE_PART)
            self._average.shadow_params = [saved[name].to(p.device) for name, p in unet.named_parameters()]
            self._average.optimization_step = snapshot.step

    def __call__(self, info: StepInfo) -> None:
        self._average.step(self._unet.parameters())

    def weights(self) -> dict[str, Tensor]:
        """The averages by parameter name."""
        names = (name for name, _ in self._unet.named_parameters())
        return dict(zip(names, self._average.shadow_params, strict=True))
