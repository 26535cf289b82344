"""`viewdiff retrain`: look for captures that the champion has not seen; train it further if a category is new.

The decision is a pure function of what the root holds and what the registry says, so a schedule may call this command
as often as it likes: without anything new it ends at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from infra.addresses import shown
from infra.errors import UserError
from infra.storage import open_path
from infra.tracking import RegisteredVersion, Tracking
from pipelines.artifacts import external_dataset, newest
from pipelines.config import RunConfig
from pipelines.plan import run_chain
from pipelines.registry import (
    CAPTURES_TAG,
    DATASET_TAG,
    count_captures,
    find_champion,
    open_champion,
)
from pipelines.runtime import RuntimeConfig


@dataclass(frozen=True)
class Decision:
    """What retraining would do, and why."""

    new_categories: tuple[str, ...]
    reasons: tuple[str, ...]

    @property
    def train(self) -> bool:
        """Whether there is anything to train."""
        return bool(self.new_categories)


def decide(captures: Mapping[str, int], trained: Mapping[str, int], trained_already: str | None) -> Decision:
    """Compare a root's captures {category: sequences} with those that the champion and its challengers were trained on.

    `trained_already` names a version that was trained on exactly these captures, champion or not. Only a new category
    is a reason to train: new sequences of a known one are reported.
    """
    if trained_already is not None:
        return Decision((), (f"{trained_already} was trained on exactly these captures",))
    new = tuple(category for category in captures if category not in trained)
    reasons = [f"category {category!r} is new: {captures[category]} sequences" for category in new]
    for category, count in captures.items():
        if category in trained and count != trained[category]:
            reasons.append(f"category {category!r} has {count} sequences, {trained[category]} were trained on")
    return Decision(new, tuple(reasons or ["all of these captures were trained on"]))


def retrain(config: RunConfig, runtime: RuntimeConfig, *, dry_run: bool) -> None:
    """Decide, say so, and (unless `dry_run`) train from the champion's weights, evaluate both, register.

    The captures are those of `--co3d-root`, else the newest synthetic data set below the root. Training goes over all
    of the root's categories, so that the champion does not forget the old ones.

    Raises:
        UserError: there is no champion, or there are no captures.
    """
    Tracking(runtime.tracking).check()
    champion = find_champion(config.register, runtime)
    if champion is None:
        raise UserError(
            f"retrain: no champion of model {config.register.model_name!r} in {shown(runtime.tracking)}; "
            "run `viewdiff run` first"
        )
    dataset = external_dataset(
        open_path(runtime.co3d_root) if runtime.co3d_root else newest_synthetic(runtime.root_dir)
    )
    captures = count_captures(dataset.data)
    versions = Tracking(runtime.tracking).versions(config.register.model_name)
    decision = decide(captures, _seen(champion, versions), _trained_on(versions, dataset.fingerprint))
    print(f"captures   {dataset.data}")
    print(f"champion   {champion.name} version {champion.version}")
    for reason in decision.reasons:
        print(f"           {reason}")
    if not decision.train:
        print("retrain    nothing to do")
        return
    checkpoint, base = open_champion(champion, runtime)
    names = ", ".join(decision.new_categories)
    print(f"retrain    {config.retrain.num_steps} steps from the champion's weights, for {names}")
    if dry_run:
        return
    steps = replace(config.train, num_steps=config.retrain.num_steps)
    results = run_chain(
        replace(config, train=steps),
        runtime,
        until="register",
        given={"synth": dataset, "base": base},
        extra={"train": {"initial": checkpoint}},
    )
    facts = results["register"].facts
    scores = f"{facts['psnr']:.2f} dB, version {champion.version} {facts['champion_psnr']:.2f} dB on the same objects"
    print(f"retrain    {facts['model_name']} version {facts['version']} is the {facts['alias']}: {scores}")
    print(f"report     {results['report'].folder / 'report.html'}")


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


def _seen(champion: RegisteredVersion, versions: Sequence[RegisteredVersion]) -> dict[str, int]:
    """Captures of the champion, and categories of those who challenged it since: a category that was tried and did not
    make a better model is not tried again every night.
    """
    seen: dict[str, int] = {}
    for version in [*(other for other in versions if other.version > champion.version), champion]:
        seen |= json.loads(version.tags.get(CAPTURES_TAG, "{}"))
    return seen


def _trained_on(versions: Sequence[RegisteredVersion], dataset: str) -> str | None:
    for version in versions:
        if version.tags.get(DATASET_TAG) == dataset:
            return f"{version.name} version {version.version}"
    return None
