"""Which channels of a model belong together: the channel graph that pruning decides and cuts on."""

from .channels import (
    ChannelGraph,
    Extent,
    Group,
    Index,
    SizeAttribute,
    Slot,
    Step,
    Total,
    Transfer,
    View,
    Work,
    weakest,
)
from .preserve import preserved_rng, quiet_copy
from .trace import trace

__all__ = [
    "ChannelGraph",
    "Extent",
    "Group",
    "Index",
    "SizeAttribute",
    "Slot",
    "Step",
    "Total",
    "Transfer",
    "View",
    "Work",
    "preserved_rng",
    "quiet_copy",
    "trace",
    "weakest",
]
