"""Warnings that simkit raises; errors are the built-in ``ValueError``, ``TypeError`` and ``NotImplementedError``."""


class SimkitWarning(UserWarning):
    """The category of every warning simkit emits."""


class EstimateWarning(SimkitWarning):
    """A number is an estimate although an exact one was conceivable."""


class DegenerateWarning(SimkitWarning):
    """A representation carries no information for the measure asked for."""
