"""Results printed for people. Text is printed as it is, never as markup."""

from collections.abc import Iterable

from rich.console import Console
from rich.text import Text


def print_table(console: Console, rows: Iterable[tuple[str, str]]) -> None:
    """Print two columns: names and values."""
    from rich.table import Table

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in rows:
        table.add_row(name, Text(value))
    console.print(table)


def print_line(console: Console, text: str, style: str | None = None) -> None:
    """Print a line, which is not broken where the terminal ends."""
    console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


def print_problems(console: Console, problems: Iterable[str]) -> None:
    """Print what went wrong: a red line per problem."""
    for problem in problems:
        print_line(console, problem, style="red")
