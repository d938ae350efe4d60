"""Results printed for people. Text is printed as it is, never as markup."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from rich.table import Table


WIDEST = 1000
"""Characters of a line of a table, at most."""


def print_table(console: Console, rows: Iterable[tuple[str, str]]) -> None:
    """Print two columns: names and values."""
    from rich.table import Table

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(overflow="fold")  # a path is not cut where the terminal is narrow
    for name, value in rows:
        table.add_row(name, Text(value))
    console.print(table)


def print_whole(console: Console, table: "Table") -> None:
    """Print a table of numbers: where the terminal is narrower, its lines are longer than that,
    since a cell that is cut would show another number."""
    needed = Console(file=console.file, width=WIDEST).measure(table).maximum
    Console(file=console.file, width=max(console.width, needed)).print(table)


def print_line(console: Console, text: str, style: str | None = None) -> None:
    """Print a line, which is not broken where the terminal ends."""
    console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


def print_problems(console: Console, problems: Iterable[str]) -> None:
    """Print what went wrong: a red line per problem."""
    for problem in problems:
        print_line(console, problem, style="red")
