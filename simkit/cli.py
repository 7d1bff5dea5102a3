"""The command ``simkit``: one public call per subcommand, and one sentence for a user's mistake.

Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NoReturn

from . import __version__
from .errors import SimkitWarning

if TYPE_CHECKING:
    from .compare.matrix import SimilarityMatrix
    from .kernels import Kernel
    from .metrics.measure import Measure

MISTAKE, INTERRUPTED, BROKEN_PIPE = 2, 130, 141
MEASURES = ("cka", "nbs", "procrustes", "cca", "r2-cca", "svcca", "pwcca", "linear-regression")
EXTRAS = {"bench": "test"}  # where it is not the command's name
# What simkit raises for input it refuses, and the system for files it refuses.
REFUSALS = (ValueError, TypeError, NotImplementedError, OverflowError, ImportError, OSError, MemoryError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (None: the process's) and return its exit code.

    0: done. 1: ``doctor`` found something broken. 2: a mistake, said in one sentence on stderr. 130: Ctrl-C.
    """
    debug = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", SimkitWarning)
            warnings.showwarning = _show_warning
            parser = _parser()
            arguments = parser.parse_args(argv)
            debug = arguments.debug
            code = 0
            if arguments.run is None:
                parser.print_help()
            else:
                code = arguments.run(arguments)
            sys.stdout.flush()
            return code
    except SystemExit as stop:  # argparse: 0 after --help and --version, 2 after a mistake
        return int(stop.code or 0)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has seen enough; nothing more may be flushed there
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except REFUSALS as error:
        if debug:
            traceback.print_exc()
        print(f"simkit: error: {_sentence(error)}", file=sys.stderr)
        return MISTAKE


def _sentence(error: BaseException) -> str:
    """One line, whatever the error holds."""
    from .experiments.terminal import printable

    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.filename is None else f"{error.filename!r}: {error.strerror}"
    return printable(" ".join(str(error).split())) or type(error).__name__


def _show_warning(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
    from .experiments.terminal import printable

    print(f"simkit: warning: {printable(' '.join(str(message).split()))}", file=sys.stderr)


class _Parser(argparse.ArgumentParser):
    """Options must be written out; a mistake is one sentence."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse, but a command says itself what it does not know, so that the hint names its help."""
        known, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return known, unknown

    def error(self, message: str) -> NoReturn:
        self.exit(MISTAKE, f"simkit: error: {message} (see {self.prog} --help)\n")


def _parser() -> _Parser:
    parser = _Parser(
        prog="simkit",
        description="The similarity engine for neural networks.",
        epilog="simkit COMMAND --help shows the options of a command, with examples.",
    )
    parser.add_argument("--version", action="version", version=f"simkit {__version__}")
    parser.add_argument("--debug", action="store_true", help="show where an error was raised")
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    _add_demo(commands)
    _add_compare(commands)
    _add_bench(commands)
    _add_doctor(commands)
    return parser


def _command(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace], int],
    *,
    help: str,
    description: str,
    examples: Sequence[str],
) -> argparse.ArgumentParser:
    """The parser of a command that ``run`` carries out; its help ends with the examples."""
    epilog = "\n  ".join(("examples:", *examples))
    command: argparse.ArgumentParser = commands.add_parser(name, help=help, description=description, epilog=epilog)
    command.set_defaults(run=run)
    return command


def _add_demo(commands: Any) -> None:
    demo = _command(
        commands,
        "demo",
        _demo,
        help="train, compare, prune and fine-tune small networks, and show what came out",
        description="Train small CNNs on scikit-learn's digits from several seeds, compare the layers of two, prune "
        "half of the\nchannels by CKA damage, L1 norm and at random, fine-tune, and report with confidence intervals.\n"
        "Takes about a minute.",
        examples=("simkit demo", "simkit demo --seeds 5 --out five-seeds"),
    )
    demo.add_argument(
        "--out",
        default="simkit-demo",
        metavar="DIR",
        help="new or empty folder, or that of an earlier demo, which is replaced (default: %(default)s)",
    )
    demo.add_argument("--seeds", type=int, default=3, metavar="N", help="networks, at least 2 (default: %(default)s)")
    demo.add_argument("--quick", action="store_true", help="a few epochs only: a test of the installation")
    demo.add_argument(
        "--threads",
        type=int,
        default=1,
        metavar="N",
        help="torch's threads; more do not help networks this small (default: %(default)s)",
    )


def _demo(arguments: argparse.Namespace) -> int:
    _need("demo", torch="torch", matplotlib="matplotlib", sklearn="scikit-learn")
    from .experiments.demo import demo
    from .experiments.demo_report import summary
    from .experiments.demo_runs import DemoOptions

    options = DemoOptions(arguments.out, arguments.seeds, arguments.quick, arguments.threads)
    print(summary(demo(options)))
    return 0


def _need(command: str, **modules: str) -> None:
    """ImportError with the remedy when a command lacks a module; its name where it is installed from is the value."""
    missing = [name for module, name in modules.items() if find_spec(module) is None]
    if missing:
        raise ImportError(
            f"simkit {command} needs {', '.join(missing)}: pip install 'simkit[{EXTRAS.get(command, command)}]'"
        )


def _add_compare(commands: Any) -> None:
    compare = _command(
        commands,
        "compare",
        _compare,
        help="the similarity of all pairs of representations in files",
        description="Compare representations [n, p] of the same n samples, kept in files of named arrays: safetensors, "
        "npz, or npy.\nOne file: its arrays with one another. Two: those of the first (rows) with those of the second "
        "(columns). More: all\narrays of all files with one another.",
        examples=(
            "simkit compare model-a.safetensors",
            "simkit compare model-a.safetensors model-b.safetensors --out heatmap.png --out scores.csv",
            "simkit compare a.npy b.npy --kernel rbf:0.5 --estimator biased",
            'simkit compare a.safetensors b.safetensors --measure nbs --memory "2 GB" --explain',
        ),
    )
    compare.add_argument("files", nargs="+", metavar="FILE", help=".safetensors, .npz or .npy")
    compare.add_argument("--measure", choices=MEASURES, default="cka", help="default: %(default)s")
    compare.add_argument("--estimator", choices=("debiased", "biased"), help="of CKA (default: debiased)")
    compare.add_argument(
        "--kernel",
        metavar="KERNEL",
        help="of CKA: linear (default), cosine, rbf[:BANDWIDTH], laplacian[:BANDWIDTH] or polynomial[:DEGREE]; "
        "a bandwidth is a fraction of the median distance (default: 0.5)",
    )
    compare.add_argument("--memory", metavar="SIZE", help='workspace beyond the features, such as "64 MB"')
    compare.add_argument(
        "--out",
        action="append",
        default=[],
        metavar="FILE",
        help="also write .png, .pdf, .svg (heatmap), .csv, .json or .safetensors; may be repeated",
    )
    compare.add_argument("--explain", action="store_true", help="say what ran, and why")


def _compare(arguments: argparse.Namespace) -> int:
    from .experiments.features import compare_files
    from .experiments.outputs import check_output, write_matrix
    from .experiments.terminal import say

    measure = _measure(arguments.measure, arguments.estimator, arguments.kernel)
    for path in arguments.out:
        check_output(path, inputs=arguments.files)
    matrix = compare_files(arguments.files, measure=measure, memory=arguments.memory)
    say(_described(matrix, arguments.files))
    if arguments.explain:
        say(f"\n{matrix.plan.explain()}")
    for path in arguments.out:
        write_matrix(matrix, path)
    return 0


def _described(matrix: SimilarityMatrix, files: Sequence[str]) -> str:
    from .experiments.table import matrix_table
    from .experiments.terminal import printable

    title = f"{matrix.measure}, n = {matrix.samples}"
    sides = len(files) == 2
    if sides:
        title += f"; rows: {printable(files[0])}, columns: {printable(files[1])}"
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    reasons = [
        printable(f"{side} {name}: {why}" if sides else f"{name}: {why}")
        for (side, name), why in matrix.degenerate.items()
    ]
    return "\n".join([title, "", matrix_table(matrix, width=width), *dict.fromkeys(reasons)])


def _measure(name: str, estimator: str | None, kernel: str | None) -> Measure:
    """The measure object that the options name."""
    from .metrics.cca import R2CCA, MeanCCA
    from .metrics.cka import CKA
    from .metrics.linear_regression import LinearRegression
    from .metrics.nbs import NBS
    from .metrics.procrustes import Procrustes
    from .metrics.pwcca import PWCCA
    from .metrics.svcca import SVCCA

    if name == "cka":
        return CKA(_kernel("linear" if kernel is None else kernel), "biased" if estimator == "biased" else "debiased")
    for option, value in (("--estimator", estimator), ("--kernel", kernel)):
        if value is not None:
            raise ValueError(f"{option} {value} belongs to --measure cka, not to {name}")
    others: dict[str, Measure] = {
        "nbs": NBS(),
        "procrustes": Procrustes(),
        "cca": MeanCCA(),
        "r2-cca": R2CCA(),
        "svcca": SVCCA(),
        "pwcca": PWCCA(),
        "linear-regression": LinearRegression(),
    }
    return others[name]


def _kernel(text: str) -> Kernel:
    """A kernel from its name, with its one parameter after a colon."""
    from .kernels import RBF, Cosine, Laplacian, Linear, Polynomial

    name, colon, parameter = text.partition(":")
    plain: dict[str, type[Linear | Cosine]] = {"linear": Linear, "cosine": Cosine}
    scaled: dict[str, type[RBF | Laplacian]] = {"rbf": RBF, "laplacian": Laplacian}
    try:
        if name in plain and not colon:
            return plain[name]()
        if name in scaled:
            return scaled[name](_number(parameter, float)) if colon else scaled[name]()
        if name == "polynomial":
            return Polynomial(int(_number(parameter, int))) if colon else Polynomial()
    except ValueError as error:
        raise ValueError(f"--kernel {text}: {error}") from None
    raise ValueError(
        f"--kernel {text or repr(text)} is none of linear, cosine, rbf[:BANDWIDTH], laplacian[:BANDWIDTH], "
        "polynomial[:DEGREE]"
    )


def _number(text: str, kind: type[float]) -> float:
    """A number from the command line; ValueError in words that hold it."""
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{text!r} is not {'a whole' if kind is int else 'a'} number") from None


def _add_bench(commands: Any) -> None:
    bench = _command(
        commands,
        "bench",
        _bench,
        help="this machine's benchmark table, with the rivals that are installed",
        description="Run the benchmarks of the source tree: every answer is checked against a float64 reference, then "
        "timed\nbeside the machine's limit and every rival that is installed. Prints the tables as Markdown.",
        examples=("simkit bench", "simkit bench --full --select w1 --out results"),
    )
    bench.add_argument("--benchmarks", default="benchmarks", metavar="DIR", help="their folder (default: %(default)s)")
    bench.add_argument("--full", action="store_true", help="the sizes of the README's tables: minutes, gigabytes")
    bench.add_argument("--select", metavar="WORD", help="only benchmarks with this in their name, such as w2 or routes")
    bench.add_argument("--out", metavar="DIR", help="keep the record (JSON) here")


def _bench(arguments: argparse.Namespace) -> int:
    _need("bench", pytest="pytest", pytest_benchmark="pytest-benchmark")
    from .experiments.bench import bench

    print(bench(arguments.benchmarks, full=arguments.full, select=arguments.select, out=arguments.out))
    return 0


def _add_doctor(commands: Any) -> None:
    doctor = _command(
        commands,
        "doctor",
        _doctor,
        help="what was built, what is seen, and whether it computes the right numbers",
        description="Report the build, devices, libraries, threads and memory, and check known numbers on every "
        "backend.\nExit code 1 when something is broken; a library that is not installed is not.",
        examples=("simkit doctor", "simkit doctor --json"),
    )
    doctor.add_argument("--json", action="store_true", help="the same as JSON")


def _doctor(arguments: argparse.Namespace) -> int:
    from .experiments.doctor import diagnose, report

    diagnosis = diagnose()
    print(json.dumps(diagnosis.to_dict(), indent=1) if arguments.json else report(diagnosis))
    return 1 if diagnosis.problems else 0
