"""What a network is run for: frames into it, results out of it."""

from dynvid.tasks.action_recognition import ActionRecognition
from dynvid.tasks.classification import Classification
from dynvid.tasks.detection import Detection
from dynvid.tasks.instance_segmentation import InstanceSegmentation
from dynvid.tasks.measuring import Measuring
from dynvid.tasks.segmentation import Segmentation
from dynvid.tasks.task import Task

__all__ = [
    "ActionRecognition",
    "Classification",
    "Detection",
    "InstanceSegmentation",
    "Measuring",
    "Segmentation",
    "Task",
]
