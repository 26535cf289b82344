"""`viewdiff retrain`: look for captures that the champion has not seen; train it further if a category is new.

A schedule may call this command as often as it likes: without anything new it ends at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from infra.addresses import shown_address
from infra.errors import UserError
from infra.storage.files import StoragePath, open_path
from infra.tracking.experiment import Tracking
from infra.tracking.registry import RegisteredVersion, Registry
from pipelines.chain.running import describe_chain, run_chain
from pipelines.operations.champion import open_champion
from pipelines.operations.retraining import (
    Captures,
    RetrainingPlan,
    captures_of,
    last_decided,
    missing_categories,
    plan_retraining,
    tried_since,
)
from pipelines.settings.run import RegisterConfig, RunConfig
from pipelines.spine.artifacts import Artifact, BaseFolder, Checkpoint, RawDataset, external_dataset, newest
from pipelines.spine.runtime import RuntimeConfig
from preprocessing.captures.co3d import open_root
from preprocessing.config import PreprocessConfig
from preprocessing.shards.planning import plan_shards
from preprocessing.shards.schema import read_manifest


@dataclass(frozen=True)
class Start:
    """What retraining goes on from."""

    champion: RegisteredVersion
    checkpoint: Checkpoint
    base: BaseFolder
    tried: Captures
    """What the champion was trained on, and what versions were trained on that challenged it."""


def find_start(config: RegisterConfig, runtime: RuntimeConfig) -> Start:
    """The champion, its weights and its base model.

    A champion whose registration was interrupted is not it yet: the one before is, so that the same training is found
    finished and its registration is completed.

    Raises:
        UserError: there is no champion, its weights are gone, or MLflow does not answer.
    """
    Tracking(runtime.tracking).check()
    registry = Registry(runtime.tracking, config.model_name)
    champion = registry.champion()
    if champion is None:
        raise UserError(
            f"retrain: no champion of model {config.model_name!r} in {shown_address(runtime.tracking)}; run "
            "`viewdiff run` first"
        )
    versions = registry.versions()
    start = last_decided(champion, versions)
    return Start(start, *open_champion(start, runtime), tried_since(start, versions))


def retrain(config: RunConfig, runtime: RuntimeConfig, start: Start, *, dry_run: bool) -> None:
    """Decide, say so, and (unless `dry_run`) train from the champion's weights, evaluate both, register.

    The captures are those of `--co3d-root`, else the newest synthetic data set below the root. Training goes over all
    of the root's categories, so that the champion does not forget the old ones.

    `config` has the champion's settings.

    Raises:
        UserError: there are no captures, or those of a category that the champion knows are missing; or a stage cannot
        run.
    """
    dataset = external_dataset(
        open_path(runtime.co3d_root) if runtime.co3d_root else newest_synthetic(runtime.root_dir)
    )
    print(f"captures   {dataset.data}")
    print(f"champion   {start.champion.name} version {start.champion.version}")
    preprocess = _existing(dataset.data, config.preprocess)
    captures = _planned(dataset.data, preprocess) if preprocess else Captures()
    _require_all(captures, start.champion, config, dataset)
    if preprocess is None:
        raise UserError(
            f"retrain: {dataset.data} has none of the categories {', '.join(config.preprocess.categories)}; name "
            "others with --preprocess.categories"
        )
    planned = plan_retraining(captures, start.tried)
    _print_reasons(planned)
    if not planned.train:
        return
    names = ", ".join(planned.new_categories)
    print(f"retrain    {config.retrain.num_steps} steps from the champion's weights, for {names}")
    config = replace(config, preprocess=preprocess, train=replace(config.train, num_steps=config.retrain.num_steps))
    given: dict[str, Artifact] = {"synth": dataset, "base": start.base}
    extra = {"train": {"initial": start.checkpoint}}
    # Also looks for everything else that would stop it, before anything is done.
    stages = describe_chain(config, runtime, until="register", given=given, extra=extra)
    if dry_run:
        for name, fingerprint, state in stages:
            print(f"  {name:<12} {fingerprint}  {state}")
        return
    stored = _stored(config, runtime, dataset)
    _require_all(stored, start.champion, config, dataset)
    planned = plan_retraining(stored, start.tried)
    if not planned.train:
        _print_reasons(planned)
        return
    replaceable = partial(_require_all, stored, config=config, dataset=dataset)
    results = run_chain(config, runtime, until="register", given=given, extra=extra, require_replaceable=replaceable)
    _print_result(results)


def newest_synthetic(root: Path) -> Path:
    """Folder of the synthetic data set below the root that was finished last.

    Like captures from elsewhere it is judged by its present content, so that a category copied into it counts as well.

    Raises:
        UserError: there is none.
    """
    folder = newest(root, "synth")
    if folder is None:
        raise UserError(f"retrain: no captures below {root}; name their folder with --co3d-root")
    return folder


def _existing(root: StoragePath, config: PreprocessConfig) -> PreprocessConfig | None:
    """The settings with the named categories that the root has; None if it has none of them. Tells of the others."""
    existing = open_root(root)
    if not config.categories:
        return config
    for name in existing:
        if name not in config.categories:
            print(f"           category {name!r} is not among --preprocess.categories, so it is left out")
    kept = tuple(name for name in config.categories if name in existing)
    return replace(config, categories=kept) if kept else None


def _require_all(captures: Captures, champion: RegisteredVersion, config: RunConfig, dataset: RawDataset) -> None:
    """Check that a model of these captures knows everything that the champion was trained on."""
    missing = missing_categories(captures, captures_of(champion), config.retrain.given_up_categories)
    if missing:
        raise UserError(
            f"retrain: {champion.name} version {champion.version} was trained on {', '.join(missing)}, of which "
            f"{dataset.data} has no usable sequence, so it would forget them; complete that folder, or give them up "
            f"with --retrain.given-up-categories {' '.join(missing)}"
        )


def _planned(root: StoragePath, config: PreprocessConfig) -> Captures:
    """What preprocessing would take and refuse, as far as the annotations tell."""
    plan = plan_shards(root, config)
    taken = Counter(planned.sequence.category for task in plan.tasks for planned in task.sequences)
    return Captures(taken, Counter(item.category for item in plan.rejected))


def _stored(config: RunConfig, runtime: RuntimeConfig, dataset: RawDataset) -> Captures:
    """Preprocess: what that has stored, and refused."""
    shards = run_chain(config, runtime, until="preprocess", given={"synth": dataset})["preprocess"]
    manifest = read_manifest(shards.data)
    return Captures(manifest["categories"], Counter(item["category"] for item in manifest["rejected"]))


def _print_reasons(planned: RetrainingPlan) -> None:
    for reason in planned.reasons:
        print(f"           {reason}")
    if not planned.train:
        print("retrain    nothing to do")


def _print_result(results: Mapping[str, Artifact]) -> None:
    facts = results["register"].facts
    print(f"retrain    {facts['model_name']} version {facts['version']} is the {facts['alias']}: {facts['reason']}")
    print(f"report     {results['report'].folder / 'report.html'}")
