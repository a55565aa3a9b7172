"""Times the GPU kernels beside what the machine can do: copy bandwidth, matrix peak, naive torch, compiled torch.

python -m bench.gpu.kernels MEASURED.json TABLE.md [ONLY]

A backend's whole result is checked against float64 before it is timed. Seconds are the device's; the host's, until a
call returns, are beside them. Begun again with the same MEASURED.json it goes on with the next case. ONLY, such as
`pooling,cosine`: the cases of bench/gpu/cases.py whose names begin so.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bench.gpu.backends import available
from bench.gpu.cases import Measurement, measurements
from bench.gpu.process import LOST_DEVICE, device_is_lost, write_aside
from bench.gpu.timing import captured, device_medians, host_median, kernel_times, machine_limits

Case = dict[str, Any]


class Results:
    """What has been measured, kept in a file."""

    def __init__(self, measured: Path, table: Path) -> None:
        self._measured, self._table = measured, table
        kept = json.loads(measured.read_text()) if measured.exists() else {}
        self.machine: dict[str, float] = kept.get("machine") or machine_limits()
        self.begun: list[str] = kept.get("begun", [])
        self.cases: list[Case] = kept.get("cases", [])
        self.failed: list[str] = kept.get("failed", [])

    def write(self) -> None:
        """A run that is stopped leaves what it had."""
        kept = {"machine": self.machine, "begun": self.begun, "cases": self.cases, "failed": self.failed}
        write_aside(self._measured, json.dumps(kept))
        write_aside(self._table, markdown(self.machine, self.cases))

    def fail(self, what: str, error: Exception) -> None:
        """Notes a failure, and ends the process where no other case can run in it."""
        traceback.print_exception(error)
        self.failed.append(f"{what}: {type(error).__name__}: {error}"[:2000])
        self.write()
        if device_is_lost():
            sys.stdout.flush()
            os._exit(LOST_DEVICE)  # what ends in order would fail once more


def main(measured: str, table: str, only: str = "") -> int:
    results = Results(Path(measured), Path(table))
    beginnings = tuple(only.split(","))
    refuse_unknown(beginnings)
    for suffix, work in (("", time_case), (", kernels", list_kernels)):
        for name, make in measurements():
            if name + suffix in results.begun or not name.startswith(beginnings):
                continue
            results.begun.append(name + suffix)
            results.write()
            try:
                with make() as measurement:
                    work(measurement, results)
            except Exception as error:  # the other figures are worth having
                results.fail(name + suffix, error)
            torch.cuda.empty_cache()
            results.write()
    print(markdown(results.machine, results.cases))
    return 1 if results.failed else 0


def refuse_unknown(beginnings: tuple[str, ...]) -> None:
    """Raises ValueError where no case's name begins as one of these; nothing at all stands for every case."""
    names = [name for name, _ in measurements()]
    for one in beginnings if beginnings != ("",) else ():
        if not one or not any(name.startswith(one) for name in names):
            raise ValueError(f"ONLY: got {one!r}; it must be what the name of a case begins with")


def time_case(measurement: Measurement, results: Results) -> None:
    """Adds a case for each backend whose results are right, and for each of the others."""
    errors: dict[str, float] = {}
    for name in available():
        try:
            found = measurement.error(name)
            assert found <= measurement.most, f"error: got {found:.3g}; it must be {measurement.most:g} or less"
            errors[name] = found
        except Exception as error:
            results.fail(f"{measurement.case}, {name}", error)
    runs = {name: measurement.ours(name) for name in errors}
    seconds = device_medians({**runs, **measurement.others})
    for name, taken in seconds.items():
        case: Case = {"case": measurement.case, "backend": name, "seconds": taken}
        if name in runs:
            case |= {"error": errors[name], "host_seconds": host_median(runs[name])}
            case |= compared(measurement, taken, seconds) | shares(measurement, taken, results.machine)
            case["targets"] = verdicts(measurement.targets, case)
        results.cases.append(case)
        if name in runs and measurement.replayed:
            try:
                with captured(runs[name]) as replay:
                    case["replay_seconds"] = device_medians({name: replay})[name]
            except Exception as error:
                results.fail(f"{measurement.case}, {name}, as a graph", error)


def list_kernels(measurement: Measurement, results: Results) -> None:
    """Adds to each of our cases what its kernels take; apart, as a profiler once used slows launches down."""
    for case in results.cases:
        if case["case"] == measurement.case and case["backend"] in available() and not measurement.base:
            run = measurement.ours(case["backend"])
            run()
            case["kernel_microseconds"] = kernel_times(run)


def compared(measurement: Measurement, taken: float, seconds: dict[str, float]) -> Case:
    """How many times faster than each of the others, or what share of the one that it contains comes on top."""
    if measurement.base:
        return {f"share of {measurement.base}": taken / seconds[measurement.base] - 1}
    return {f"times {other}": seconds[other] / taken for other in measurement.others}


def shares(measurement: Measurement, taken: float, machine: dict[str, float]) -> Case:
    """Rates, and what share of the machine's they are."""
    found: Case = {}
    if measurement.bytes:
        rate = measurement.bytes / taken / 1e9
        found |= {"gigabytes_per_second": rate, "share_of_copy": rate / machine["copy_gigabytes_per_second"]}
    if measurement.flops:
        rate = measurement.flops / taken / 1e12
        found |= {"teraflops": rate, "share_of_matrix_peak": rate / machine["matrix_teraflops"]}
    return found


def verdicts(targets: Mapping[str, float], case: Case) -> dict[str, Case]:
    """What each figure with a target must reach, and whether it does."""
    found = {}
    for name, target in targets.items():
        at_most = name == "seconds" or name.startswith("share of ")
        found[name] = {"target": target, "reached": (case[name] <= target) if at_most else (case[name] >= target)}
    return found


def in_words(name: str, value: float, verdict: Case) -> str:
    """As `share of copy 0.29 of 0.85: missed`."""
    met = "reached" if verdict["reached"] else "missed"
    return f"{name.replace('_', ' ')} {value:.3g} of {verdict['target']:g}: {met}"


def markdown(machine: dict[str, float], cases: list[Case]) -> str:
    """The table, with the machine's limits above it."""
    limits = ", ".join(f"{name.replace('_', ' ')} {value:.0f}" for name, value in machine.items())
    lines = [
        f"{torch.cuda.get_device_name()}: {limits}",
        "",
        "| case | backend | µs, device | µs, host | measured | must reach |",
        "|---|---|---|---|---|---|",
    ]
    apart = {"case", "backend", "seconds", "host_seconds", "kernel_microseconds", "targets"}
    for case in cases:
        shown = ", ".join(f"{key.replace('_', ' ')} {case[key]:.3g}" for key in case if key not in apart)
        host = f"{case['host_seconds'] * 1e6:.1f}" if "host_seconds" in case else ""
        asked = "; ".join(in_words(name, case[name], found) for name, found in case.get("targets", {}).items())
        figures = (case["case"], case["backend"], f"{case['seconds'] * 1e6:.1f}", host, shown, asked)
        lines.append(f"| {' | '.join(figures)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
