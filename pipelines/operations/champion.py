"""Who is champion of a registered model, and what a new version has to do to become that.

A version challenges once: when it was compared with the champion, what was decided is recorded with it, after the alias
was set. A version without that record is one whose registration was interrupted: the next run finishes it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from infra.errors import UserError
from infra.tracking.registry import RegisteredVersion, Registry
from infra.tracking.tags import CHALLENGER, CHAMPION
from pipelines.settings.run import RegisterConfig
from pipelines.spine.artifacts import Artifact, BaseFolder, Checkpoint, load_artifact
from pipelines.spine.runtime import RuntimeConfig

# Tags of a version: what it was trained on.
DATASET_TAG = "viewdiff.dataset"  # fingerprint of the captures
CAPTURES_TAG = "viewdiff.captures"  # JSON {category: sequences that preprocessing stored}
REFUSED_TAG = "viewdiff.refused"  # JSON {category: sequences that it refused}

# Tags of a version.
CHECKPOINT_TAG = "viewdiff.checkpoint"  # fingerprint of the training's result
BASE_TAG = "viewdiff.base"  # fingerprint of the base model
RIVAL_TAG = "viewdiff.rival"  # version of the champion that it was compared with, "" for the first one
DECISION_TAG = "viewdiff.decision"  # JSON of a `Decision`; written last

_BASE_WEIGHTS = ("unet", "vae", "text_encoder")  # parts of a base model that have weights


class ChampionChangedError(UserError):
    """The champion is not the one that a new version was compared with."""


@dataclass(frozen=True)
class Comparison:
    """Scores of a new model and of the champion at that time, on the same held-out objects."""

    psnr: float
    """dB."""
    rival: str | None = None
    """Fingerprint of the champion's checkpoint; without it there was no champion."""
    rival_psnr: float | None = None
    """dB; given with the rival."""


@dataclass(frozen=True)
class Decision:
    """What a version became, and why, in words."""

    alias: str
    reason: str


def judge(version: int, champion: RegisteredVersion | None, comparison: Comparison) -> Decision | None:
    """What a version without a decision becomes, next to the champion of now. None: it was not compared with that one.

    It is the champion itself if its registration was interrupted after it got the alias.
    """
    psnr, rival_psnr = comparison.psnr, comparison.rival_psnr
    if math.isnan(psnr):
        return Decision(CHALLENGER, "its score is not a number")
    if champion is not None and champion.version > version:
        return Decision(CHALLENGER, f"version {champion.version}, which is newer, is the champion")
    if champion is None:
        return Decision(CHAMPION, "there was no champion")
    if champion.version == version:
        return Decision(CHAMPION, "there was no champion" if rival_psnr is None else _scores(psnr, rival_psnr))
    if rival_psnr is None or champion.tags.get(CHECKPOINT_TAG) != comparison.rival:
        return None
    if math.isnan(rival_psnr):
        return Decision(CHALLENGER, "the champion's score in this comparison is not a number")
    return Decision(CHALLENGER if psnr <= rival_psnr else CHAMPION, _scores(psnr, rival_psnr))


def _scores(psnr: float, rival_psnr: float) -> str:
    return f"{psnr:.2f} dB, the champion before {rival_psnr:.2f} dB on the same objects"


def decide(registry: Registry, version: RegisteredVersion, comparison: Comparison, *, rival: str) -> Decision:
    """Judge a version without a decision, set its alias and record that; `rival` is the value of its RIVAL_TAG.

    The challenger's alias goes to newer versions only.

    Raises:
        ChampionChangedError: another version became champion since the comparison.
    """
    number = version.version
    if version.tags.get(RIVAL_TAG) != rival:
        registry.set_tag(number, RIVAL_TAG, rival)
    decision = _set_alias(registry, number, comparison)
    while decision is None:  # another process set it at the same moment
        decision = _set_alias(registry, number, comparison)
    registry.set_tag(number, DECISION_TAG, json.dumps(asdict(decision)))
    return decision


def _set_alias(registry: Registry, number: int, comparison: Comparison) -> Decision | None:
    """Judge a version and give it its alias; None if somebody else set that meanwhile."""
    challenger = registry.aliases().get(CHALLENGER, 0)
    champion = registry.champion()
    decision = judge(number, champion, comparison)
    if decision is None:
        assert champion is not None
        raise ChampionChangedError(
            f"{champion.name} version {champion.version} became champion meanwhile, and version {number} was not "
            "compared with it; run the same command again"
        )
    if decision.alias == CHALLENGER and challenger >= number:
        return decision
    was_set = registry.set_alias(decision.alias, number)
    return decision if was_set and registry.aliases().get(decision.alias) == number else None


def recorded_decision(version: RegisteredVersion) -> Decision | None:
    """What was decided about a version; None while its registration is not complete."""
    text = version.tags.get(DECISION_TAG)
    return None if text is None else Decision(**json.loads(text))


def find_version(versions: Sequence[RegisteredVersion], checkpoint: str) -> RegisteredVersion | None:
    """The first version of a checkpoint, by its fingerprint."""
    return next((version for version in versions if version.tags.get(CHECKPOINT_TAG) == checkpoint), None)


def find_rival(config: RegisterConfig, runtime: RuntimeConfig, checkpoint: str) -> RegisteredVersion | None:
    """The version that the model of a checkpoint has to beat: the champion. None without one, and where it was decided
    what the model became: a finished pipeline that is run again needs no other model.
    """
    registry = Registry(runtime.tracking, config.model_name)
    versions, champion = registry.versions(), registry.champion()
    own = find_version(versions, checkpoint)
    if own is not None and recorded_decision(own):
        return None
    # Whoever was interrupted as champion already had beaten its rival.
    return rival_of(own, versions) if own is not None and own == champion else champion


def rival_of(version: RegisteredVersion, versions: Sequence[RegisteredVersion]) -> RegisteredVersion | None:
    """The version that another one was compared with, if that is known and was not deleted."""
    return next((other for other in versions if str(other.version) == version.tags.get(RIVAL_TAG)), None)


def open_champion(version: RegisteredVersion, runtime: RuntimeConfig) -> tuple[Checkpoint, BaseFolder]:
    """A registered version's checkpoint and base model, below the root. Their weights are there; only the beginning of
    each file is read.

    Raises:
        UserError: they are not.
    """
    checkpoint = _open(runtime, "train", CHECKPOINT_TAG, Checkpoint, version)
    base = _open(runtime, "base", BASE_TAG, BaseFolder, version)
    _require_weights(checkpoint.model_dir)
    for part in _BASE_WEIGHTS:
        _require_weights(base.folder / part)
    return checkpoint, base


def _open(runtime: RuntimeConfig, stage: str, tag: str, kind: type[Any], version: RegisteredVersion) -> Any:
    name = f"{version.name} version {version.version}"
    fingerprint = version.tags.get(tag)
    if fingerprint is None:
        raise UserError(
            f"{name}: it was not registered by this program (it has no tag {tag}), so nothing can be compared with it; "
            f"give the alias {CHAMPION} to another version, or name another --register.model-name"
        )
    folder = runtime.root_dir / stage / fingerprint
    if not folder.is_dir():
        raise UserError(
            f"{name}: its {stage} result {fingerprint} is not below {runtime.root_dir}, so nothing can be compared "
            "with it; name the root that it was trained in with --root, or another --register.model-name"
        )
    artifact: Artifact = load_artifact(folder, kind)
    return artifact


def _require_weights(folder: Path) -> None:
    """Check that a network's folder has its config and its weights, as far as the files' headers tell."""
    paths = sorted(folder.glob("*.safetensors"))
    if not (folder / "config.json").is_file() or not paths:
        raise UserError(f"{folder}: the network's config.json or its .safetensors file is missing; restore that folder")
    for path in paths:
        try:
            with safe_open(path, framework="numpy"):
                pass
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: cannot be read ({error}); restore that file") from error
