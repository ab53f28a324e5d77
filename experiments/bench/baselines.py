"""What `dynvid` is timed against."""

import os

import numpy as np
import onnxruntime


class Onnx:
    """A dense baseline: the same weights in onnxruntime, on all cores.

    Args:
      path: An ONNX file with one input.
    """

    def __init__(self, path: str | os.PathLike[str]):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = os.cpu_count()
        # Its idle threads would spin on the cores that the other contestants need.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
        self.name = self.session.get_inputs()[0].name

    def __call__(self, frames: np.ndarray) -> list[np.ndarray]:
        """The outputs for frames of its own layout, mostly `(streams, C, H, W)`."""
        return self.session.run(None, {self.name: frames})
