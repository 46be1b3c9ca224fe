"""The command `pocketmoe`, put together."""

from __future__ import annotations

import os

import click

from . import __version__
from .commands.bench import bench
from .commands.build import build
from .commands.calibrate import calibrate_command
from .commands.chat.command import chat
from .commands.compile import compile_command
from .commands.console import start_logging
from .commands.entry import CommandLine
from .commands.eval import eval_command
from .commands.export import export_command
from .commands.folders import config_folder
from .commands.inspect import inspect
from .commands.plan import plan
from .commands.replay import replay
from .commands.report import report
from .commands.run import run
from .commands.serve import serve
from .commands.targets import targets
from .commands.verify import verify
from .runtime.cpu.installed import find_onnxruntime


@click.group(
    cls=CommandLine,
    invoke_without_command=True,
    subcommand_metavar="COMMAND ...",
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.version_option(__version__, message="pocketmoe %(version)s")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.option("-v", "--verbose", is_flag=True, help="Say more about what is done.")
@click.pass_context
def main(ctx: click.Context, debug: bool, verbose: bool) -> None:
    """Compile a Mixture-of-Experts model for a device too small for it, and run it there."""
    # ONNX Runtime 1.32 collects usage data unless told otherwise before it is imported.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    ctx.obj = config_folder() / "targets.json"
    start_logging(verbose=verbose)
    find_onnxruntime()
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


# In the order of use, in which help lists them.
for _command in (
    inspect, targets, plan, calibrate_command, compile_command, build, verify, run, chat, serve,
    replay, eval_command, bench, report, export_command,
):  # fmt: skip
    main.add_command(_command)
