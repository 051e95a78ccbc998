"""Prints results as tables, with the targets of each client."""

from __future__ import annotations

from collections.abc import Sequence

from .results import Results
from .runner import Column, Workload
from .targets import TARGETS, Verdict, verdict_on

__all__ = ["print_table", "verdicts"]


def print_table(workload: Workload, results: Results) -> None:
    """Print the cases of a workload, with a row for each client."""
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
    """Return the verdict on each target that was measured."""
    found = (verdict_on(target, results) for target in TARGETS)
    return [each for each in found if each is not None]


def _rows(results: Results, at: tuple[str, str, str], columns: Sequence[Column]) -> list[list[str]]:
    """Return the row of a client, and another row for each target after its first."""
    values = [_value(results, *at, column) for column in columns]
    cells = [
        "-" if value is None else format(value, column.format) for value, column in zip(values, columns, strict=True)
    ]
    notes = [
        str(verdict)
        for verdict in verdicts(results)
        if (verdict.target.workload, verdict.target.case, verdict.target.client) == at
    ]
    if failed := results.failed_rounds(*at):
        notes.insert(0, f"failed {failed}x")
    return [[at[2], *cells, *notes[:1]], *([""] * (len(cells) + 1) + [note] for note in notes[1:])]


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
