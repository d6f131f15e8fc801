# SPDX-License-Identifier: Apache-2.0
"""Run a deployed network on images. Needs what requirements.txt beside it lists, and nothing else.

The folder of this file holds the graph, and deploy.json, which says what the graph takes and gives.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

import cv2
import numpy as np

FOLDER = Path(__file__).resolve().parent
SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
READ_FLAGS = {
    "color": cv2.IMREAD_COLOR,
    "color_ignore_orientation": cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION,
    "grayscale": cv2.IMREAD_GRAYSCALE,
}
CV2_INTERPOLATION = {
    "nearest": cv2.INTER_NEAREST,
    "bilinear": cv2.INTER_LINEAR,
    "bicubic": cv2.INTER_CUBIC,
    "area": cv2.INTER_AREA,
    "lanczos": cv2.INTER_LANCZOS4,
}
COLORS = np.random.RandomState(42).randint(0, 256, (256, 3))  # of classes that have none


class OpenVinoGraph:
    """A graph in OpenVINO."""

    def __init__(self, path, settings, threads):
        import openvino

        # What is not int8 in the graph is computed in float32; left to itself, OpenVINO would take bfloat16.
        options = {"INFERENCE_PRECISION_HINT": "bf16" if settings["precision"] == "bfloat16" else "f32"}
        options |= {"INFERENCE_NUM_THREADS": threads} if threads else {}
        core = openvino.Core()
        self.compiled = core.compile_model(str(path), "CPU", options)
        needed = {"bfloat16": "BF16", "int8": "INT8"}.get(settings["precision"])
        if needed and needed not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            print(f"this processor has no instructions for {settings['precision']}: it works, but is not faster")

    def __call__(self, images):
        outputs = self.compiled([images])
        return [outputs[output] for output in self.compiled.outputs]


class OnnxRuntimeGraph:
    """A graph in ONNX Runtime."""

    def __init__(self, path, settings, threads):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.name = self.session.get_inputs()[0].name

    def __call__(self, images):
        return self.session.run(None, {self.name: images})


GRAPHS = {"openvino": OpenVinoGraph, "onnxruntime": OnnxRuntimeGraph}


class Network:
    """The deployed network of a folder, from images as OpenCV reads them to predictions.

    Args:
        folder: The folder. Default: that of this file.
        threads: Number of threads. Default: 0, the runtime's choice.
    """

    def __init__(self, folder=FOLDER, threads=0):
        self.settings = json.loads((Path(folder) / "deploy.json").read_text())
        self.input, self.steps = self.settings["input"], self.settings["preprocessing"]
        graph = Path(folder) / self.settings["graph"]
        self.graph = GRAPHS[self.settings["runtime"]](graph, self.settings, threads)

    def read(self, path):
        """Read an image as the network's dataset is read: (H, W, C), uint8, the channels in OpenCV's order."""
        data = np.frombuffer(Path(path).read_bytes(), np.uint8)
        image = cv2.imdecode(data, READ_FLAGS[self.input["color_type"]]) if data.size else None
        if image is None:
            raise ValueError("cannot be decoded as an image")
        return image if image.ndim == 3 else image[..., None]

    def preprocess(self, image):
        """Resize, crop and pad an image as in the network's test; what the colors need is in the graph."""
        for step in self.steps:
            image = STEPS.get(step["type"], unknown_step)(image, step)
            image = image if image.ndim == 3 else image[..., None]
        return image

    def predict(self, image):
        """The outputs of the graph for one image."""
        image = self.preprocess(image)
        for axis, name in enumerate(("height", "width")):
            if self.input[name] not in (None, image.shape[axis]):
                raise ValueError(
                    f"is {image.shape[1]}x{image.shape[0]} after preprocessing, and the graph takes "
                    f"{self.input['width']}x{self.input['height']}; deploy with --dynamic height width"
                )
        batch = np.repeat(image[None], self.input["batch"] or 1, 0)
        return [output[0] for output in self.graph(np.ascontiguousarray(batch))]

    def name_of(self, label):
        """Name of a class; its number where there is no name."""
        classes = self.settings["classes"] or ()
        return str(classes[label]) if label < len(classes) else str(label)

    def color_of(self, label):
        """Color of a class, BGR."""
        palette = self.settings["palette"] or ()
        return np.array(palette[label] if label < len(palette) else COLORS[label % 256])[::-1]


def unknown_step(image, step):
    raise ValueError(f"needs the step {step['type']} of the test pipeline, which this script does not know")


def resize(image, step):
    """To a size, or as large as fits into it."""
    (height, width), (to_width, to_height) = image.shape[:2], step["scale"]
    if step["keep_ratio"]:
        long, short = max(to_width, to_height), min(to_width, to_height)
        factor = min(long / max(height, width), short / min(height, width))
        to_width, to_height = int(width * factor + 0.5), int(height * factor + 0.5)
    return interpolate(image, to_width, to_height, step)


def resize_edge(image, step):
    """To a length of one side."""
    (height, width), scale = image.shape[:2], step["scale"]
    by_width = dict(short=width < height, long=width > height, width=True, height=False)[step["edge"]]
    size = (scale, int(scale * height / width)) if by_width else (int(scale * width / height), scale)
    return interpolate(image, *size, step)


def center_crop(image, step):
    """The middle, where the image is larger than the crop."""
    (height, width), (crop_width, crop_height) = image.shape[:2], step["crop_size"]
    top, left = max(0, round((height - crop_height) / 2)), max(0, round((width - crop_width) / 2))
    return image[top : top + crop_height, left : left + crop_width]


def pad(image, step):
    """Below and to the right."""
    height, width = image.shape[:2]
    if step["pad_to_square"]:
        height = width = max(height, width)
    if step["size"]:
        width, height = step["size"]
    if step["size_divisor"]:
        height, width = (-(-side // step["size_divisor"]) * step["size_divisor"] for side in (height, width))
    sides = ((0, max(0, height - image.shape[0])), (0, max(0, width - image.shape[1])), (0, 0))
    return np.pad(image, sides, constant_values=step["value"])


STEPS = {"Resize": resize, "ResizeEdge": resize_edge, "CenterCrop": center_crop, "Pad": pad}


def interpolate(image, width, height, step):
    """Resize as OpenCV or as Pillow does, whose filters average over what a pixel covers."""
    if step["backend"] == "cv2":
        return cv2.resize(image, (width, height), interpolation=CV2_INTERPOLATION[step["interpolation"]])
    from PIL import Image

    picture = Image.fromarray(image if image.shape[2] > 1 else image[..., 0])
    return np.array(picture.resize((width, height), Image.Resampling[step["interpolation"].upper()]))


def describe(network, outputs):
    """A prediction as plain data, and as a line of text."""
    if network.settings["output"]["name"] == "scores":
        best = np.argsort(-outputs[0])[:5].tolist()
        ranked = [(network.name_of(label), float(outputs[0][label])) for label in best]
        result = dict(pred_label=best[0], pred_class=ranked[0][0], pred_scores=outputs[0].tolist())
        return result, "  ".join(
            f"{name} {score:.1%}" for name, score in ranked if score >= 0.01 or name == ranked[0][0]
        )
    if network.settings["task"] == "segmentation":
        labels, counts = np.unique(classes_of(network, outputs), return_counts=True)
        shares = {
            network.name_of(label): count / counts.sum() for label, count in zip(labels.tolist(), counts.tolist())
        }
        return dict(classes=shares), "  ".join(f"{name} {share:.1%}" for name, share in shares.items())
    shapes = [list(output.shape) for output in outputs]
    return dict(shapes=shapes), "feature maps " + ", ".join("x".join(map(str, shape)) for shape in shapes)


def classes_of(network, outputs):
    """The class of each pixel."""
    if network.settings["output"]["name"] == "classes":
        return outputs[0].astype(np.int64)
    if len(outputs[0]) == 1:
        return (1 / (1 + np.exp(-outputs[0][0])) > network.settings["output"]["threshold"]).astype(np.int64)
    return outputs[0].argmax(0)


def draw(network, image, outputs, text):
    """A picture of a prediction: the image with classes in color or with the scores written below it."""
    image = image if image.shape[2] == 3 else np.repeat(image, 3, 2)
    if network.settings["task"] == "segmentation":
        labels = classes_of(network, outputs).astype(np.float32)
        labels = cv2.resize(labels, image.shape[1::-1], interpolation=cv2.INTER_NEAREST).astype(np.int64)
        colors = np.array([network.color_of(label) for label in range(labels.max() + 1)])
        image = (0.5 * image + 0.5 * colors[labels]).astype(np.uint8)
    factor = max(1, round(304 / image.shape[1]))
    image = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST)
    parts = text.split("  ")
    strip = np.full((18 * len(parts) + 6, image.shape[1], 3), 255, np.uint8)
    for i, part in enumerate(parts):
        cv2.putText(strip, part, (4, 16 + 18 * i), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([image, strip])


def write(network, out, name, image, outputs, text):
    """Write the picture of a prediction and, of a segmentor, its classes; of a part of a model, its feature maps."""
    out.mkdir(parents=True, exist_ok=True)
    stem = name.replace(os.sep, "_").removesuffix(".png")
    if network.settings["task"] == "features":
        np.savez(out / f"{stem}.npz", *outputs)
        return
    cv2.imencode(".png", draw(network, image, outputs, text))[1].tofile(out / f"{stem}.png")
    if network.settings["task"] == "segmentation":
        labels = classes_of(network, outputs)
        labels = labels.astype(np.uint8 if labels.max() < 2**8 else np.uint16)
        cv2.imencode(".png", labels)[1].tofile(out / f"{stem}_classes.png")


def predict_all(network, source, out):
    """Predict an image or all images of a folder; what cannot be read is reported and skipped."""
    paths = [source] if source.is_file() else sorted(p for p in source.rglob("*") if p.suffix.lower() in SUFFIXES)
    results, skipped = {}, {}
    for path in paths:
        name = str(path.relative_to(source)) if source.is_dir() else path.name
        try:
            image = network.read(path)
            outputs = network.predict(image)
        except (ValueError, cv2.error) as error:
            skipped[name] = str(error)
            print(f"{name}: skipped, {error}", file=sys.stderr)
            continue
        results[name], text = describe(network, outputs)
        print(f"{name}: {text}")
        if out:
            write(network, out, name, image, outputs, text)
    if out and results:
        (out / "predictions.json").write_text(json.dumps(dict(predictions=results, skipped=skipped), indent=1))
    if not results:
        sys.exit("error: none of the images could be predicted" if paths else f"error: there is no image in {source}")


def benchmark(network, calls=50):
    """Print the median time of a call with one image, or as many as the graph takes."""
    batch, height, width = (
        network.input[name] or default for name, default in zip(("batch", "height", "width"), (1, 224, 224))
    )
    images = np.random.RandomState(0).randint(0, 256, (batch, height, width, network.input["channels"]), np.uint8)
    seconds = []
    for _ in range(calls + 5):
        start = time.perf_counter()
        network.graph(images)
        seconds.append(time.perf_counter() - start)
    milliseconds = 1e3 * statistics.median(seconds[5:])
    what = f"{network.settings['runtime']} {network.settings['precision']}, {batch}x{height}x{width}"
    print(f"{what}: {milliseconds:.2f} ms, {1e3 * batch / milliseconds:.1f} images/s, median of {calls} calls")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", type=Path, help="image, or folder with images")
    parser.add_argument("--out", type=Path, help="folder for pictures of the predictions and predictions.json")
    parser.add_argument("--benchmark", action="store_true", help="measure the time of a call")
    parser.add_argument("--threads", type=int, default=0, help="number of threads (default: the runtime's choice)")
    arguments = parser.parse_args()
    if arguments.source is None and not arguments.benchmark:
        parser.error("name an image or a folder, or pass --benchmark")
    if arguments.source and not arguments.source.exists():
        sys.exit(f"error: {arguments.source} does not exist")
    network = Network(threads=arguments.threads)
    if arguments.source:
        predict_all(network, arguments.source, arguments.out)
    if arguments.benchmark:
        benchmark(network)


if __name__ == "__main__":
    main()
