"""What makes up for removed units in the layers that read them: merging by weights, or least squares by data."""

from .least_squares import LeastSquares
from .live_bias import LiveBias
from .merge import Merge
from .protocol import Compensation
from .repair import repair

__all__ = ["Compensation", "LeastSquares", "LiveBias", "Merge", "repair"]
