"""Warnings that simkit raises; errors are ``ValueError``, ``TypeError``, ``NotImplementedError`` or kinds of them."""


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class SimkitWarning(UserWarning):
    """The category of every warning simkit emits."""


class SlowBackendWarning(SimkitWarning):
    """The NumPy reference computes what the compiled module would, many times slower, because that is not there."""


class DegenerateWarning(SimkitWarning):
    """A representation carries no information for the measure asked for."""


class OverfitWarning(SimkitWarning):
    """A fit has few rows for each of its unknowns: its error on these rows says little of other data."""


class TooLittleMemory(ValueError):
    """``memory=`` leaves less than a piece of work needs at least.

    Attributes:
        memory: what was allowed, in words.
        work: what was to be done, in words.
        needed: bytes.
    """

    def __init__(self, memory: str, work: str, needed: int) -> None:
        super().__init__(memory, work, needed)
        self.memory = memory
        self.work = work
        self.needed = needed

    def __str__(self) -> str:
        return f"memory={self.memory} is too little: {self.work} needs {self.needed}"


class LayerCollapseWarning(SimkitWarning):
    """A mask leaves a layer without any weight, so that nothing passes through it."""


class InvariantError(ValueError):
    """What a sparse network promises does not hold; each promise has a class of its own."""


class RevivedWeights(InvariantError):
    """A masked weight is not exactly 0."""


class MaskGrowth(InvariantError):
    """A mask keeps a weight that the mask before it had removed."""


class InexactSparsity(InvariantError):
    """A mask does not keep exactly as many weights as were asked for."""


class InexactRewind(InvariantError):
    """A rewound weight is not the one that was stored, bit for bit."""


class StaleOptimizer(InvariantError):
    """An optimiser brings the state of earlier training into a round."""


class NothingPruned(InvariantError):
    """A request to prune would remove nothing."""


class ControlEqualsCriterion(InvariantError):
    """The random control has the very mask of the criterion that it is to control."""
