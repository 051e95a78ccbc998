"""Prints results as tables of text, with the targets beside the figures that they bound."""

from __future__ import annotations

from collections.abc import Sequence

from .results import Results
from .runner import Column, Workload
from .targets import TARGETS, Verdict, verdict

__all__ = ["print_table", "verdicts"]


def print_table(workload: Workload, results: Results) -> None:
    """Print a workload's cases, one row a client."""
    print(f"\n== {workload.title}")
    for case in results.cases(workload.name):
        clients = results.clients(workload.name, case)
        columns = [
            column
            for column in workload.columns
            if any(_value(results, workload.name, case, client, column) is not None for client in clients)
        ]
        rows = [[case, *(column.heading for column in columns), ""]]
        for client in clients:
            rows += _rows(results, (workload.name, case, client), columns)
        print()
        _print_aligned(rows)


def verdicts(results: Results) -> list[Verdict]:
    """Return how each target fared that was measured."""
    found = (verdict(target, results) for target in TARGETS)
    return [one for one in found if one is not None]


def _rows(results: Results, at: tuple[str, str, str], columns: Sequence[Column]) -> list[list[str]]:
    """Return the client's row, and one more for each further target that it has."""
    values = [_value(results, *at, column) for column in columns]
    cells = [
        "-" if value is None else format(value, column.format) for value, column in zip(values, columns, strict=True)
    ]
    told = [str(one) for one in verdicts(results) if (one.target.workload, one.target.case, one.target.client) == at]
    if failed := results.failed_rounds(*at):
        told.insert(0, f"failed {failed}x")
    return [[at[2], *cells, *told[:1]], *([""] * (len(cells) + 1) + [text] for text in told[1:])]


def _value(results: Results, workload: str, case: str, client: str, column: Column) -> float | None:
    if column.against is None:
        return results.median(workload, case, client, column.key)
    return results.ratio(workload, case, client, column.key, column.against)


def _print_aligned(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[at]) for row in rows if at < len(row)) for at in range(len(rows[0]) - 1)]
    for row in rows:
        first = row[0].ljust(widths[0])
        numbers = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=False))
        print("  ".join([first, *numbers, *row[len(widths) :]]).rstrip())
