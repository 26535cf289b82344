"""What some stages need of a chain beside their inputs; the table of stages names these functions."""

from __future__ import annotations

from pipelines.chain import checks
from pipelines.chain.running import Chain
from pipelines.spine.artifacts import Artifact
from pipelines.spine.sources import REVISION_FACT, ROLE
from pipelines.spine.stage import Stage, is_finished, run_stage


def check_base_on_hub(chain: Chain, base: Stage) -> None:
    """Check a base model that is on the hub before any stage, unless stage base has read it already."""
    model = chain.extra.get("base", {}).get(ROLE)
    if model is None or REVISION_FACT not in model.facts:
        return
    if not is_finished(chain.bind(base, {ROLE: model}), chain.runtime):
        checks.check_base_on_hub(chain.config, model.facts[REVISION_FACT], stages=chain.names)


def check_champion(chain: Chain, register: Stage) -> None:
    """Check that the champion, if there is one, can be compared with.

    Raises:
        UserError: it was trained below another root, or its weights are gone.
    """
    from infra.tracking.registry import Registry  # MLflow takes seconds to import
    from pipelines.operations.champion import open_champion

    champion = Registry(chain.runtime.tracking, chain.config.register.model_name).champion()
    if champion is not None:
        open_champion(champion, chain.runtime)


def check_shards(chain: Chain, shards: Artifact) -> None:
    """Check that an evaluation will find held-out objects."""
    if "evaluate" in chain.names:
        checks.check_held_out(chain.config, shards.data)


def check_base(chain: Chain, base: Artifact) -> None:
    """Check that its noise schedule has the steps that later stages take."""
    checks.check_sampling(chain.config, str(base.folder), stages=chain.names)


def register_against_champion(chain: Chain, register: Stage) -> Artifact:
    """Evaluate the champion and run stage register; once more when another model becomes champion meanwhile."""
    from pipelines.operations.champion import ChampionChangedError, find_rival, open_champion

    while True:
        rival = find_rival(chain.config.register, chain.runtime, chain.results["train"].fingerprint)
        compared = register
        if rival is not None:
            if chain.require_replaceable is not None:
                chain.require_replaceable(rival)
            checkpoint, base = open_champion(rival, chain.runtime)
            # On the objects that the new model was evaluated on.
            evaluate = next(stage for stage in chain.stages if stage.name == "evaluate")
            of_rival = chain.bound(evaluate, instead={"train": checkpoint, "base": base})
            evaluation = run_stage(of_rival, chain.runtime)
            compared = chain.bind(register, {**register.inputs, "champion_evaluation": evaluation})
        try:
            return run_stage(compared, chain.runtime)
        except ChampionChangedError:
            print(f"{register.name}  another model became champion meanwhile: comparing with that one", flush=True)
