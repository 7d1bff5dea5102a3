"""Which channels of a model belong together: the channel graph that pruning decides and cuts on."""

from .channels import ChannelGraph, Group, Slot, Step, Transfer, View, weakest
from .preserve import preserved_rng, quiet_copy
from .trace import trace

__all__ = [
    "ChannelGraph",
    "Group",
    "Slot",
    "Step",
    "Transfer",
    "View",
    "preserved_rng",
    "quiet_copy",
    "trace",
    "weakest",
]
