"""What was measured: rows that are printed as they come, tables at the end, and JSON after every row."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Column:
    key: str
    title: str
    digits: int | None = None
    width: int = 0

    def text(self, row: dict) -> str:
        """
        >>> Column("ms", "ms", 2).text({"ms": 3.14159})
        '3.14'
        >>> Column("ms", "ms", 2).text({}), Column("psnr", "dB", 1).text({"psnr": "equal"})
        ('—', 'equal')
        """
        value = row.get(self.key)
        if value is None:
            return "—"
        if isinstance(value, (int, float)) and self.digits is not None:
            return f"{value:.{self.digits}f}"
        return str(value)

    def cell(self, text: str) -> str:
        width = max(self.width, len(self.title))
        return text.ljust(width) if self.digits is None else text.rjust(width)


IMAGES = (
    Column("case", "case", width=22),
    Column("who", "engine", width=24),
    Column("step_ms", "ms/step", 2, 9),
    Column("image_s", "s/image", 3, 8),
    Column("decode_ms", "VAE ms", 1, 8),
    Column("allocated_gib", "alloc GiB", 2),
    Column("process_gib", "proc. GiB", 2),
    Column("psnr_db", "PSNR dB", 1, 7),
    Column("runs", "runs", 0),
    Column("note", "note"),
)
LOADS = (
    Column("what", "what", width=33),
    Column("model", "model", width=6),
    Column("ms", "ms", 1, 10),
    Column("gib", "GiB", 2, 6),
    Column("gib_s", "GiB/s", 2, 6),
    Column("over_transfer", "× transfer", 2),
    Column("runs", "runs", 0),
    Column("note", "note"),
)
FIGURES = (Column("what", "what", width=44), Column("before", "before", 3, 10), Column("after", "after", 3, 10))
QUEUE = (
    Column("case", "case", width=22),
    Column("jobs", "jobs", 0),
    Column("total_ms", "total ms", 0, 9),
    Column("busy_ms", "in stages ms", 0),
    Column("gap_ms", "gap ms/job", 2),
    Column("busy_percent", "busy %", 1),
    Column("utilisation_percent", "card busy %", 1),
)


def line(columns: Iterable[Column], row: dict) -> str:
    """
    >>> line((Column("a", "a", width=4), Column("b", "b", 1, 5)), {"a": "x", "b": 1.25})
    '| x    |   1.2 |'
    """
    return "| " + " | ".join(column.cell(column.text(row)) for column in columns) + " |"


def head(columns: Iterable[Column]) -> str:
    """Two lines, as Markdown has them."""
    columns = list(columns)
    titles = line(columns, {column.key: column.title for column in columns})
    rules = ["-" * max(column.width, len(column.title), 3) for column in columns]
    rules = [rule if column.digits is None else rule[:-1] + ":" for rule, column in zip(rules, columns)]
    return f"{titles}\n| {' | '.join(rules)} |"


def median(values: Iterable[float | None]) -> float | None:
    """
    >>> median([3, None, 1, 2]), median([None])
    (2, None)
    """
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


@dataclass
class Report:
    """Everything that was measured so far. What is printed at once is kept in `out` as well, if there is one."""

    out: Path | None
    facts: dict = field(default_factory=dict)
    tables: dict[str, list[dict]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _open: str = ""

    COLUMNS = {"images": IMAGES, "loads": LOADS, "floor": FIGURES, "queue": QUEUE}

    def add(self, table: str, row: dict) -> None:
        """Prints the row, below a new head where another table was begun or something was said."""
        columns = self.COLUMNS[table]
        if self._open != table:
            say(f"\n{head(columns)}")
        self._open = table
        self.tables.setdefault(table, []).append(row)
        say(line(columns, row))
        self.save()

    def note(self, text: str) -> None:
        """For whoever reads the tables: what is missing from them, and why."""
        self._open = ""
        self.notes.append(text)
        say(f"* {text}")
        self.save()

    def tell(self, text: str) -> None:
        self._open = ""
        say(text)

    def fact(self, name: str, value: object) -> None:
        self.facts[name] = value
        self.tell(f"{name}: {value}")

    def save(self) -> None:
        if self.out is None:
            return
        whole = {"facts": self.facts, **self.tables, "notes": self.notes}
        scratch = self.out.with_name(self.out.name + ".tmp")
        scratch.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(scratch, self.out)  # so that who is killed while writing leaves the last whole one

    def markdown(self) -> str:
        """All tables, facts before and notes behind them."""
        parts = ["\n".join(f"- {name}: {value}" for name, value in self.facts.items())]
        for table, columns in self.COLUMNS.items():
            if rows := self.tables.get(table):
                parts.append("\n".join([head(columns), *(line(columns, row) for row in rows)]))
        if self.notes:
            parts.append("\n".join(f"* {note}" for note in self.notes))
        return "\n\n".join(parts)


class Budget:
    """Seconds for all of it, and within them for each part.

    >>> whole = Budget(100)
    >>> 99 < whole.left() <= 100, 29 < whole.part(30).left() <= 30, whole.part(200).left() <= 100
    (True, True, True)
    """

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        return max(0.0, self._end - time.monotonic())

    def part(self, seconds: float) -> Budget:
        return Budget(min(seconds, self.left()))


def say(text: str) -> None:
    print(text, flush=True)
