"""Exports what people bring to ONNX files: detectors, segmentation and classification networks.

Needs an environment of its own, which dynvid never imports:

    python -m venv exports && exports/bin/pip install torch torchvision timm ultralytics onnx \
        onnxscript
    exports/bin/python experiments/models/export.py --out runs/exports

Architectures are what counts here, so that all weights are random (seed 0): nothing is downloaded.
Ultralytics is run by its own command, `yolo export`.
"""

import argparse
import pathlib
import shutil
import subprocess
import sys
import tempfile

ULTRALYTICS = (
    "yolov8n", "yolo11n", "yolo26n", "yolov5n", "yolov8n-seg", "yolo11n-seg", "yolo26n-seg",
    "yolov8n-cls", "yolo11n-cls", "yolo26n-cls",
)  # fmt: skip
TORCHVISION = (
    "resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0",
    "convnext_tiny", "swin_t", "regnet_y_400mf", "shufflenet_v2_x1_0", "densenet121",
    "squeezenet1_1", "googlenet", "vgg11",
)  # fmt: skip
SEGMENTATION = (
    "lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large", "deeplabv3_resnet50",
    "fcn_resnet50",
)  # fmt: skip
DETECTION = ("ssdlite320_mobilenet_v3_large",)
TIMM = (
    "convnext_atto", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "mobilevit_xs",
    "efficientvit_b0", "poolformer_s12", "edgenext_xx_small", "coat_tiny",
    "mobilenetv4_conv_small", "ghostnet_100", "repvgg_a0", "fastvit_t8",
)  # fmt: skip
SIDE, CLASSIFIED, LABELLED = 320, 224, 256


def ultralytics(name: str, path: pathlib.Path) -> None:
    """An architecture of Ultralytics from its own description."""
    side = CLASSIFIED if name.endswith("-cls") else SIDE
    command = pathlib.Path(sys.executable).with_name("yolo")
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [command, "export", f"model={name}.yaml", "format=onnx", f"imgsz={side}", "opset=17",
             "simplify=False"],
            cwd=folder, check=True, capture_output=True,
        )  # fmt: skip
        (made,) = pathlib.Path(folder).rglob("*.onnx")
        shutil.move(made, path)


def torch_model(network, path: pathlib.Path, side: int, *, outputs: list[str]) -> None:
    """A module with the exporter that traces."""
    import torch

    torch.onnx.export(
        network.eval(),
        (torch.rand(1, 3, side, side),),
        path,
        dynamo=False,
        opset_version=17,
        input_names=["images"],
        output_names=outputs,
    )


def main() -> None:
    """Makes them all; says which cannot be made."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, help="the folder to write into")
    parser.add_argument("--only", nargs="*", help="names, to make no others")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    import timm
    import torch
    import torchvision

    kinds = {name: "ultralytics" for name in ULTRALYTICS}
    kinds |= {name: "classification" for name in TORCHVISION}
    kinds |= {name: "segmentation" for name in SEGMENTATION}
    kinds |= {name: "detection" for name in DETECTION}
    kinds |= {name: "timm" for name in TIMM}
    for name, kind in kinds.items():
        path = options.out / f"{name}.onnx"
        if path.exists() or (options.only and name not in options.only):
            continue
        torch.manual_seed(0)
        bare = {"weights": None, "weights_backbone": None}
        try:
            if kind == "ultralytics":
                ultralytics(name, path)
            elif kind == "timm":
                torch_model(timm.create_model(name), path, CLASSIFIED, outputs=["logits"])
            elif kind == "classification":
                more = {"init_weights": True} if name == "googlenet" else {}
                network = torchvision.models.get_model(name, weights=None, **more)
                torch_model(network, path, CLASSIFIED, outputs=["logits"])
            elif kind == "segmentation":
                network = torchvision.models.get_model(name, **bare)
                torch_model(network, path, LABELLED, outputs=["out"])
            else:
                network = torchvision.models.get_model(name, **bare)
                torch_model(network, path, SIDE, outputs=["boxes", "scores", "labels"])
        except Exception as error:  # the other packages' own; the rest goes on
            path.unlink(missing_ok=True)
            print(f"{name}: {type(error).__name__}: {error}".splitlines()[0], flush=True)
        else:
            print(f"{name}: {path.stat().st_size / 1e6:.1f} MB", flush=True)


if __name__ == "__main__":
    main()
