"""How a workload is measured on a device: answers first, then samples by events and by the wall clock.

The answer of simkit is checked on inputs small enough for the host against NumPy in float64, which also checks the
device's own reference, and on the timed inputs against that reference, float64 by torch on the device: one before the
samples, and the last sample's of every input set after them. Ceilings are measured just before the samples and just
after; every sample starts from an idle device and a flushed cache.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from ..protocol import Missing, finite
from .device import Device, Timed
from .products import PRECISIONS, Ceilings, measure_ceilings, product_errors

ROUNDS = 5
SHORT, REPEATS = 0.05, 4  # seconds; samples a round of calls that are shorter
PATIENCE = 10.0  # seconds: of a rival that takes longer, the checked call is the only sample
REFERENCES = 1e-9  # how far the device's reference may be from the host's
SAME = 2.0  # errors within this factor are the same, and those
NOTHING = 1e-12  # below this
SPLIT = "three of TF32"  # in simkit's plans
SHARE = 0.7  # of the rate of the library's products at the same error, asked of simkit everywhere
FASTER = 10.0  # times the fastest rival by another algorithm
COUNTED = "2^x, counted"  # the limit of work that is no product of matrices


@dataclass(frozen=True)
class Workload:
    """What is computed, on which inputs, and what it costs at least.

    Attributes:
        key, title, sizes: for the record.
        inputs: equivalent input sets that the samples rotate among.
        feasible: an input set small enough for the host's reference.
        host_truth, truth: of an input set, in float64: by NumPy on the host, and by torch on the device.
        difference: of two truths.
        error: of an answer, against a truth.
        tolerance: the largest error simkit may have.
        precision: of the products that the limit counts where no library mode reaches simkit's error, and no faster
            one is due (:func:`limiting`).
        multiply_adds, bytes: the least that any algorithm for the exact answer needs.
        programs: those of csrc/cuda that do the work, for its README.
        share: of the limit's rate, asked of simkit.
        of_products: whether the work is products of matrices; False: no limit is counted at their rates.
        exponentials: of work that is none: the powers of two, at whose counted rate its limit is.
        besides: the contestant whose time is no part of the work: it is taken off before the rate is judged.
        wall, error_asked, float32: at full size: seconds end to end at most; the error at most; whether less time is
            asked for than plain float32 products take.
    """

    key: str
    title: str
    sizes: dict[str, object]
    inputs: Sequence[Any]
    feasible: Any
    host_truth: Callable[[Any], Any]
    truth: Callable[[Any], Any]
    difference: Callable[[Any, Any], float]
    error: Callable[[Any, Any], float]
    tolerance: float
    precision: str
    multiply_adds: int
    bytes: int
    programs: str
    share: float = SHARE
    of_products: bool = True
    exponentials: int = 0
    besides: str = ""
    wall: float | None = None
    error_asked: float | None = None
    float32: bool = False


@dataclass(frozen=True)
class Contestant:
    """One way to compute a workload.

    Attributes:
        call: input set, or what ``prepare`` returned -> answer, or what ``finish`` takes; whatever it starts is waited
            for.
        error: of its answer against the truth, where it differs from the workload's; None of what is no answer.
        mode: the precision of its products, where it is the same mathematics by the library's products.
        scale: how often the whole workload does what ``call`` does: the time of ``call`` alone is multiplied.
        prepare, finish: what the whole workload does once, before and after; its time is added as it is.
        note: what a reader must know.
        plan: of simkit's answer: the plans of the results in it.
        other: whether it is a rival by another algorithm, for which simkit's gain is algorithmic.
    """

    name: str
    call: Callable[[Any], Any]
    error: Callable[[Any, Any], float | None] | None = None
    mode: str | None = None
    scale: float = 1.0
    prepare: Callable[[Any], Any] | None = None
    finish: Callable[[Any], Any] | None = None
    note: str = ""
    plan: Callable[[Any], Sequence[Any]] | None = None
    other: bool = False


@dataclass(frozen=True)
class Run:
    """A contestant on one input set: its answer, the times of the whole workload, and how they came about."""

    answer: Any
    events: float
    wall: float
    unscaled: float  # of the events' seconds, what is done once
    taken: float  # seconds by the wall clock, nothing scaled


@dataclass
class Entry:
    """What a contestant gave and took."""

    contestant: Contestant
    error: float | None = None
    failure: str = ""
    first: float = 0.0  # seconds that the checked run took, nothing scaled
    plans: Sequence[Any] = ()
    samples: list[Run] = field(default_factory=list)
    last: dict[int, Any] = field(default_factory=dict)  # the last answer on each input set

    @property
    def once(self) -> bool:
        """Whether the checked run is the only sample."""
        return self.first > PATIENCE

    def median(self, clock: str) -> float:
        """Seconds of the whole workload, by ``"events"`` or by ``"wall"``."""
        return statistics.median(getattr(sample, clock) for sample in self.samples)


def measure(
    device: Device,
    workload: Workload,
    simkit: Contestant,
    rivals: Sequence[Contestant | Missing],
    *,
    side: int,
    rounds: int = ROUNDS,
) -> dict[str, Any]:
    """Check every answer, time all contestants in turn between two measurements of the ceilings; plain data."""
    reference = check_references(device, workload, simkit)
    truth = workload.truth(workload.inputs[0])
    own = _verified(device, workload, simkit, truth, must=True)
    if own.error is None or not own.error <= workload.tolerance:
        raise AssertionError(f"{workload.key}: simkit's error is {own.error} > {workload.tolerance}")
    entries = [own]
    for rival in rivals:
        if isinstance(rival, Contestant):
            entries.append(_verified(device, workload, rival, truth, must=False))
    del truth
    errors = product_errors(device, side)
    before = measure_ceilings(device, f"before {workload.key}", side, side * side * 16)
    for number in range(rounds + 1):
        which = number % len(workload.inputs)
        for entry in entries:
            _sample(device, entry, workload.inputs, which, warm_up=number == 0, must=entry is own)
    after = measure_ceilings(device, f"after {workload.key}", side, side * side * 16)
    _verify_last(device, workload, entries)
    device.forget()
    missing = [rival for rival in rivals if isinstance(rival, Missing)]
    found = record(workload, entries, missing, (before, after), errors, device.exponentials())
    return found | {"reference_error": finite(reference)}


def check_references(device: Device, workload: Workload, simkit: Contestant) -> float:
    """On the feasible inputs: the device's reference and simkit against the host's; how far the former is off.

    Raises:
        AssertionError: either is too far.
    """
    host = workload.host_truth(workload.feasible)
    apart = workload.difference(workload.truth(workload.feasible), host)
    if not apart <= REFERENCES:
        raise AssertionError(f"{workload.key}: the references on the device and on the host are {apart:.3g} apart")
    error = workload.error(run(device, simkit, workload.feasible).answer, host)
    if not error <= workload.tolerance:
        raise AssertionError(f"{workload.key}: simkit's error on the host's inputs is {error} > {workload.tolerance}")
    return apart


def run(device: Device, contestant: Contestant, inputs: Any) -> Run:
    """Time what is done once and what is scaled apart, each from an idle device."""

    def part(call: Callable[[Any], Any] | None, value: Any) -> Timed:
        return Timed(value, 0.0, 0.0) if call is None else device.timed(partial(call, value))

    before = part(contestant.prepare, inputs)
    called = part(contestant.call, before.answer)
    after = part(contestant.finish, called.answer)
    once, waited = before.events + after.events, before.wall + after.wall
    whole = once + contestant.scale * called.events, waited + contestant.scale * called.wall
    return Run(after.answer, *whole, unscaled=once, taken=waited + called.wall)


def _verified(device: Device, workload: Workload, contestant: Contestant, truth: Any, *, must: bool) -> Entry:
    entry = Entry(contestant)
    try:
        found = run(device, contestant, workload.inputs[0])
        entry.error = (contestant.error or workload.error)(found.answer, truth)
    except Exception as failure:
        if must:
            raise
        entry.failure = _told(device, failure)
        return entry
    entry.first = found.taken
    if contestant.plan is not None:
        entry.plans = contestant.plan(found.answer)
    if entry.once:
        entry.samples.append(replace(found, answer=None))
    return entry


def _verify_last(device: Device, workload: Workload, entries: Sequence[Entry]) -> None:
    """What was timed is an answer: an entry's error becomes the largest over the input sets.

    Raises:
        AssertionError: simkit's, the first entry's, is too large on one of them.
    """
    for which in sorted({which for entry in entries for which in entry.last}):
        truth = workload.truth(workload.inputs[which])
        for entry in entries:
            if entry.failure or which not in entry.last:
                continue
            try:
                error = (entry.contestant.error or workload.error)(entry.last.pop(which), truth)
            except Exception as failure:
                if entry is entries[0]:
                    raise
                entry.failure = _told(device, failure)
                continue
            if entry is entries[0] and (error is None or not error <= workload.tolerance):
                raise AssertionError(
                    f"{workload.key}: simkit's error on input set {which} is {error} > {workload.tolerance}"
                )
            if error is not None and entry.error is not None and not error <= entry.error:  # NaN stays
                entry.error = error
        del truth


def _sample(device: Device, entry: Entry, inputs: Sequence[Any], which: int, *, warm_up: bool, must: bool) -> None:
    if entry.failure or entry.once:
        return
    for _ in range(REPEATS if device.real and entry.first < SHORT and not warm_up else 1):
        device.flush()
        try:
            found = run(device, entry.contestant, inputs[which])
        except Exception as failure:
            if must:
                raise
            entry.failure = _told(device, failure)
            return
        entry.last[which] = found.answer
        if not warm_up:
            entry.samples.append(replace(found, answer=None))


def _told(device: Device, failure: Exception) -> str:
    """A rival that fails, for lack of memory perhaps, is a row of the table."""
    device.forget()
    return f"{type(failure).__name__}: {failure}".splitlines()[0]


def limits(workload: Workload, ceilings: Sequence[Ceilings]) -> dict[str, float]:
    """The least seconds the workload can take at the mean of the ceilings, by precision of its products."""
    copied = statistics.mean(ceiling.copied for ceiling in ceilings)
    return {
        precision: max(
            workload.multiply_adds / statistics.mean(ceiling.rates[precision] for ceiling in ceilings),
            workload.bytes / copied,
        )
        for precision in PRECISIONS
    }


def as_good(entries: Sequence[Entry]) -> list[Entry]:
    """The contestants by a product mode of the library whose error is simkit's, the first entry's, at most."""
    own = entries[0].error
    assert own is not None
    allowed = max(SAME * own, NOTHING)
    return [
        entry
        for entry in entries[1:]
        if entry.contestant.mode and entry.samples and entry.error is not None and entry.error <= allowed
    ]


def limiting(workload: Workload, own: Entry, least: dict[str, float], errors: Mapping[str, object]) -> str:
    """The precision of the limit where no library mode reaches simkit's error: the one that flatters simkit least.

    Of the workload's, those whose square products have an error within simkit's, and three TF32 products for one where
    simkit's plan says that it forms them.
    """
    assert own.error is not None
    due = {workload.precision}
    due |= {name for name in PRECISIONS if isinstance(off := errors[name], float) and off <= max(own.error, NOTHING)}
    if any(SPLIT in f"{step.route} {step.reason}" for plan in own.plans for step in plan.steps):
        due.add("tf32 split")
    return min(sorted(due), key=lambda name: least[name])


def record(
    workload: Workload,
    entries: Sequence[Entry],
    missing: Sequence[Missing],
    ceilings: Sequence[Ceilings],
    errors: Mapping[str, object],
    exponentials: float | None = None,
) -> dict[str, Any]:
    """The measurement as plain data for the JSON file.

    ``errors``: of square products, by precision; ``exponentials``: a second, where that rate is known.
    """
    least = limits(workload, ceilings) if workload.of_products else {}
    good = as_good(entries)
    same = min(good, key=lambda entry: entry.median("events"), default=None)
    precision = None
    if workload.of_products:  # the fastest mode, whatever its contestant does beside its products
        modes = sorted({str(entry.contestant.mode) for entry in good})
        precision = min(modes, key=least.__getitem__) if modes else limiting(workload, entries[0], least, errors)
    elif workload.exponentials and exponentials is not None:
        precision, least = COUNTED, {COUNTED: workload.exponentials / exponentials}
    limit = None if precision is None else least[precision]
    base = entries[0].median("wall")
    rows = [_row(entry, limit, base) for entry in entries]
    rows += [{"name": rival.name, "missing": rival.reason} for rival in missing]
    return {
        "kind": "gpu workload",
        "key": workload.key,
        "title": workload.title,
        "sizes": workload.sizes,
        "programs": workload.programs,
        "limit": {
            "precision": precision,
            "seconds": limit,
            "by_precision": least,
            "multiply_adds": workload.multiply_adds,
            "bytes": workload.bytes,
            "share": workload.share,
        },
        "fastest_same_error": None if same is None else same.contestant.name,
        "ceilings": [ceiling.as_data() for ceiling in ceilings],
        "contestants": rows,
        "asked": asked(workload, rows, least, limit),
        "notes": [],
    }


def asked(
    workload: Workload, rows: Sequence[Mapping[str, Any]], least: Mapping[str, float], limit: float | None
) -> list[dict[str, Any]]:
    """What is asked of simkit, the first of the rows, each with what it reached; None: it could not be judged."""
    own = rows[0]
    besides = next((row.get("seconds") for row in rows if row["name"] == workload.besides), 0.0)
    share = None if limit is None or besides is None else limit / max(own["seconds"] - besides, 1e-9)
    found = [_judged("share", workload.share, share, at_least=True)]
    if workload.wall is not None:
        found.append(_judged("wall", workload.wall, own["wall"]))
    if workload.error_asked is not None:
        found.append(_judged("error", workload.error_asked, own["error"]))
    if workload.float32:
        found.append(_judged("float32", 1.0, own["seconds"] / least["float32"]))
    others = [row for row in rows[1:] if row.get("other")]
    if others:
        ratios = [row["ratio_to_simkit"] for row in others if "ratio_to_simkit" in row]
        found.append(_judged("rival", FASTER, min(ratios, default=None), at_least=True))
    return found


def _judged(what: str, bound: float, reached: float | None, *, at_least: bool = False) -> dict[str, Any]:
    kept = None if reached is None else bool(reached >= bound if at_least else reached <= bound)
    return {"what": what, "bound": bound, "reached": reached, "kept": kept}


def _row(entry: Entry, limit: float | None, base: float) -> dict[str, Any]:
    row: dict[str, Any] = {"name": entry.contestant.name, "error": finite(entry.error)}
    if entry.contestant.other:
        row["other"] = True
    for name in ("mode", "note"):
        if getattr(entry.contestant, name):
            row[name] = getattr(entry.contestant, name)
    if entry.failure:
        row["failure"] = entry.failure
    if entry.samples:
        events = [sample.events for sample in entry.samples]
        row |= {
            "samples": len(events),
            "seconds": statistics.median(events),
            "spread": [min(events), max(events)],
            "wall": entry.median("wall"),
            "ratio_to_limit": None if limit is None else statistics.median(events) / limit,
            "ratio_to_simkit": entry.median("wall") / base,
        }
        if entry.contestant.scale != 1.0:
            unscaled = statistics.median(sample.unscaled for sample in entry.samples)
            row |= {"scaled_by": entry.contestant.scale, "unscaled_seconds": unscaled}
    return row | what_ran(entry.plans)


def what_ran(plans: Sequence[Any]) -> dict[str, Any]:
    """The backends of simkit's plans, in order, and each step once."""
    if not plans:
        return {}
    backends = dict.fromkeys(step.backend for plan in plans for step in plan.steps)
    steps = dict.fromkeys((step.op, step.backend, step.route, step.reason) for plan in plans for step in plan.steps)
    names = ("op", "backend", "route", "reason")
    notes = dict.fromkeys(note for plan in plans for note in plan.notes)
    return {
        "backend": ", ".join(backends),
        "steps": [dict(zip(names, step, strict=True)) for step in steps],
        "plan_notes": list(notes),
    }
