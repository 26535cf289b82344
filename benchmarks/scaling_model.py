"""Time of a training step on many GPUs, from its parts: arithmetic, collectives by the α-β model, the loader.

Nothing here is measured; benchmarks/bench_scaling.py measures what it can, and names the rest as assumptions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

RANKS_PER_NODE = 8


@dataclass(frozen=True, kw_only=True)
class Network:
    """What ranks are connected by."""

    name: str
    node_bytes_per_second: float  # of one GPU within a node
    adapter_bytes_per_second: float  # of one adapter between nodes
    adapters_per_node: int
    node_latency_seconds: float
    latency_seconds: float  # between nodes

    def link(self, num_ranks: int) -> tuple[float, float]:
        """(seconds of latency, bytes a second) of a hop of a ring through all ranks: the mean, and the slowest.

        One hop in 8 leaves the node. Each adapter of a node carries a ring of its own with a share of the bytes.
        """
        if num_ranks <= RANKS_PER_NODE:
            return self.node_latency_seconds, self.node_bytes_per_second
        between = self.adapter_bytes_per_second * self.adapters_per_node
        inside = (RANKS_PER_NODE - 1) * self.node_latency_seconds
        return (inside + self.latency_seconds) / RANKS_PER_NODE, min(between, self.node_bytes_per_second)


def ring_seconds(num_bytes: float, num_ranks: int, latency: float, bytes_per_second: float, *, rounds: int) -> float:
    """A ring collective of `num_bytes`: 2 rounds for an all-reduce, 1 for a reduce-scatter or an all-gather.

    A round has p - 1 hops of num_bytes / p each: rounds (p - 1) (α + n / (p β)).
    """
    return rounds * (num_ranks - 1) * (latency + num_bytes / (num_ranks * bytes_per_second))


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a step consists of."""

    name: str
    num_parameters: int
    sample_flops: float  # forward and backward, both parts of the objective
    micro_batch_size: int  # samples per forward pass
    passes: int  # backward passes per micro-batch, each of which sums gradients over ranks
    backward_bytes: Mapping[int, float]  # bytes per parameter that one backward pass gives to collectives, by rounds
    step_bytes: Mapping[int, float]  # the same of the optimizer's step
    bucket_bytes: float  # collectives are called with pieces of this size


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step on many ranks."""

    num_ranks: int
    batch_size: int
    compute_seconds: float
    communication_seconds: float
    efficiency: float  # against one rank doing a proportional batch

    @property
    def seconds(self) -> float:
        return self.compute_seconds + self.communication_seconds

    @property
    def samples_per_rank_second(self) -> float:
        """What each rank's loader has to give."""
        return self.batch_size / self.num_ranks / self.seconds


def predict(training: Training, network: Network, *, num_ranks: int, batch_size: int, rank_flops: float) -> Step:
    """A step of `batch_size` samples on `num_ranks`; `rank_flops` are FLOP/s that a rank really reaches.

    Collectives do not overlap with arithmetic (infra/engine.py has `overlap_comm` off).
    """
    share = math.ceil(batch_size / num_ranks)
    compute = share * training.sample_flops / rank_flops
    passes = training.passes * math.ceil(share / training.micro_batch_size)
    latency, speed = network.link(num_ranks)

    def collectives(bytes_per_parameter: Mapping[int, float]) -> float:
        total = 0.0
        for rounds, each in bytes_per_parameter.items():
            num_bytes = each * training.num_parameters
            calls = math.ceil(num_bytes / training.bucket_bytes)
            total += calls * ring_seconds(num_bytes / max(calls, 1), num_ranks, latency, speed, rounds=rounds)
        return total

    communication = passes * collectives(training.backward_bytes) + collectives(training.step_bytes)
    alone = batch_size / num_ranks * training.sample_flops / rank_flops
    return Step(
        num_ranks=num_ranks,
        batch_size=batch_size,
        compute_seconds=compute,
        communication_seconds=communication,
        efficiency=alone / (compute + communication),
    )
