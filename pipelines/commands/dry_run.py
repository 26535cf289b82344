"""`--dry-run`: what a command would do, how large the network is and what memory it takes. Does nothing else."""

from __future__ import annotations

import json

from infra.provenance.fingerprint import plain
from pipelines.chain.running import describe_chain, given_model
from pipelines.planning.memory import GB, training_memory
from pipelines.planning.network import assumption, count_parameters
from pipelines.settings.run import RunConfig
from pipelines.spine.runtime import RuntimeConfig


def print_plan(config: RunConfig, runtime: RuntimeConfig, *, until: str, initial: str | None = None) -> None:
    """Print the resolved settings, what each stage would do, parameter counts and estimated memory. `initial`: folder
    of the model that training starts from.
    """
    print(json.dumps(plain(config), indent=2))
    print(f"\nwhat would be done below {runtime.root_dir}")
    for name, fingerprint, state in describe_chain(config, runtime, until=until, extra=given_model(initial)):
        print(f"  {name:<12} {fingerprint:<16}  {state}")
    print("\nparameters")
    if assumed := assumption(config.base):
        print(f"  {assumed}")
    for name, count in count_parameters(config).items():
        print(f"  {name:<40} {count / 1e6:10.2f} M")
    memory = training_memory(config, num_workers=runtime.num_workers, device="cuda" if runtime.use_gpu else "cpu")
    print("\nestimated memory of one training worker")
    for name, num_bytes in memory.table().items():
        print(f"  {name:<40} {num_bytes / GB:10.2f} GB")
    print("  memory that kernels and libraries take while they run is not counted; see `viewdiff plan`")
