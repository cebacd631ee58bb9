"""Everything that is wanted from a GPU, in at most nine minutes, each figure on disk as soon as it is known.

    python tests/bench/gpu.py [--out gpu.jsonl] [--only forward clip] [--device cuda] [--small]

What finds faults comes first, what may hang last. The sections run in a process of their own, which is killed
at a section's limit and started anew for the next one; its log, with the place where it hung, is FILE.log.
FILE gets a JSON object per line. The same command goes on after any interruption: a figure that is there is
not measured again, one that failed is. Weights are random. --small runs all of it in small, on a CPU, too.
"""

import argparse
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

# In their order, with the seconds after which each is killed; all together take `--seconds` at most.
SECTIONS = {
    "machine": 60,
    "faults": 60,
    "rates": 20,
    "forward": 75,
    "budgets": 120,
    "clip": 150,
    "refiner": 100,
    "kernels": 30,
    "tests": 120,
    "compiled": 170,
}
# What a section wants at least, else it is left out.
_LEAST_S = 10
WHOLE, ANEW = "all", "anew"
_MISSING = {"error", "no_time"}  # what a figure says that is to be taken again


class Options(NamedTuple):
    """What the process of the sections is told."""

    file: Path
    device: str
    small: bool
    began: int  # of the run, seconds since 1970: its lines bear it


class Figures:
    """The figures of a file; those that a run need not take again are ``answered``."""

    def __init__(self, options: Options) -> None:
        self.options, self.failed = options, 0
        text = options.file.read_bytes() if options.file.exists() else b""
        whole = text[: text.rfind(b"\n") + 1]
        if whole != text:
            options.file.write_bytes(whole)
        self.lines = [json.loads(line) for line in whole.splitlines()]
        self.answered = {
            (line["section"], line["figure"])
            for line in self.lines
            if line["run"] == options.began or not line.keys() & _MISSING
        }

    def write(self, section: str, figure: str, **values: Any) -> None:
        """Put a line on disk, whole or not at all, and show it."""
        began = self.options.began
        line = {"run": began, "at_s": round(time.time() - began, 1), "section": section}
        text = json.dumps(_rounded(line | {"figure": figure} | values), allow_nan=False)
        with self.options.file.open("ab", buffering=0) as file:
            file.write(f"{text}\n".encode())
            os.fsync(file.fileno())
        print(text, flush=True)
        self.answered.add((section, figure))
        self.failed += bool(values.keys() & _MISSING)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value


class Worker:
    """The process that runs the sections, one after the other."""

    def __init__(self, options: Options) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, options))
        self._process.start()
        theirs.close()

    def run(self, section: str, seconds: float) -> Any:
        """Return the answer of a section; RuntimeError where it gave none."""
        self._ours.send((section, seconds))
        try:
            if self._ours.poll(seconds):
                return self._ours.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            raise RuntimeError(f"the process ended with {self._process.exitcode}") from None
        assert self._process.pid is not None
        # It writes where it was into its log.
        os.kill(self._process.pid, signal.SIGABRT)
        self._process.join(2)
        raise RuntimeError(f"killed after {seconds:.0f} s; see the log for where it was")

    def end(self) -> None:
        """Kill the process with what it started; one that a driver holds back is not waited for long."""
        assert self._process.pid is not None
        _kill_group(self._process.pid)
        self._process.kill()
        self._process.join(10)


def _kill_group(pid: int) -> None:
    # Windows has none.
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


def _serve(connection: Connection, options: Options) -> None:
    """Run sections as they are asked for, until the process that asks is gone."""
    if hasattr(os, "setsid"):
        os.setsid()
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        _kill_group(os.getpid())
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    # Here, so that the process that asks stays small and cannot hang.
    from gpu_sections import serve

    serve(connection, options)


def measure(options: Options, sections: list[str], seconds: float) -> int:
    """Run sections within a time and return how many figures are missing."""
    figures, worker = Figures(options), Worker(options)
    ends = time.monotonic() + seconds
    missing = 0
    try:
        for section in sections:
            began = time.monotonic()
            limit = min(began + SECTIONS[section], ends)
            if (section, WHOLE) in figures.answered and section != "machine":
                continue
            if ends - began < _LEAST_S:
                figures.write(section, WHOLE, no_time=f"{ends - began:.0f} s left")
                missing += 1
                continue
            try:
                while (failed := worker.run(section, limit - time.monotonic())) == ANEW:
                    worker.end()
                    worker = Worker(options)
                problem = {"error": f"{failed} figures failed"} if failed else {}
            except RuntimeError as error:
                failed, problem = 1, {"error": str(error)}
            figures.write(section, WHOLE, seconds=round(time.monotonic() - began, 1), **problem)
            missing += failed
            if section == "machine" and failed:
                break
            if failed:
                # A fault on the device may have spoilt what comes after it.
                worker.end()
                worker = Worker(options)
    finally:
        worker.end()
    return missing


def main(arguments: list[str] | None = None) -> int:
    """Run the sections, and return 1 where a figure is missing."""
    parser = argparse.ArgumentParser(description="All figures wanted from a GPU, within nine minutes.")
    parser.add_argument("--out", type=Path, default=Path("gpu.jsonl"), metavar="FILE")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), metavar="NAME", help=" ".join(SECTIONS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="everything in small")
    parser.add_argument("--seconds", type=float, default=540)
    options = parser.parse_args(arguments)
    chosen = {"machine", *(options.only or SECTIONS)}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    told = Options(options.out.absolute(), options.device, options.small, int(time.time()))
    return min(1, measure(told, [name for name in SECTIONS if name in chosen], options.seconds))


if __name__ == "__main__":
    sys.exit(main())
