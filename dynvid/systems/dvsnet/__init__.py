"""DVSNet: dynamic video segmentation network (Xu et al., CVPR 2018)."""

from dynvid.systems.dvsnet.state import DVSNetParams, DVSNetState
from dynvid.systems.dvsnet.system import THRESHOLDS, dvsnet

__all__ = ["THRESHOLDS", "DVSNetParams", "DVSNetState", "dvsnet"]
