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
    from .experiments.runs import Outcome

MISTAKE, INTERRUPTED, BROKEN_PIPE = 2, 130, 141
MEASURES = ("cka", "nbs", "procrustes", "cca", "r2-cca", "svcca", "pwcca", "linear-regression")
EXTRAS = {
    "bench": "test",
    "bench --gpu": "torch",
    "train": "torch",
    "prune": "torch",
    "report": "plot",
}  # where it is not the command's name
# What simkit raises for input it refuses, and the system for files it refuses.
REFUSALS = (ValueError, TypeError, NotImplementedError, OverflowError, ImportError, OSError, MemoryError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (None: the process's) and return its exit code.

    0: done. 1: ``doctor`` found something broken. 2: a mistake, said in one sentence on stderr. 130: Ctrl-C.
    """
    debug = parsed = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", SimkitWarning)
            warnings.showwarning = _show_warning
            parser = _parser()
            arguments = parser.parse_args(argv)
            parsed = True
            debug = arguments.debug
            code = 0
            if arguments.run is None:
                parser.print_help()
            else:
                code = arguments.run(arguments)
            sys.stdout.flush()
            return code
    except SystemExit as stop:
        if not parsed:  # argparse: 0 after --help and --version, 2 after a mistake
            return int(stop.code or 0)
        print(f"simkit: error: code that the command runs has called sys.exit({stop.code!r})", file=sys.stderr)
        return MISTAKE
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
    _add_train(commands)
    _add_prune(commands)
    _add_report(commands)
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
    from .experiments.measures import chosen_measure
    from .experiments.outputs import check_output, write_matrix
    from .experiments.terminal import say

    measure = chosen_measure(arguments.measure, arguments.estimator, arguments.kernel)
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


def _add_train(commands: Any) -> None:
    train = _command(
        commands,
        "train",
        _train,
        help="train the networks of a config, one for each seed",
        description="Train the network that a config file (TOML or JSON) describes, once for each seed. Every run has "
        "a directory\nunder the config's out; runs that are done are found, and one that was killed goes on where it "
        "was.",
        examples=("simkit train digits.toml", "simkit train digits.toml --seeds 0:10 --set train.lr=0.1"),
    )
    _add_config(train)


def _add_prune(commands: Any) -> None:
    prune = _command(
        commands,
        "prune",
        _prune,
        help="prune by every method, amount and seed of a config, with controls",
        description="Prune the networks of a config file by all of its methods, amounts and seeds, in rounds of "
        "pruning and\nretraining. A random choice and the first method's choice with new weights are always among the "
        "runs. Networks that are\nmissing are trained, runs that are done are found, and one that was killed goes on "
        "where it was.",
        examples=("simkit prune digits.toml", "simkit prune digits.toml --seeds 0:5 --set prune.rounds=3"),
    )
    _add_config(prune)


def _add_config(command: argparse.ArgumentParser) -> None:
    command.add_argument("config", metavar="CONFIG", help=".toml or .json")
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.NAME=VALUE",
        help="an option in the place of the file's; may be repeated",
    )
    command.add_argument("--seeds", metavar="SEEDS", help="such as 0:10 (0 to 9) or 0,3,7, in the place of the file's")
    command.add_argument("--out", metavar="DIR", help="where the runs go, in the place of the file's")


def _train(arguments: argparse.Namespace) -> int:
    _need("train", torch="torch")
    from .experiments.config_file import read_config
    from .experiments.runs import train_runs

    config = read_config(arguments.config, overrides=arguments.set, seeds=arguments.seeds, out=arguments.out)
    print(_done(train_runs(config), config.run.out))
    return 0


def _prune(arguments: argparse.Namespace) -> int:
    _need("prune", torch="torch")
    from .experiments.config_file import read_config
    from .experiments.runs import prune_runs

    config = read_config(arguments.config, overrides=arguments.set, seeds=arguments.seeds, out=arguments.out)
    print(f"{_done(prune_runs(config), config.run.out)}; simkit report {config.run.out} compares them")
    return 0


def _add_report(commands: Any) -> None:
    command = _command(
        commands,
        "report",
        _report,
        help="tables and pictures of the runs in a folder, with confidence intervals",
        description="Put the runs of simkit train and simkit prune together: means with 95% confidence intervals over "
        "seeds, differences\npaired by seed, and pictures. Leaves report.json, report.csv, similarity.csv and PNG "
        "files in the folder.",
        examples=("simkit report runs",),
    )
    command.add_argument("folder", metavar="DIR", help="the out folder of the runs")


def _report(arguments: argparse.Namespace) -> int:
    _need("report", torch="torch", matplotlib="matplotlib")
    from .experiments.report import report
    from .experiments.terminal import say

    say(report(arguments.folder))
    return 0


def _done(outcome: Outcome, out: str) -> str:
    earlier = f", {outcome.found} of them earlier" if outcome.found else ""
    return f"{len(outcome.results)} run{'s' * (len(outcome.results) != 1)} done{earlier}, in {out}"


def _add_bench(commands: Any) -> None:
    bench = _command(
        commands,
        "bench",
        _bench,
        help="this machine's benchmark table, with the rivals that are installed",
        description="Run the benchmarks of a clone of the source (the wheel has none): every answer is checked against "
        "a\nfloat64 reference, then timed beside the machine's limit and every rival that is installed. Prints tables "
        "as Markdown.",
        examples=("simkit bench", "simkit bench --full --select w1 --out results", "simkit bench --gpu --full"),
    )
    bench.add_argument("--benchmarks", default="benchmarks", metavar="DIR", help="their folder (default: %(default)s)")
    bench.add_argument("--full", action="store_true", help="the sizes of the README's tables: minutes, gigabytes")
    bench.add_argument("--select", metavar="WORD", help="only benchmarks with this in their name, such as w2 or routes")
    bench.add_argument("--out", metavar="DIR", help="keep the record (JSON) here")
    bench.add_argument("--gpu", action="store_true", help="those of the CUDA device instead of the processor's")


def _bench(arguments: argparse.Namespace) -> int:
    _need("bench", pytest="pytest", pytest_benchmark="pytest-benchmark")
    if arguments.gpu:
        _need("bench --gpu", torch="torch")
    from .experiments.bench import bench

    chosen = {"full": arguments.full, "select": arguments.select, "out": arguments.out, "gpu": arguments.gpu}
    print(bench(arguments.benchmarks, **chosen))
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
