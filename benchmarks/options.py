"""Options that benchmarks share: one spelling, one default help and one check of each."""

import argparse
from collections.abc import Callable, Collection
from pathlib import Path


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults are shown, and texts keep their lines."""


def parser(description: str, more: str | None = None) -> argparse.ArgumentParser:
    """A parser whose help shows defaults, and more below them or where the program's text is."""
    if more is None:
        description = f"{description} See the top of this file."
    return argparse.ArgumentParser(description=description, epilog=more, formatter_class=Help)


def at_least(least: int) -> Callable[[str], int]:
    """The type of an option that is a whole number.

    Example:
      >>> at_least(2)("3")
      3
    """

    def whole(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"must be a whole number >= {least}, got {text!r}")
        return value

    return whole


def add_choice(
    to: argparse.ArgumentParser,
    option: str,
    known: Collection[str],
    usual: Collection[str] | None = None,
    more: str = "",
) -> None:
    """An option that takes some of the known names; `usual` is its default, None for all."""
    default = list(known if usual is None else usual)
    to.add_argument(
        option, nargs="+", choices=known, default=default, metavar="NAME",
        help=f"some of: {', '.join(default or known)}{more}",
    )  # fmt: skip


def add_seeds(to: argparse.ArgumentParser, usual: int) -> None:
    """How many seeds each reported setting has; an interval needs two."""
    to.add_argument("--seeds", type=at_least(2), default=usual, help="runs of each setting, >= 2")


def add_records(to: argparse.ArgumentParser, folder: str) -> None:
    """Where the JSON files of the jobs are, and the report of what is there."""
    to.add_argument("--out", type=Path, default=Path(folder), help="folder for a JSON file a job")
    to.add_argument(
        "--report", action="store_true", help="run nothing; only tables and pictures of --out"
    )
