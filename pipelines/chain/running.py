"""Running the chain of stages: up to the one that is wanted, reusing what is finished."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from infra.errors import UserError
from infra.storage.files import open_path
from pipelines.chain.checks import check_settings
from pipelines.chain.table import STAGES
from pipelines.settings.run import RunConfig
from pipelines.spine.artifacts import Artifact, external_dataset, external_model
from pipelines.spine.runtime import RuntimeConfig
from pipelines.spine.sources import NOT_KNOWN, pretrained_models
from pipelines.spine.stage import Stage, is_finished, partial_dir, run_stage

if TYPE_CHECKING:  # MLflow takes seconds to import
    from infra.tracking.registry import RegisteredVersion

Given = Mapping[str, Mapping[str, Artifact]]
"""Further inputs of stages, by stage and role."""


@dataclass(frozen=True, kw_only=True)
class Chain:
    """The stages that lead to one of them, and what they have made so far."""

    config: RunConfig
    runtime: RuntimeConfig
    stages: tuple[Stage, ...]
    """In the order in which they run, without settings and inputs."""
    extra: Given
    results: dict[str, Artifact] = field(default_factory=dict)
    """By stage: what was given, and what was made."""
    require_replaceable: Callable[[RegisteredVersion], None] | None = None
    """Asked, before anything is registered, about the champion that the model would replace: not always the one that
    was champion before the training."""

    @property
    def names(self) -> set[str]:
        """Those of its stages."""
        return {stage.name for stage in self.stages}

    def bound(self, stage: Stage, instead: Mapping[str, Artifact] | None = None) -> Stage:
        """A stage with its settings and its inputs: the results so far, or what is there `instead`."""
        results = {**self.results, **(instead or {})}
        inputs = {role: results[source] for role, source in stage.takes}
        return self.bind(stage, {**inputs, **self.extra.get(stage.name, {})})

    def bind(self, stage: Stage, inputs: Mapping[str, Artifact]) -> Stage:
        """A stage with its settings and these inputs."""
        alone = stage.replaces_inputs
        chosen = {alone: inputs[alone]} if alone is not None and alone in inputs else inputs
        return replace(stage, config=getattr(self.config, stage.name), inputs=chosen)


def run_chain(
    config: RunConfig,
    runtime: RuntimeConfig,
    *,
    until: str,
    given: Mapping[str, Artifact] | None = None,
    extra: Given | None = None,
    require_replaceable: Callable[[RegisteredVersion], None] | None = None,
) -> dict[str, Artifact]:
    """Run the stages up to `until`, opening those that are finished; returns every stage's result by name.

    `given` are results to use instead of running their stages; with `runtime.co3d_root` the captures are given. `extra`
    and `require_replaceable` as in `Chain`.

    Raises:
        UserError: bad captures or settings, or MLflow or the hub does not answer (said before any work is done); or
            that champion may not be replaced.
    """
    chain = _plan(config, runtime, until=until, given=given, extra=extra)
    if any(stage.tracks for stage in chain.stages):
        from infra.tracking.experiment import Tracking

        Tracking(runtime.tracking).check()
    models = pretrained_models(config, runtime, stages=chain.names)
    chain = replace(chain, extra=_merged(chain.extra, models), require_replaceable=require_replaceable)
    for stage in chain.stages:
        if stage.check_before is not None:
            resolve_name(stage.check_before)(chain, stage)
    for stage in map(chain.bound, chain.stages):  # each when it is reached, with the results before it
        result = chain.results[stage.name] = _run(chain, stage)
        if stage.check_result is not None:
            resolve_name(stage.check_result)(chain, result)
    return chain.results


def describe_chain(
    config: RunConfig,
    runtime: RuntimeConfig,
    *,
    until: str,
    given: Mapping[str, Artifact] | None = None,
    extra: Given | None = None,
) -> list[tuple[str, str, str]]:
    """(stage, fingerprint, what would happen) without doing it, or asking the hub: a fingerprint is not known where an
    input's is not. `given` and `extra` as in `run_chain`, and so are the errors, as far as settings are their cause.
    """
    chain = _plan(config, runtime, until=until, given=given, extra=extra)
    models = pretrained_models(config, runtime, stages=chain.names, ask_hub=False)
    chain = replace(chain, extra=_merged(chain.extra, models))
    rows = []
    for stage in map(chain.bound, chain.stages):  # each when it is reached, with the results before it
        fingerprint, folder, state = stage.fingerprint, partial_dir(stage, runtime), "run"
        if NOT_KNOWN in {item.fingerprint for item in stage.inputs.values()}:
            fingerprint, folder = NOT_KNOWN, Path()
        elif is_finished(stage, runtime):
            state = "reuse"
        elif folder.exists():
            state = "resume"
        chain.results[stage.name] = stage.kind(fingerprint=fingerprint, folder=folder)
        rows.append((stage.name, fingerprint, state))
    return rows


def _run(chain: Chain, stage: Stage) -> Artifact:
    if stage.run_in_chain is None:
        return run_stage(stage, chain.runtime)
    result: Artifact = resolve_name(stage.run_in_chain)(chain, stage)
    return result


def given_model(folder: str | None) -> dict[str, dict[str, Artifact]]:
    """The model to start training from, as a further input of that stage; none where no folder is named.

    Raises:
        UserError: there is no model in it.
    """
    return {} if folder is None else {"train": {"initial": external_model(Path(folder).expanduser())}}


def needed_stages(until: str, given: set[str]) -> tuple[Stage, ...]:
    """The stages that lead to `until` and are not given, in order."""
    by_name = {stage.name: stage for stage in STAGES}
    wanted, queue = set(), [until]
    while queue:
        name = queue.pop()
        if name not in given and name not in wanted:
            wanted.add(name)
            queue += [source for _, source in by_name[name].takes]
    return tuple(stage for stage in STAGES if stage.name in wanted)


def _plan(
    config: RunConfig,
    runtime: RuntimeConfig,
    *,
    until: str,
    given: Mapping[str, Artifact] | None,
    extra: Given | None,
) -> Chain:
    """The chain before anything ran, its settings checked."""
    results = dict(given or {})
    if "synth" not in results:
        results |= _given_captures(runtime, until)
    stages = needed_stages(until, set(results))
    chain = Chain(config=config, runtime=runtime, stages=stages, extra=extra or {}, results=results)
    check_settings(config, runtime, stages=chain.names)
    return chain


def _merged(first: Given, second: Given) -> dict[str, dict[str, Artifact]]:
    return {stage: {**first.get(stage, {}), **second.get(stage, {})} for stage in {**first, **second}}


def _given_captures(runtime: RuntimeConfig, until: str) -> dict[str, Artifact]:
    """The captures of --co3d-root in the place of synthetic ones, if it was given."""
    if runtime.co3d_root is None:
        return {}
    if until == "synth":
        raise UserError("synth: writes a synthetic data set, --co3d-root names another; drop one of the two")
    return {"synth": external_dataset(open_path(runtime.co3d_root))}
