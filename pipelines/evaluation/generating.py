"""Objects asked of a served model. One that cannot be made has a reason, and the others are made all the same."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from infra.errors import UserError
from infra.log import Progress, format_count, get_logger
from pipelines.generation.generator import SampleRequest
from pipelines.generation.task import EvaluationTask
from pipelines.serving.deployment import RequestError
from preprocessing.shards.reading import ShardReader

ATTEMPTS_ALONE = 2  # for a request that had its replica to itself when that died: once it may be chance
REASONS_TOLD = 3

Failures = dict[tuple[str, ...], str]  # why there are no pictures or scores, by the name of a task


class Answer(Protocol):
    """A result that may not be there yet."""

    def result(self) -> Any:
        """Wait for it. Raises RequestError when there will be none."""


class Client(Protocol):
    """What evaluation asks of a served model, see `pipelines.serving.deployment.GeneratorClient`."""

    def generate(self, request: SampleRequest) -> Answer: ...

    def reconstruct(self, images: np.ndarray) -> Answer: ...


@dataclass(frozen=True)
class _Pending:
    task: EvaluationTask
    sample: Answer
    reconstructed: Answer | None


def generate_objects(
    tasks: Sequence[EvaluationTask],
    client: Client,
    reader: ShardReader,
    pictures_dir: Path,
    *,
    progress: Progress,
    max_in_flight: int,
    most_failures: int,
) -> Failures:
    """Keep requests in flight to the model; write each object's pictures, complete or not at all, when they arrive.

    A request without an answer may have failed for another's sake, with which it was denoised, or whose replica died.
    Therefore what is in flight is awaited then, and what has failed of it is asked for again, one by one: only an
    object that fails alone has failed, and is returned with the reason.

    Raises:
        UserError: more than `most_failures` objects failed, or there is nobody to ask any more.
    """
    left, waiting, failures = deque(tasks), deque[_Pending](), Failures()

    def settle(task: EvaluationTask, reason: str | None) -> None:
        if reason is not None:
            failures[task.name] = reason
            require_few(failures, most=most_failures)
        progress.advance(object="/".join(task.name), **({"failed": len(failures)} if failures else {}))

    def finish(pending: _Pending) -> str | None:
        try:
            _finish(pending, reader, pictures_dir)
        except RequestError as error:
            return str(error)
        settle(pending.task, None)
        return None

    while left or waiting:
        while left and len(waiting) < max_in_flight:
            task = left.popleft()
            try:
                waiting.append(_ask(task, client, reader))
            except RequestError as error:
                settle(task, str(error))
        if not waiting or (reason := finish(first := waiting.popleft())) is None:
            continue
        suspects = [first.task, *(other.task for other in waiting if finish(other) is not None)]
        waiting.clear()
        count = format_count(len(suspects), "object")
        get_logger("evaluate").warning("no answer for %s (%s); asking again, one by one", count, reason)
        for task in suspects:
            settle(task, _make_alone(task, client, reader, pictures_dir))
    return failures


def require_few(failures: Failures, *, most: int) -> None:
    """Raises UserError, with the commonest reasons, when more than `most` objects failed."""
    if len(failures) <= most:
        return
    raise UserError(
        f"evaluate: {format_count(len(failures), 'object')} failed, at most {most} may ({_commonest(failures)}); mend "
        "that and run the same command again, or allow more with --evaluate.max-failed-share"
    )


def require_scores(failures: Failures, *, num_objects: int) -> None:
    """Raises UserError, with the commonest reasons, when all the objects that have scores failed."""
    if len(failures) == num_objects:
        raise UserError(
            f"evaluate: no object has scores, so there is no mean: {format_count(num_objects, 'object')} failed "
            f"({_commonest(failures)}); mend that and run the same command again"
        )


def _commonest(failures: Failures) -> str:
    names: dict[str, list[str]] = {}
    for name, reason in failures.items():
        names.setdefault(reason, []).append("/".join(name))
    commonest = sorted(names.items(), key=lambda item: -len(item[1]))[:REASONS_TOLD]
    return "; ".join(f"{objects[0]}{' and others' * (len(objects) > 1)}: {reason}" for reason, objects in commonest)


def _ask(task: EvaluationTask, client: Client, reader: ShardReader) -> _Pending:
    """Send an object's requests. Raises RequestError when its frames cannot be read."""
    with _reading():
        request, truth = task.request(reader), task.truth(reader)
    return _Pending(task, client.generate(request), client.reconstruct(truth) if task.rows else None)


def _finish(pending: _Pending, reader: ShardReader, pictures_dir: Path) -> None:
    """Wait for an object's answers and write its pictures. Raises RequestError when there are none."""
    sample = pending.sample.result()
    reconstructed = pending.reconstructed.result() if pending.reconstructed else None
    with _reading():
        pictures = pending.task.pictures(sample, reader, reconstructed=reconstructed)
    pictures.save(pending.task.path(pictures_dir))


def _make_alone(task: EvaluationTask, client: Client, reader: ShardReader, pictures_dir: Path) -> str | None:
    """Make an object while nothing else is in flight; returns why it failed, or None."""
    for _ in range(ATTEMPTS_ALONE):
        try:
            _finish(_ask(task, client, reader), reader, pictures_dir)
            return None
        except RequestError as error:
            reason = str(error)
            if not error.replica_lost:
                return reason
    return f"whoever generates it dies of it, also alone, {ATTEMPTS_ALONE} times ({reason})"


@contextmanager
def _reading() -> Iterator[None]:
    """Frames that cannot be read are the object's fault alone."""
    try:
        yield
    except (UserError, OSError) as error:
        raise RequestError(str(error), replica_lost=False) from error
