"""What `dynvid` is timed against."""

import os

import onnxruntime


class Onnx:
    """A dense baseline: the same weights in onnxruntime."""

    def __init__(self, path):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = os.cpu_count()
        # Its idle threads would spin on the cores that the other contestants need.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
        self.name = self.session.get_inputs()[0].name

    def __call__(self, frames):
        return self.session.run(None, {self.name: frames})
