"""Independent pieces of work on a Ray cluster, through Ray Data. The only file that imports ray.data.

Each piece is committed by whoever does it, so results come in any order, and Ray repeats the pieces of workers that
die.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial, wraps
from typing import Any

from infra.errors import UserError
from infra.storage.files import StoragePath, as_user_error

Item = dict[str, Any]


def run_tasks(
    function: Callable[..., Item],
    items: Sequence[Item],
    *,
    settings: dict[str, Any],
    folder: StoragePath,
    num_workers: int,
    memory_bytes: int,
) -> Generator[Item, None, None]:
    """Call `function(item, folder=folder, **settings)` for every item, at most `num_workers` at a time; yields each
    result as it is there. Each call has one CPU, and Ray starts no more than fit into a machine if each needs
    `memory_bytes`.

    Raises:
        UserError: what a call raised as such, `folder` can take no more, or Ray itself was killed on this machine.
    """

    @wraps(function)
    def telling(item: Item) -> Item:
        return _tell(partial(function, item, folder=folder, **settings), folder)

    yield from _mapped(telling, items, num_workers=num_workers, num_cpus=1, memory=memory_bytes)


def run_actors(
    actor: type,
    items: Sequence[Item],
    *,
    settings: dict[str, Any],
    folder: StoragePath,
    num_workers: int,
    use_gpu: bool,
) -> Generator[Item, None, None]:
    """As `run_tasks` with objects that are made once per worker, `actor(folder=folder, **settings)`, and called with
    the items: for work that needs a model in memory. One CPU and, with `use_gpu`, one GPU each.
    """

    class Telling(actor):
        def __init__(self) -> None:
            super().__init__(folder=folder, use_gpu=use_gpu, **settings)

        def __call__(self, item: Item) -> Item:
            return _tell(partial(super().__call__, item), folder)

    yield from _mapped(Telling, items, num_workers=num_workers, num_cpus=1, num_gpus=1 if use_gpu else 0)


def _tell(call: Callable[[], Item], folder: StoragePath) -> Item:
    """The result of a call, or in its place what a person must mend: an exception loses its type on its way through
    Ray.
    """
    try:
        return {"result": call(), "error": ""}
    except UserError as error:
        return {"result": {}, "error": str(error)}
    except OSError as error:
        message = as_user_error(error, folder)
        if message is None:
            raise
        return {"result": {}, "error": str(message)}


def _mapped(function: Any, items: Sequence[Item], *, num_workers: int, **options: Any) -> Generator[Item, None, None]:
    if not items:
        return
    # Here, because Ray takes seconds to import, and bad input is told of before.
    import ray.data

    from infra.cluster.connection import ensure_ray

    ensure_ray(num_cpus=num_workers)
    if "memory" in options:
        # A task that asks for more than the largest machine has would wait for ever; like this it runs there, alone.
        largest = max(node["Resources"].get("memory", 0) for node in ray.nodes() if node["Alive"])
        options["memory"] = min(options["memory"], int(largest))
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it warns that its bars are off
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # ours says how much is left
    # It keeps half of the cores for operators that wait for results of this one, of which there are none.
    context.op_resource_reservation_enabled = False
    context.enable_fallback_to_arrow_object_ext_type = True  # items travel pickled; without this Ray warns of it
    size = min(num_workers, len(items))
    actors = isinstance(function, type)
    strategy = ray.data.ActorPoolStrategy(size=size) if actors else ray.data.TaskPoolStrategy(size=size)
    dataset = ray.data.from_items(list(items), override_num_blocks=len(items))
    for row in _while_ray_lives(iter(dataset.map(function, compute=strategy, **options).iter_rows())):
        if row["error"]:
            raise UserError(row["error"])
        yield row["result"]


def _while_ray_lives(rows: Iterator[Item]) -> Generator[Item, None, None]:
    """The rows one by one, as long as Ray lives."""
    from infra.cluster.connection import call_while_ray_lives

    while (row := call_while_ray_lives(lambda: next(rows, None))) is not None:
        yield row
