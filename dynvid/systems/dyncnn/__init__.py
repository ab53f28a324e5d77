"""DynCNN as the paper has it: dynamic convolution by pixels, by cells and by continuous cells."""

from dynvid.systems.dyncnn.groups import Convolution, Group, dyncnn_groups
from dynvid.systems.dyncnn.layers import Position, comparison, position
from dynvid.systems.dyncnn.system import State, dyncnn

__all__ = [
    "Convolution",
    "Group",
    "Position",
    "State",
    "comparison",
    "dyncnn",
    "dyncnn_groups",
    "position",
]
