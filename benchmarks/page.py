"""What the pages of the benchmarks share: CPU time, tables, and the name of the processor."""

import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Done = TypeVar("Done")


def seconds(work: Callable[[], Done]) -> tuple[Done, float]:
    "What the work gives, and its CPU time."
    start = time.process_time()
    done = work()
    return done, time.process_time() - start


def table(titles: list[str], rows: list[str]) -> str:
    "A Markdown table of rows that are written already."
    return "\n".join([f"| {' | '.join(titles)} |", "|" + "---|" * len(titles), *rows])


def processor() -> str:
    "The processor by its own name, where Linux tells it."
    info = Path("/proc/cpuinfo")
    names = [x.split(":")[1].strip() for x in info.read_text().splitlines() if "model name" in x] if info.exists() else []
    return names[0] if names else platform.processor() or platform.machine()
