"""Warnings that simkit raises; errors are ``ValueError``, ``TypeError``, ``NotImplementedError`` or kinds of them."""


class SimkitWarning(UserWarning):
    """The category of every warning simkit emits."""


class EstimateWarning(SimkitWarning):
    """A number is an estimate although an exact one was conceivable."""


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
