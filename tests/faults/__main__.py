"""Planted faults: ``python -m tests.faults --seed 1``.

In copies of three models one operator is changed, so that the answer moves by more than ten times what two frameworks
differ by anyway (where a layer overflows in float16: by what overflows alone, not by being rounded). The faulty copy
runs in another framework than the reference, half of the pairs with the frameworks' default fusion and half without
any; names of nodes are random. `mlscope_lab.compare` sees that pair and one picture alone and has to name the group of
operations that holds the change (`tests.faults.truth.judge` says what counts). As many pairs without a fault are
compared, too, of which nothing may be named.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tests.faults.planting import KINDS
from tests.faults.trials import Bench, Trial

EXACT, EXACT_BY_KIND, SHADOW = 0.95, 0.80, 0.90


def kept(faults: Sequence[Trial], clean: Sequence[Trial]) -> list[str]:
    """Return the limits that are missed, in words."""
    missed = []
    for what, found, limit in (
        ("first divergent exact", [t.first_exact for t in faults], EXACT),
        ("shadow replay first", [t.shadow_first for t in faults], SHADOW),
    ):
        if found and sum(found) < limit * len(found):
            missed.append(f"{what}: {sum(found)} of {len(found)}, wanted {limit:.0%}")
    for kind in KINDS:
        exact = [t.first_exact for t in faults if t.kind == kind]
        if exact and sum(exact) < EXACT_BY_KIND * len(exact):
            missed.append(f"{kind}: {sum(exact)} of {len(exact)} exact, wanted {EXACT_BY_KIND:.0%}")
    named = sum(bool(t.reason) for t in clean)
    if named:
        missed.append(f"{named} of {len(clean)} clean pairs named something")
    return missed


def table(faults: Sequence[Trial], rejected: Counter[tuple[str, str]]) -> str:
    """Return the counts by kind, and the rejected draws by kind and reason."""
    lines = [f"{'kind':18} {'planted':>8} {'first exact':>12} {'shadow first':>13} {'rejected draws':>15}"]
    for kind in (*KINDS, "all"):
        rows = [t for t in faults if kind in (t.kind, "all")]
        refused = sum(n for (k, _), n in rejected.items() if kind in (k, "all"))
        lines.append(f"{kind:18} {len(rows):8} {sum(t.first_exact for t in rows):12} "
                     f"{sum(t.shadow_first for t in rows):13} {refused:15}")  # fmt: skip
    lines += [f"  rejected {n:3} of {kind}: {reason}" for (kind, reason), n in sorted(rejected.items())]
    for what, of in (("model", lambda t: t.model), ("pair", lambda t: f"{t.reference} -> {t.faulty}"),
                     ("fusion", lambda t: "default" if t.fused else "none")):  # fmt: skip
        for key, count in sorted(Counter(of(t) for t in faults).items()):
            exact = sum(t.first_exact for t in faults if of(t) == key)
            lines.append(f"  {what:7} {key:32} {exact:3} of {count:3} exact")
    return "\n".join(lines)


def describe(trial: Trial) -> str:
    """Return a miss in detail."""
    fusion = "fused" if trial.fused else "unfused"
    return (
        f"{trial.kind}, {trial.model}, {trial.reference} -> {trial.faulty}, {fusion}, {trial.picture}: {trial.detail}"
        f"\n    {trial.reason}; moved {trial.moved:.3g}, clean {trial.clean_difference:.3g}"
        f"\n    changed  {', '.join(trial.truth)}\n    smallest {trial.smallest}\n    first    {trial.first}"
        f"\n    culprit  {trial.culprit}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the trials and print the table; 1 if a limit is missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", type=int, default=60)
    parser.add_argument("--clean", type=int, default=60)
    parser.add_argument("--kind", action="append", choices=KINDS, help="these kinds only")
    parser.add_argument("--json", type=Path, help="write every trial to this file")
    parser.add_argument("--verbose", action="store_true", help="print each trial as it ends")
    given = parser.parse_args(arguments)
    started = time.perf_counter()

    def report(trial: Trial) -> None:
        if given.verbose:
            print(f"[{time.perf_counter() - started:6.1f} s]", describe(trial), flush=True)

    with tempfile.TemporaryDirectory() as folder, Bench(Path(folder), report) as bench:
        faults = list(bench.faults(given.seed, given.faults, tuple(given.kind or KINDS)))
        clean = list(bench.clean(given.seed, given.clean))
        rejected = bench.rejected
    print(f"seed {given.seed}, {time.perf_counter() - started:.0f} s")
    print(table(faults, rejected))
    print(f"clean pairs: {sum(bool(t.reason) for t in clean)} of {len(clean)} named something")
    for trial in [*(t for t in faults if not (t.first_exact and t.shadow_first)), *(t for t in clean if t.reason)]:
        print("MISS", describe(trial))
    if given.json is not None:
        rows = {"seed": given.seed, "faults": [asdict(t) for t in faults], "clean": [asdict(t) for t in clean],
                "rejected": [[*key, n] for key, n in sorted(rejected.items())]}  # fmt: skip
        given.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    missed = kept(faults, clean)
    print("\n".join(f"MISSED {text}" for text in missed) or "all limits kept")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
