"""Optimisation over ranks equals plain AdamW over the whole batch, and continues exactly from a saved state."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from infra.engine.config import EngineConfig
from infra.engine.engine import Engine
from infra.engine.learning_rates import learning_rate
from infra.engine.stopwatch import Stopwatch
from model.diffusion.objective import PartLoss
from pipelines.training.loop import LossPart, StepInfo, Training, train_steps
from preprocessing.batches.shares import Schedule
from tests.distributed.launch import TIMEOUT_SECONDS, run_distributed

pytestmark = pytest.mark.timeout(2 * TIMEOUT_SECONDS)

BATCH_SIZE, NUM_STEPS = 4, 3
STAGES, BFLOAT16_STAGES = (0, 1, 2), (0, 2)
PRIOR_WEIGHT = 0.1
CONFIG = EngineConfig(
    learning_rate=1e-2, renderer_learning_rate=5e-2, weight_decay=0.1, gradient_clip=0.5, warmup_steps=2
)
# Sums over samples are taken in another order (rounding 6e-8 of values near 1), and AdamW divides by the gradient's own
# size: 1e-4 of a learning rate for a gradient of 1e-3. A micro-batch counted twice or a missing prior part changes
# norms by more than 1e-2, a swapped learning rate the weights.
TOLERANCE = 2e-4


class Network(nn.Module):
    """7 inputs, so that parameters do not split evenly between ranks; a part that only the views loss uses."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.hidden, self.out, self.renderer = nn.Linear(7, 9), nn.Linear(9, 3), nn.Linear(9, 3)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5, generator=generator)

    def forward(self, x: Tensor, views: bool) -> Tensor:
        hidden = torch.tanh(self.hidden(x))
        return self.out(hidden) + self.renderer(hidden) if views else self.out(hidden)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        return {
            "unet": [*self.hidden.parameters(), *self.out.parameters()],
            "empty": [],
            "renderer": list(self.renderer.parameters()),
        }


def mean_error(network: nn.Module, positions: range, *, views: bool) -> Tensor:
    generators = [torch.Generator().manual_seed(2 * position + views) for position in positions]
    x = torch.stack([torch.randn(7, generator=generator) for generator in generators])
    target = torch.stack([torch.randn(3, generator=generator) for generator in generators])
    return (network(x, views) - target).square().mean(dim=1).mean()


def parts(network: nn.Module) -> list[LossPart]:
    def part(positions: range, *, views: bool, weight: float) -> PartLoss:
        share = mean_error(network, positions, views=views) * len(positions) / BATCH_SIZE
        return PartLoss(weight * share, {"views" if views else "prior": share.detach()})

    return [partial(part, views=True, weight=1.0), partial(part, views=False, weight=PRIOR_WEIGHT)]


def train(engine: Engine, micro_batch_size: int, steps: range) -> list[StepInfo]:
    schedule = Schedule(
        batch_size=BATCH_SIZE,
        micro_batch_size=micro_batch_size,
        rank=dist.get_rank(),
        num_ranks=dist.get_world_size(),
    )
    infos: list[StepInfo] = []
    training = Training(
        engine=engine,
        parts=parts(engine.model),
        schedule=schedule,
        callbacks=[infos.append],
        stopwatch=Stopwatch(engine.device),
    )
    train_steps(training, schedule.positions(steps), steps=steps)
    return infos


def new_engine(config: EngineConfig, weights: dict[str, Tensor] | None = None) -> tuple[Network, Engine]:
    network = Network()
    if weights is not None:
        network.load_state_dict(weights)
    return network, Engine(network, network.groups(), config, num_steps=NUM_STEPS, device=torch.device("cpu"))


def scenario(micro_batch_size: int) -> dict[str, Any]:
    """Train with every stage, without and with a break after two steps, and in bfloat16."""
    result: dict[str, Any] = {}
    for stage in STAGES:
        config = EngineConfig(**{**vars(CONFIG), "zero_stage": stage})
        network, engine = new_engine(config)
        infos = train(engine, micro_batch_size, range(2))
        weights = {key: value.clone() for key, value in network.state_dict().items()}
        state = engine.optimizer_state()
        infos += train(engine, micro_batch_size, range(2, NUM_STEPS))
        result[f"stage{stage}"] = {
            "weights": {key: value.clone() for key, value in network.state_dict().items()},
            "losses": [info.loss for info in infos],
            "norms": [info.gradient_norm for info in infos],
            "rates": [dict(info.learning_rates) for info in infos],
            "state": state,
        }
        box = [state]
        dist.broadcast_object_list(box, src=0)
        network, engine = new_engine(config, weights)
        engine.load_optimizer_state(box[0], num_steps=2)
        resumed = train(engine, micro_batch_size, range(2, NUM_STEPS))
        result[f"resumed{stage}"] = {"weights": network.state_dict(), "losses": [info.loss for info in resumed]}
    for stage in BFLOAT16_STAGES:
        network, engine = new_engine(EngineConfig(**{**vars(CONFIG), "precision": "bf16", "zero_stage": stage}))
        infos = train(engine, micro_batch_size, range(NUM_STEPS))
        result[f"bf16_{stage}"] = {"losses": [info.loss for info in infos], "dtype": str(network.out.weight.dtype)}
    return result


@pytest.fixture(scope="module")
def two_ranks() -> list[dict[str, Any]]:
    """2 ranks x 2 micro-batches of 1."""
    return run_distributed(scenario, 2, 1)


@pytest.fixture(scope="module")
def three_ranks() -> list[dict[str, Any]]:
    """Shares of 2, 1 and 1 samples, so that two ranks must repeat one that does not count."""
    return run_distributed(scenario, 3, 1)


@pytest.fixture(scope="module")
def one_rank() -> dict[str, Any]:
    """1 rank x 1 micro-batch of 4."""
    return run_distributed(scenario, 1, 4)[0]


def reference() -> dict[str, Any]:
    """Plain torch over whole batches."""
    network = Network()
    groups = network.groups()
    optimizer = torch.optim.AdamW(
        [
            {"params": groups["unet"], "weight_decay": CONFIG.weight_decay},
            {"params": groups["renderer"], "weight_decay": 0.0},
        ]
    )
    result: dict[str, Any] = {"losses": [], "norms": []}
    for step in range(NUM_STEPS):
        positions = range(step * BATCH_SIZE, (step + 1) * BATCH_SIZE)
        loss = mean_error(network, positions, views=True) + PRIOR_WEIGHT * mean_error(network, positions, views=False)
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(network.parameters(), CONFIG.gradient_clip)
        rate = min(1.0, (step + 1) / CONFIG.warmup_steps)
        optimizer.param_groups[0]["lr"] = CONFIG.learning_rate * rate
        optimizer.param_groups[1]["lr"] = CONFIG.renderer_learning_rate * rate
        optimizer.step()
        result["losses"].append(loss.item())
        result["norms"].append(norm.item())
    return result | {"weights": network.state_dict()}


@pytest.mark.parametrize("stage", STAGES)
def test_any_split_equals_plain_adamw(
    stage: int, two_ranks: list[dict[str, Any]], three_ranks: list[dict[str, Any]], one_rank: dict[str, Any]
) -> None:
    expected = reference()
    for result in (*two_ranks, *three_ranks, one_rank):
        found = result[f"stage{stage}"]
        assert found["losses"] == pytest.approx(expected["losses"], abs=TOLERANCE)
        assert found["norms"] == pytest.approx(expected["norms"], rel=TOLERANCE)
        for name, value in expected["weights"].items():
            torch.testing.assert_close(found["weights"][name], value, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("stage", STAGES)
def test_continues_bit_for_bit(stage: int, two_ranks: list[dict[str, Any]]) -> None:
    for result in two_ranks:
        whole, resumed = result[f"stage{stage}"], result[f"resumed{stage}"]
        assert resumed["losses"] == whole["losses"][2:]
        for name, value in whole["weights"].items():
            assert torch.equal(resumed["weights"][name], value), name


def test_state_is_the_same_for_any_number_of_ranks(two_ranks: list[dict[str, Any]], one_rank: dict[str, Any]) -> None:
    whole, other = one_rank["stage2"]["state"], two_ranks[0]["stage2"]["state"]
    assert whole.keys() == other.keys()
    assert two_ranks[1]["stage2"]["state"] == {}
    for name, value in whole.items():
        torch.testing.assert_close(other[name], value, rtol=0, atol=TOLERANCE)


def compiled() -> dict[str, Any]:
    """Losses of a step that torch.compile has made faster."""
    _, engine = new_engine(EngineConfig(**{**vars(CONFIG), "compile": True}))
    infos = train(engine, 4, range(2))
    return {"losses": [info.loss for info in infos], "compiled": engine.model.is_compiled}


def test_a_compiled_network_has_the_same_losses(one_rank: dict[str, Any]) -> None:
    (result,) = run_distributed(compiled, 1)
    assert result["compiled"]
    assert result["losses"] == pytest.approx(one_rank["stage2"]["losses"][:2], abs=TOLERANCE)


def test_groups_keep_their_learning_rates(one_rank: dict[str, Any]) -> None:
    assert one_rank["stage2"]["rates"] == [
        {name: learning_rate(CONFIG, name, step, num_steps=NUM_STEPS) for name in ("unet", "renderer")}
        for step in range(NUM_STEPS)
    ]
    assert one_rank["stage2"]["rates"][-1] == {"unet": 1e-2, "renderer": 5e-2}


@pytest.mark.parametrize("stage", BFLOAT16_STAGES)
def test_bf16_keeps_float32_weights(stage: int, one_rank: dict[str, Any]) -> None:
    exact, rounded = one_rank[f"stage{stage}"]["losses"], one_rank[f"bf16_{stage}"]["losses"]
    assert one_rank[f"bf16_{stage}"]["dtype"] == "torch.float32"
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.1)  # bfloat16 has 8 bits: 0.4 % per product, and AdamW's signs
