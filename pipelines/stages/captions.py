"""Stage captions: what every sequence is said to show, by a BLIP-2 or as it came with the captures.

Being killed at any point costs only the shards in work: the same call goes on where it stopped and ends with the same
bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from infra.cluster.tasks import run_actors
from infra.log import Progress
from infra.storage.files import StoragePath
from pipelines.spine.artifacts import Artifact
from pipelines.spine.runtime import RuntimeConfig
from pipelines.spine.sources import ROLE, revision_to_read
from preprocessing.captions.files import read_sequence_captions, write_sequence_captions
from preprocessing.captures.captions import CAPTIONS_NAME, default_caption
from preprocessing.config import CaptionsConfig
from preprocessing.shards.reading import FrameIndex


def write_captions(
    config: CaptionsConfig, inputs: Mapping[str, Any], folder: Path, runtime: RuntimeConfig
) -> dict[str, Any]:
    """Write captions.json of `inputs["shards"]` into `folder`; returns counts.

    Raises:
        UserError: the model or the shards cannot be read, or there is no space.
    """
    shards_dir: StoragePath = inputs["shards"].data
    index = FrameIndex.open(shards_dir)
    if config.source is None:
        write_sequence_captions(folder, {item.key: item.captions for item in index.sequences()})
    else:
        _describe(_for_workers(config, inputs[ROLE]), index, shards_dir, folder, runtime)
    captions = read_sequence_captions(folder)
    source = inputs.get(ROLE)
    return {
        **({} if source is None else source.facts),
        "num_sequences": len(captions),
        "num_captions": sum(map(len, captions.values())),
        "num_distinct_captions": len({text for texts in captions.values() for text in texts}),
        "num_named_by_category_only": sum(
            captions[item.key] == (default_caption(item.category),) for item in index.sequences()
        ),
    }


def _describe(
    config: CaptionsConfig, index: FrameIndex, shards_dir: StoragePath, folder: Path, runtime: RuntimeConfig
) -> None:
    """Have the model describe the shards that are not yet, then join what it said."""
    from preprocessing.captions.describing import (
        ShardCaptioner,
        captions_path,
        join_captions,
        remove_parts,
        sequences_by_shard,
    )

    if not (folder / CAPTIONS_NAME).is_file():
        sizes = {name: len(sequences) for name, sequences in sequences_by_shard(index).items()}
        pending = [name for name in sizes if not captions_path(folder, name).is_file()]
        done = sum(size for name, size in sizes.items() if name not in pending)
        settings = {
            "shards_dir": shards_dir.absolute(),
            "config": config,
        }
        results = run_actors(
            ShardCaptioner,
            [{"shard": name} for name in pending],
            settings=settings,
            folder=folder.absolute(),
            num_workers=runtime.num_workers,
            use_gpu=runtime.use_gpu,
        )
        with (
            Progress("captions", total=sum(sizes.values()), unit="sequences", done=done) as progress,
            closing(results),
        ):
            for result in results:
                progress.advance(result["sequences"])
        write_sequence_captions(folder, join_captions(folder, list(sizes)))
    remove_parts(folder)


def _for_workers(config: CaptionsConfig, model: Artifact) -> CaptionsConfig:
    """The same with the model's folder, if it is one, as an absolute path, since workers have other working
    directories, and with the very commit that a hub id stands for.
    """
    source = str(config.source)
    revision = revision_to_read(source, model)
    return replace(config, source=source if revision else str(Path(source).absolute()), revision=revision)
