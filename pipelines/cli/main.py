"""The command line. `viewdiff COMMAND` runs the pipeline up to that command's stage, reusing what is finished."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from infra.console import run_command
from infra.errors import UserError
from infra.system.home import require_home
from infra.system.limits import require_open_files
from infra.system.sockets import shorten_tmpdir
from pipelines.settings.names import PRESET_NAMES, nearest

COMMANDS = {
    "inspect": "say what is in a folder of captures, and what is wrong with it",
    "import": "add one's own capture, from COLMAP, nerfstudio, photos or a video, to a folder of captures",
    "run": "everything below, from captures to a registered model and a report",
    "synth": "write a synthetic data set in CO3Dv2 layout",
    "preprocess": "turn captures into shards",
    "captions": "describe captures with BLIP-2, or take the captions they came with",
    "base": "train the small stand-in for Stable Diffusion, or read a real one",
    "latents": "cache what training needs of the frozen parts",
    "train": "train the multi-view model",
    "evaluate": "generate held-out objects and score them",
    "report": "write a page about the run",
    "register": "make the model a version in MLflow's registry",
    "generate": "render an object from one of its photos, or from text",
    "compare": "show what is different between trainings, or list them",
    "plan": "say what memory and time a training would take on given GPUs",
    "profile": "record some training steps operator by operator",
    "retrain": "look for new captures and train the champion further on them",
}
LAST_STAGE = {"run": "register"}  # where a command's name is not its last stage's
HELP = """viewdiff: train and serve 3D-consistent image generation

usage: viewdiff COMMAND [options]

commands
{commands}

common options
  --preset NAME        settings to start from: {presets} (default: tiny)
  --root FOLDER        everything is written below it (default: runs/demo)
  --co3d-root FOLDER   captures in CO3Dv2 layout, or their s3:// address; without it synthetic ones are made
  --data-root FOLDER   where shards and latents are kept, or their s3:// address (default: below the root)
  --num-workers N      worker processes (default: 2)
  --num-loaders N      processes per training worker that read batches ahead (default: 0)
  --tracking-uri URI   MLflow store (default: an SQLite database below the root)
  --dry-run            print what would be done, its size and memory; do nothing (commands that run stages)

A command runs the stages it needs, reuses finished ones and resumes interrupted ones: to go on, run it again.
Every single setting is an option too: `viewdiff COMMAND --help` lists them.
"""


def main() -> None:
    """Console entry point; exit codes as `run_command`'s."""
    run_command("viewdiff", lambda: dispatch(sys.argv[1:]))


def dispatch(arguments: Sequence[str]) -> None:
    """Run a command line, without the program's name."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(main_help(), end="")
        return
    command, *rest = arguments
    if command.startswith("-"):
        raise UserError(f"{command} comes before the command; options follow it: viewdiff COMMAND {command} ...")
    if command not in COMMANDS:
        raise UserError(f"unknown command {command!r}{nearest(command, COMMANDS)}")
    require_home()
    require_open_files()
    shorten_tmpdir()
    if command in _OTHERS:
        _OTHERS[command](rest)
    else:
        _run_stages(command, rest)


def main_help() -> str:
    """What `viewdiff --help` prints."""
    commands = "\n".join(f"  {name:<12} {text}" for name, text in COMMANDS.items())
    return HELP.format(commands=commands, presets=", ".join(PRESET_NAMES))


# Arguments are read first, because what does the work takes seconds to import.
def _run_stages(command: str, arguments: list[str]) -> None:
    from pipelines.cli.arguments import parse_run

    parsed = parse_run(command, arguments, description=COMMANDS[command])
    until = LAST_STAGE.get(command, command)
    if parsed.dry_run:
        from pipelines.commands.dry_run import print_plan

        print_plan(parsed.config, parsed.runtime, until=until, initial=parsed.initial)
        return
    from pipelines.chain.running import given_model, run_chain
    from pipelines.commands.summary import print_summary

    results = run_chain(parsed.config, parsed.runtime, until=until, extra=given_model(parsed.initial))
    if command == "run":
        print_summary(results, parsed.runtime)


def _retrain(arguments: list[str]) -> None:
    from pipelines.cli.arguments import given_options, parse_run

    parsed = parse_run("retrain", arguments, description=COMMANDS["retrain"])
    if parsed.initial is not None:
        raise UserError(f"--initial {parsed.initial}: retrain starts from the champion; drop it, or use viewdiff train")
    if given_options(arguments, {"--train.num-steps"}):
        raise UserError("--train.num-steps: of retrain the number of steps is --retrain.num-steps; write that instead")
    if base_options := [argument for argument in arguments if argument.startswith("--base.")]:
        raise UserError(f"{base_options[0]}: retrain goes on with the champion's base model; drop it")
    from pipelines.commands.retrain import find_start, retrain
    from pipelines.spine.recorded_settings import settings_of

    start = find_start(parsed.config.register, parsed.runtime)
    default = settings_of(start.checkpoint, parsed.runtime.root_dir, parsed.config)
    parsed = parse_run("retrain", arguments, description=COMMANDS["retrain"], default=default)
    retrain(parsed.config, parsed.runtime, start, dry_run=parsed.dry_run)


def _compare(arguments: list[str]) -> None:
    from pipelines.cli.arguments import parse_compare

    parsed = parse_compare(arguments, description=COMMANDS["compare"])
    from pipelines.commands.compare import compare

    compare(parsed.runs, parsed.config)


def _inspect(arguments: list[str]) -> None:
    from pipelines.cli.arguments import parse_inspect

    parsed = parse_inspect(arguments, description=COMMANDS["inspect"])
    from infra.storage.files import open_path
    from pipelines.commands.inspect_captures import inspect

    inspect(open_path(parsed.captures), parsed.config)


def _import(arguments: list[str]) -> None:
    from pipelines.cli.arguments import parse_import

    parsed = parse_import(arguments, description=COMMANDS["import"])
    from pipelines.commands.import_capture import run_import

    run_import(Path(parsed.source), parsed.config)


def _plan(arguments: list[str]) -> None:
    from pipelines.cli.arguments import given_options, parse_plan

    parsed = parse_plan(arguments, description=COMMANDS["plan"])
    from pipelines.commands.plan import print_sizing
    from pipelines.planning.sizing import DIVISION

    print_sizing(parsed.config, parsed.sizing, kept=given_options(arguments, DIVISION))


def _profile(arguments: list[str]) -> None:
    from pipelines.cli.arguments import parse_profile

    parsed = parse_profile(arguments, description=COMMANDS["profile"])
    from pipelines.commands.profile_training import profile_training

    profile_training(parsed.config, parsed.runtime, parsed.profile)


def _generate(arguments: list[str]) -> None:
    from pipelines.cli.arguments import parse_generate

    parsed = parse_generate(arguments, description=COMMANDS["generate"])
    from pipelines.commands.generate import generate

    generate(parsed.request, parsed.runtime)


_OTHERS = {
    "generate": _generate,
    "retrain": _retrain,
    "compare": _compare,
    "inspect": _inspect,
    "import": _import,
    "plan": _plan,
    "profile": _profile,
}
