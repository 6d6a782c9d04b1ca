"""The `ndt` command. Progress goes to stderr, data to stdout; exit codes 0, 1, 2, 3, 4 and 130 (see `errors`)."""

import sys
from typing import Annotated

import typer

from ndt_ray.errors import INTERRUPTED, NdtError


def app() -> typer.Typer:
    """The command line, put together from the modules of this package."""
    from ndt_ray.cli import analyses, checkpoints, fork, mechanisms, reports, serve, sweeps, tables, tools, validate

    ndt = typer.Typer(
        name="ndt",
        help="When and where a network's representations change during training, and whether the change is real.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )

    def version(shown: bool) -> None:
        if shown:
            from importlib.metadata import version

            print(f"ndt-ray {version('ndt-ray')}")
            raise typer.Exit

    @ndt.callback()
    def options(
        shown: Annotated[
            bool, typer.Option("--version", callback=version, is_eager=True, help="Show the version and exit.")
        ] = False,
    ) -> None:
        pass

    for module in (sweeps, fork, checkpoints, tables, reports, serve, mechanisms, analyses, tools, validate):
        module.register(ndt)
    return ndt


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line (of this process, by default); errors of the user's become one message and an exit code."""
    try:
        # Without its standalone mode, click returns the code of a typer.Exit instead of raising it.
        sys.exit(app()(arguments, standalone_mode=False) or 0)
    except (typer.Abort, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except NdtError as error:
        print(f"ndt: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # `ndt query … | head`
        sys.stderr.close()
        sys.exit(0)
    except Exception as error:
        # click's own errors (a wrong option) know how to show themselves
        show, code = getattr(error, "show", None), getattr(error, "exit_code", None)
        if show is None or code is None:
            raise
        show()
        sys.exit(code)
