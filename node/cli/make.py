"""How commands are made: every one has an example in its help, every group shows its help when called alone.

`Root` knows each command's module and its line in the overview, and imports a module only when its command is called or
its own help asked for: `apostille --help` draws nothing else in.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any, ClassVar, TypeVar

import typer
from typer.core import TyperGroup

F = TypeVar("F", bound=Callable[..., Any])
_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON in place of a table.")]


@dataclass(frozen=True, slots=True)
class Entry:
    """A command of the overview: the section it stands in, its module, one line about it."""

    section: str
    module: str
    about: str


class Root(TyperGroup):
    """The root command; subclasses name what there is in `catalogue`."""

    catalogue: ClassVar[Mapping[str, Entry]] = {}

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - the signature is typer's
        """Every name, in the order of the overview."""
        return list(self.catalogue)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        """The command of that name, its module imported now."""
        entry = self.catalogue.get(cmd_name)
        return None if entry is None else typer.main.get_command(import_module(entry.module).app)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As usual, with the nearest names for a typing mistake."""
        if args and not args[0].startswith("-") and args[0] not in self.catalogue:
            near = difflib.get_close_matches(args[0], self.catalogue)
            ctx.fail(
                f"No such command {args[0]!r}" + (f". Did you mean {' or '.join(map(repr, near))}?" if near else "")
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        """The overview, by sections, without importing any command."""
        for section in dict.fromkeys(entry.section for entry in self.catalogue.values()):
            with formatter.section(section):
                formatter.write_dl(
                    [(name, entry.about) for name, entry in self.catalogue.items() if entry.section == section]
                )


def examples(*lines: str) -> str:
    """An epilog that shows commands as they are typed."""
    return "\b\n" + "\n".join(("Example:" if len(lines) == 1 else "Examples:", *(f"  {line}" for line in lines)))


def root(cls: type[Root], about: str, *lines: str) -> typer.Typer:
    """The app of the root command."""
    return _typer(about, lines, cls)


def group(about: str, *lines: str) -> typer.Typer:
    """The app of a noun: its commands are added with `command`; called alone, it shows its help."""
    app = _typer(about, lines, TyperGroup)

    @app.callback(invoke_without_command=True, help=about, epilog=examples(*lines))
    def alone(ctx: typer.Context) -> None:
        show_help_if_alone(ctx)

    return app


def single() -> typer.Typer:
    """The app of one command that stands at the root by itself."""
    return typer.Typer(add_completion=False, rich_markup_mode=None, context_settings=_SETTINGS)


def command(app: typer.Typer, name: str, *lines: str) -> Callable[[F], F]:
    """Adds a command; `lines` are the examples at the end of its help, its docstring is the rest."""
    add: Callable[[F], F] = app.command(name, epilog=examples(*lines), context_settings=_SETTINGS)
    return add


def show_help_if_alone(ctx: typer.Context) -> None:
    """For a group that was called without a command: its help on stderr, and exit code 2."""
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help(), err=True)
        raise typer.Exit(2)


def _typer(about: str, lines: tuple[str, ...], cls: type[TyperGroup]) -> typer.Typer:
    return typer.Typer(
        cls=cls,
        help=about,
        epilog=examples(*lines),
        add_completion=False,
        rich_markup_mode=None,
        context_settings=_SETTINGS,
    )
