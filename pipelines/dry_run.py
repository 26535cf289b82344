"""`--dry-run`: what a command would do, how large the network is and what memory it takes. Does nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from infra.fingerprint import plain
from model.adapter import freeze_base
from model.config import BaseConfig, TinyBaseConfig
from model.unet import ViewDiffUNet
from pipelines.config import RunConfig, TrainConfig
from pipelines.plan import describe_chain
from pipelines.runtime import RuntimeConfig

GIB = 2**30
# The U-Net of Stable Diffusion 2.x, for ids that are not on this disk: enough to count its parameters.
STABLE_DIFFUSION_2_UNET = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}


def print_plan(config: RunConfig, runtime: RuntimeConfig, *, until: str) -> None:
    """Print the resolved settings, what each stage would do, parameter counts and estimated memory."""
    print(json.dumps(plain(config), indent=2))
    print(f"\nwhat would be done below {runtime.root_dir}")
    for name, fingerprint, state in describe_chain(config, runtime, until=until):
        print(f"  {name:<12} {fingerprint}  {state}")
    counts = count_parameters(config)
    print("\nparameters")
    for name, count in counts.items():
        print(f"  {name:<40} {count / 1e6:10.2f} M")
    print("\nestimated memory of one training worker")
    for name, num_bytes in estimate_memory(config.train, counts, num_workers=runtime.num_workers).items():
        print(f"  {name:<40} {num_bytes / GIB:10.2f} GiB")
    print("  without activations: they depend on the kernels; measure one step with the smallest micro_batch_size")


def count_parameters(config: RunConfig) -> dict[str, int]:
    """Parameters of the network, built without memory: the base's U-Net, what is added to it, the volume renderers."""
    unet_config = base_unet_config(config.base)
    network = ViewDiffUNet.meta(unet_config, config.train.model)
    total = sum(p.numel() for p in network.parameters())
    if config.train.trained == "adapter":
        freeze_base(network)
    groups = {name: sum(p.numel() for p in part) for name, part in network.parameter_groups().items()}
    with torch.device("meta"):
        stock = sum(p.numel() for p in type(network.unet).from_config(unet_config).parameters())
    return {
        "U-Net of the base model": stock,
        "added: attention, projection layers": total - stock,
        "of which volume renderers": groups.get("renderer", 0),
        "total": total,
        "trained": sum(groups.values()),
    }


def base_unet_config(base: BaseConfig) -> dict[str, object]:
    """Config of the base's U-Net: from its folder, the published one of Stable Diffusion 2.x, or the stand-in's."""
    if base.source is None:
        return tiny_unet_config(base.tiny)
    path = Path(base.source) / "unet" / "config.json"
    return json.loads(path.read_text()) if path.is_file() else dict(STABLE_DIFFUSION_2_UNET)


def tiny_unet_config(config: TinyBaseConfig) -> dict[str, object]:
    """Config of the stand-in's U-Net."""
    from model.tiny_base import tiny_unet

    with torch.device("meta"):
        return dict(tiny_unet(config).config)


def estimate_memory(config: TrainConfig, counts: dict[str, int], *, num_workers: int) -> dict[str, float]:
    """Bytes per worker: float32 weights, gradients, and AdamW's two moments with its own copy of the weights.

    ZeRO 1 shares the optimizer's 12 bytes a parameter out among the workers, ZeRO 2 the gradients too (Rajbhandari et
    al. 2020, section 5).
    """
    total, trained = float(counts["total"]), float(counts["trained"])
    shared_gradients = num_workers if config.engine.zero_stage >= 2 else 1
    parts = {
        "weights (4 bytes)": 4 * total,
        f"gradients (4 bytes / {shared_gradients})": 4 * trained / shared_gradients,
        f"optimizer (12 bytes / {num_workers} workers)": 12 * trained / num_workers,
    }
    return parts | {"total": sum(parts.values())}
