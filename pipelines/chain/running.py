"""Running the chain of stages: up to the one that is wanted, reusing what is finished."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.errors import UserError
from infra.storage.files import open_path
from pipelines.chain.checks import check_base_on_hub, check_held_out, check_sampling, check_settings
from pipelines.chain.table import STEPS, Step
from pipelines.settings.run import RunConfig
from pipelines.spine.artifacts import Artifact, external_dataset, external_model
from pipelines.spine.runtime import RuntimeConfig
from pipelines.spine.sources import NOT_KNOWN, REVISION_FACT, ROLE, pretrained_models
from pipelines.spine.stage import Stage, is_finished, partial_dir, run_stage

if TYPE_CHECKING:  # MLflow takes seconds to import
    from infra.tracking.registry import RegisteredVersion


def make_stage(step: Step, config: RunConfig, inputs: Mapping[str, Artifact]) -> Stage:
    """The step with its settings and inputs. A base model that is read depends on nothing else."""
    if step.name == "base" and config.base.source is not None:
        inputs = {ROLE: inputs[ROLE]}

    def run(*arguments: Any) -> Mapping[str, Any]:
        return step.load()(*arguments)

    return Stage(
        name=step.name,
        run=run,
        kind=step.kind,
        config=getattr(config, step.name),
        inputs=inputs,
        version=step.version,
    )


def run_chain(
    config: RunConfig,
    runtime: RuntimeConfig,
    *,
    until: str,
    given: Mapping[str, Artifact] | None = None,
    extra: Mapping[str, Mapping[str, Artifact]] | None = None,
    require_replaceable: Callable[[RegisteredVersion], None] | None = None,
) -> dict[str, Artifact]:
    """Run the stages up to `until`, opening those that are finished; returns every stage's result by name.

    `given` are results to use instead of running their stages; with `runtime.co3d_root` the captures are given. `extra`
    are further inputs of stages, by stage and role. `require_replaceable` is asked, before anything is registered,
    about the champion that the model would replace: not always the one that was champion before the training.

    Raises:
        UserError: bad captures or settings, or MLflow or the hub does not answer (said before any work is done); or
            that champion may not be replaced.
    """
    results: dict[str, Artifact] = dict(given or {})
    if "synth" not in results:
        results |= _given_captures(runtime, until)
    steps = needed_steps(until, set(results))
    check_settings(config, runtime, stages={step.name for step in steps})
    if any(step.tracks for step in steps):
        from infra.tracking.experiment import Tracking

        Tracking(runtime.tracking).check()
    if until == "register":
        _require_champion(config, runtime)
    models = pretrained_models(config, runtime, stages={step.name for step in steps})
    _check_base_on_hub(config, runtime, steps, models)
    for step in steps:
        inputs = _inputs(step, results, extra, models)
        if step.name == "register":
            results[step.name] = _register(step, config, runtime, inputs, results, require_replaceable)
        else:
            results[step.name] = run_stage(make_stage(step, config, inputs), runtime)
        if step.name == "preprocess" and until in ("evaluate", "report", "register"):
            check_held_out(config, results["preprocess"].data)
        if step.name == "base":
            check_sampling(config, str(results["base"].folder), stages={step.name for step in steps})
    return results


def _check_base_on_hub(
    config: RunConfig, runtime: RuntimeConfig, steps: list[Step], models: Mapping[str, Mapping[str, Artifact]]
) -> None:
    """Check a base model that is on the hub before any stage, unless stage base has read it already."""
    model = models.get("base", {}).get(ROLE)
    if model is None or REVISION_FACT not in model.facts:
        return
    base = next(step for step in steps if step.name == "base")
    if not is_finished(make_stage(base, config, {ROLE: model}), runtime):
        check_base_on_hub(config, model.facts[REVISION_FACT], stages={step.name for step in steps})


def given_model(folder: str | None) -> dict[str, dict[str, Artifact]]:
    """The model to start training from, as a further input of that stage; none where no folder is named.

    Raises:
        UserError: there is no model in it.
    """
    return {} if folder is None else {"train": {"initial": external_model(Path(folder).expanduser())}}


def _inputs(
    step: Step, results: Mapping[str, Artifact], *given: Mapping[str, Mapping[str, Artifact]] | None
) -> dict[str, Artifact]:
    """A step's inputs by role: other steps' results, and what is given to it alone, by step and role."""
    inputs = {role: results[name] for role, name in step.inputs}
    for group in given:
        inputs |= (group or {}).get(step.name, {})
    return inputs


def _given_captures(runtime: RuntimeConfig, until: str) -> dict[str, Artifact]:
    """The captures of --co3d-root in the place of synthetic ones, if it was given."""
    if runtime.co3d_root is None:
        return {}
    if until == "synth":
        raise UserError("synth: writes a synthetic data set, --co3d-root names another; drop one of the two")
    return {"synth": external_dataset(open_path(runtime.co3d_root))}


def _require_champion(config: RunConfig, runtime: RuntimeConfig) -> None:
    """Check that the champion, if there is one, can be compared with.

    Raises:
        UserError: it was trained below another root, or its weights are gone.
    """
    from infra.tracking.registry import Registry
    from pipelines.operations.champion import open_champion

    champion = Registry(runtime.tracking, config.register.model_name).champion()
    if champion is not None:
        open_champion(champion, runtime)


def _register(
    step: Step,
    config: RunConfig,
    runtime: RuntimeConfig,
    inputs: Mapping[str, Artifact],
    results: dict[str, Artifact],
    require_replaceable: Callable[[RegisteredVersion], None] | None,
) -> Artifact:
    """Evaluate the champion and run stage register; once more when another model becomes champion meanwhile."""
    from pipelines.operations.champion import ChampionChangedError, find_rival, open_champion

    while True:
        rival = find_rival(config.register, runtime, results["train"].fingerprint)
        compared = dict(inputs)
        if rival is not None:
            if require_replaceable is not None:
                require_replaceable(rival)
            checkpoint, base = open_champion(rival, runtime)
            others = results | {"train": checkpoint, "base": base}  # on the objects that the new one was evaluated on
            evaluate = next(step for step in STEPS if step.name == "evaluate")
            compared["champion_evaluation"] = run_stage(
                make_stage(evaluate, config, _inputs(evaluate, others, None)), runtime
            )
        try:
            return run_stage(make_stage(step, config, compared), runtime)
        except ChampionChangedError:
            print(f"{step.name}  another model became champion meanwhile: comparing with that one", flush=True)


def needed_steps(until: str, given: set[str]) -> list[Step]:
    """The steps that lead to `until` and are not given, in order."""
    by_name = {step.name: step for step in STEPS}
    wanted, queue = set(), [until]
    while queue:
        name = queue.pop()
        if name not in given and name not in wanted:
            wanted.add(name)
            queue += [source for _, source in by_name[name].inputs]
    return [step for step in STEPS if step.name in wanted]


def describe_chain(
    config: RunConfig,
    runtime: RuntimeConfig,
    *,
    until: str,
    given: Mapping[str, Artifact] | None = None,
    extra: Mapping[str, Mapping[str, Artifact]] | None = None,
) -> list[tuple[str, str, str]]:
    """(stage, fingerprint, what would happen) without doing it, or asking the hub: a fingerprint is not known where an
    input's is not. `given` and `extra` as in `run_chain`, and so are the errors, as far as settings are their cause.
    """
    known = dict(given or {})
    if "synth" not in known:
        known |= _given_captures(runtime, until)
    steps = needed_steps(until, set(known))
    check_settings(config, runtime, stages={step.name for step in steps})
    models = pretrained_models(config, runtime, stages={step.name for step in steps}, ask_hub=False)
    rows = []
    for step in steps:
        stage = make_stage(step, config, _inputs(step, known, extra, models))
        if NOT_KNOWN in {item.fingerprint for item in stage.inputs.values()}:
            known[step.name] = step.kind(fingerprint=NOT_KNOWN, folder=Path())
            rows.append((step.name, NOT_KNOWN, "run"))
            continue
        if is_finished(stage, runtime):
            state = "reuse"
        elif partial_dir(stage, runtime).exists():
            state = "resume"
        else:
            state = "run"
        known[step.name] = step.kind(fingerprint=stage.fingerprint, folder=partial_dir(stage, runtime))
        rows.append((step.name, stage.fingerprint, state))
    return rows
