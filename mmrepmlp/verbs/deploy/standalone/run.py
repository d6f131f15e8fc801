# SPDX-License-Identifier: Apache-2.0
"""Run a deployed network on images. Needs only the packages in requirements.txt beside it.

The folder of this file holds the graph, and deploy.json, which describes its inputs and outputs.
"""

import argparse
import itertools
import json
import queue
import statistics
import sys
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

STARTED = time.perf_counter()
FOLDER = Path(__file__).resolve().parent
READERS = 4  # threads that read and preprocess images
SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
READ_FLAGS = {
    "color": cv2.IMREAD_COLOR,
    "color_ignore_orientation": cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION,
    "grayscale": cv2.IMREAD_GRAYSCALE,
    "grayscale_ignore_orientation": cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION,
    "unchanged": cv2.IMREAD_UNCHANGED,
}
CV2_INTERPOLATION = {
    "nearest": cv2.INTER_NEAREST,
    "bilinear": cv2.INTER_LINEAR,
    "bicubic": cv2.INTER_CUBIC,
    "area": cv2.INTER_AREA,
    "lanczos": cv2.INTER_LANCZOS4,
}
FOLDERS = dict(visualization="visualizations", sem_seg="maps", features="features")
COLORS = np.random.RandomState(42).randint(0, 256, (256, 3))  # for classes without a color


class OpenVinoGraph:
    """Run a graph in OpenVINO.

    For many images, several calls at a time share the processor, which takes less time in all, and more for each.
    """

    group = 1  # images of a batch where the graph takes any number

    def __init__(self, path, settings, threads, many=False):
        import openvino

        core, precision = openvino.Core(), settings["precision"]
        needed = {"bfloat16": "BF16", "int8": "INT8"}.get(precision)
        if needed and needed not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            effect = "runs in float32" if precision == "bfloat16" else "works, but is not faster"
            print(f"this processor has no instructions for {precision}: {effect}")
            precision = "float32"  # bfloat16 would be emulated, ten times slower
        # Layers that are not int8 run in float32; by default, OpenVINO would use bfloat16.
        options = {"INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32"}
        options |= {"INFERENCE_NUM_THREADS": threads} if threads else {}
        if None in (settings["input"]["height"], settings["input"]["width"]):
            options["CPU_RUNTIME_CACHE_CAPACITY"] = "0"  # otherwise it keeps buffers for each size
        options["PERFORMANCE_HINT"] = "THROUGHPUT" if many else "LATENCY"
        self.compiled = core.compile_model(str(path), "CPU", options)
        self.calls = self.compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")  # at a time
        self.idle = queue.SimpleQueue()
        for _ in range(self.calls):
            self.idle.put(self.compiled.create_infer_request())

    def __call__(self, images):
        request = self.idle.get()
        try:
            outputs = request.infer([images])
            return [outputs[output] for output in self.compiled.outputs]
        finally:
            self.idle.put(request)


class OnnxRuntimeGraph:
    """Run a graph in ONNX Runtime."""

    group, calls = 8, 1

    def __init__(self, path, settings, threads, many=False):
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
    """Deployed network, from images as OpenCV reads them to predictions.

    Args:
        folder: The deployed folder. Default: the folder of this file.
        threads: Number of threads. Default: 0, the runtime's choice.
        many: Whether to optimize for many images (:meth:`stream`) instead of one at a time. Default: False.
    """

    def __init__(self, folder=FOLDER, threads=0, many=False):
        self.settings = json.loads((Path(folder) / "deploy.json").read_text(encoding="utf-8"))
        self.input, self.steps = self.settings["input"], self.settings["preprocessing"]
        graph = Path(folder) / self.settings["graph"]
        self.graph = GRAPHS[self.settings["runtime"]](graph, self.settings, threads, many)
        self.group = self.input["batch"] or self.graph.group

    def read(self, path):
        """Read an image (H, W, C) as in the network's dataset, with channels in OpenCV's order."""
        data = np.frombuffer(Path(path).read_bytes(), np.uint8)
        image = cv2.imdecode(data, READ_FLAGS[self.input["color_type"]]) if data.size else None
        if image is None:
            raise ValueError("cannot be decoded as an image")
        return image if image.ndim == 3 else image[..., None]

    def preprocess(self, image):
        """Resize, crop and pad an image as in the test pipeline; normalization is part of the graph."""
        return self.transform(image)[0]

    def transform(self, image):
        """Preprocess an image, and track its position along height and width.

        Returns:
            The preprocessed image; and in pixels of the original image, the side of its pixels, its start and its stop,
            without padding.
        """
        side, start, stop = np.ones(2), np.zeros(2), np.array(image.shape[:2])
        for step in self.steps:
            before = np.array(image.shape[:2])
            if step["type"] not in STEPS:
                raise ValueError(
                    f"needs the step {step['type']} of the test pipeline, which this script does not support"
                )
            image = STEPS[step["type"]](image, step)
            image = image if image.ndim == 3 else image[..., None]
            if step["type"] == "CenterCrop":
                start += side * ((before - image.shape[:2]) / 2).round()
                stop = np.minimum(stop, start + side * image.shape[:2])
            elif step["type"] != "Pad":
                side *= before / image.shape[:2]
        return image, side, start, stop

    def prepare(self, image):
        """Preprocess an image, and check that the graph takes it."""
        image = self.preprocess(image)
        for axis, name in enumerate(("height", "width")):
            if self.input[name] not in (None, image.shape[axis]):
                raise ValueError(
                    f"is {image.shape[1]}x{image.shape[0]} after preprocessing, but the graph takes "
                    f"{self.input['width']}x{self.input['height']}; deploy with --dynamic height width"
                )
        kind, channels = self.input["type"], self.input["channels"]
        if image.shape[2] != channels or not np.can_cast(image.dtype, kind):
            raise ValueError(
                f"is {image.dtype} with {image.shape[2]} channels, but the graph takes {kind} with {channels}"
            )
        return image.astype(kind, copy=False)

    def predict(self, image):
        """Return the outputs of the graph for one image."""
        return self.predict_batch([self.prepare(image)])[0]

    def predict_batch(self, images):
        """Return the outputs for each of some prepared images of one size, at most as many as the graph takes."""
        missing = max(0, (self.input["batch"] or 0) - len(images))
        outputs = self.graph(np.stack([*images, *images[-1:] * missing]))
        return [[output[i] for output in outputs] for i in range(len(images))]

    def stream(self, paths):
        """Predict images, and meanwhile read the next ones and let the caller use the last ones.

        Holds only a few images at a time.

        Yields:
            In the order of the paths, the image and the outputs; or None and the error of an image that is not read.
        """

        def read(path):
            try:
                image = self.read(path)
                return image, self.prepare(image), None
            except (ValueError, OSError, cv2.error) as error:
                return None, None, error

        def predict(group):
            if group[0][1] is None:
                return [error for _, _, error in group]
            return self.predict_batch([prepared for _, prepared, _ in group])

        calls = self.graph.calls
        with ThreadPoolExecutor(READERS) as readers, ThreadPoolExecutor(calls) as callers:
            images = (image for _, image in look_ahead(readers, read, paths, 2 * READERS))
            groups = group_by_shape(images, self.group)
            for group, outputs in look_ahead(callers, predict, groups, calls):
                yield from zip((image for image, _, _ in group), outputs)

    def classes(self, image, outputs):
        """Return the class of each pixel of an image, for a segmentor; -1 outside the crop of the preprocessing."""
        _, side, start, stop = self.transform(image)
        rows, columns = ((stop - start) / side).round().astype(int)
        (top, left), (bottom, right) = start.round().astype(int), stop.round().astype(int)
        output, kind = outputs[0], self.settings["output"]
        if kind["name"] == "classes":
            planes = ((label, output == label) for label in np.unique(output).tolist())
        elif len(output) == 1:
            threshold = kind["threshold"]
            planes = enumerate((np.full_like(output[0], np.log(threshold / (1 - threshold))), output[0]))
        else:
            planes = enumerate(output)
        best, found = -np.inf, np.zeros((bottom - top, right - left), np.int64)
        for label, plane in planes:
            plane = cv2.resize(plane[:rows, :columns].astype(np.float32), (right - left, bottom - top))
            found[plane > best] = label
            best = np.maximum(best, plane)
        labels = np.full(image.shape[:2], -1)
        labels[top:bottom, left:right] = found
        return labels

    def name_of(self, label, to_draw=False):
        """Return the name of a class, or its number if it has no name, or if OpenCV cannot draw it."""
        classes = self.settings["classes"] or ()
        name = str(classes[label]) if label < len(classes) else str(label)
        return name if name.isascii() or not to_draw else str(label)

    def color_of(self, label):
        """Return the color of a class, BGR."""
        palette = self.settings["palette"] or ()
        return np.array(palette[label] if label < len(palette) else COLORS[label % 256])[::-1]


def look_ahead(pool, function, items, number):
    """Call a function in threads for some items ahead; yields items and results in their order."""
    pending = deque()
    for item in items:
        pending.append((item, pool.submit(function, item)))
        if len(pending) > number:
            item, future = pending.popleft()
            yield item, future.result()
    for item, future in pending:
        yield item, future.result()


def group_by_shape(images, number):
    """Group images that follow each other and have one shape after preprocessing, at most some number."""
    for _, same in itertools.groupby(images, key=lambda image: getattr(image[1], "shape", None)):
        while group := list(itertools.islice(same, number)):
            yield group


def resize(image, step):
    """Resize to a size, or to the largest that fits into it."""
    (height, width), (to_width, to_height) = image.shape[:2], step["scale"]
    if step["keep_ratio"]:
        long, short = max(to_width, to_height), min(to_width, to_height)
        factor = min(long / max(height, width), short / min(height, width))
        to_width, to_height = int(width * factor + 0.5), int(height * factor + 0.5)
    return interpolate(image, to_width, to_height, step)


def resize_edge(image, step):
    """Resize one side to a length."""
    (height, width), scale = image.shape[:2], step["scale"]
    by_width = dict(short=width < height, long=width > height, width=True, height=False)[step["edge"]]
    size = (scale, int(scale * height / width)) if by_width else (int(scale * width / height), scale)
    return interpolate(image, *size, step)


def center_crop(image, step):
    """Crop the center, if the image is larger than the crop."""
    (height, width), (crop_width, crop_height) = image.shape[:2], step["crop_size"]
    top, left = max(0, round((height - crop_height) / 2)), max(0, round((width - crop_width) / 2))
    return image[top : top + crop_height, left : left + crop_width]


def pad(image, step):
    """Pad the bottom and the right."""
    height, width = image.shape[:2]
    if step["pad_to_square"]:
        height = width = max(height, width)
    if step["size"]:
        width, height = step["size"]
    if step["size_divisor"]:
        height, width = (-(-side // step["size_divisor"]) * step["size_divisor"] for side in (height, width))
    height, width = max(height, image.shape[0]), max(width, image.shape[1])
    padded = np.full((height, width, image.shape[2]), step["value"], image.dtype)
    padded[: image.shape[0], : image.shape[1]] = image
    return padded


STEPS = {"Resize": resize, "ResizeEdge": resize_edge, "CenterCrop": center_crop, "Pad": pad}


def interpolate(image, width, height, step):
    """Resize with OpenCV or with Pillow, whose filters average over the area of a pixel."""
    if step["backend"] == "cv2":
        return cv2.resize(image, (width, height), interpolation=CV2_INTERPOLATION[step["interpolation"]])
    from PIL import Image

    image = Image.fromarray(image if image.shape[2] > 1 else image[..., 0])
    return np.array(image.resize((width, height), Image.Resampling[step["interpolation"].upper()]))


def describe(network, outputs, labels):
    """Convert a prediction to plain data; return it with its classes and their shares."""
    if network.settings["output"]["name"] == "scores":
        best = np.argsort(-outputs[0])[:5].tolist()
        shares = [(label, float(outputs[0][label])) for label in best]
        result = dict(pred_label=best[0], pred_class=network.name_of(best[0]), pred_scores=outputs[0].tolist())
        return result, [(label, score) for label, score in shares if score >= 0.01 or label == best[0]]
    if network.settings["task"] == "segmentation":
        found, counts = np.unique(labels[labels >= 0], return_counts=True)
        shares = list(zip(found.tolist(), (counts / counts.sum()).tolist()))
        return dict(classes={network.name_of(label): share for label, share in shares}), shares
    return dict(shapes=[list(output.shape) for output in outputs]), []


def draw(network, image, labels, shares):
    """Draw a prediction: the image with classes in color, and the shares below it."""
    image = image[..., :3] if image.shape[2] > 2 else np.repeat(image[..., :1], 3, 2)
    image = (image * (255 / max(255, image.max()))).astype(np.uint8)  # may have more than 8 bits
    if labels is not None:
        colors = np.array([network.color_of(label) for label in range(labels.max() + 1)])
        image = np.where(labels[..., None] < 0, image, 0.5 * image + 0.5 * colors[labels]).astype(np.uint8)
    factor = max(1, round(304 / image.shape[1]))
    image = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST)
    strip = np.full((18 * len(shares) + 6, image.shape[1], 3), 255, np.uint8)
    for i, (label, share) in enumerate(shares):
        text = f"{network.name_of(label, to_draw=True)} {share:.1%}"
        cv2.putText(strip, text, (4, 16 + 18 * i), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([image, strip])


def write(network, out, name, image, outputs, labels, shares):
    """Write the visualization of a prediction, and for segmentors its classes; for other models only feature maps.

    Returns:
        Names of the files.
    """
    if network.settings["task"] == "features":
        path = out / FOLDERS["features"] / f"{name}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, *outputs)
        return dict(features=path.relative_to(out).as_posix())
    images = dict(visualization=draw(network, image, labels, shares))
    if labels is not None:
        last = 2**8 - (labels.min() < 0)  # -1 becomes the largest number
        images["sem_seg"] = labels.astype(np.uint8 if labels.max() < last else np.uint16)
    files = {}
    for kind, content in images.items():
        path = out / FOLDERS[kind] / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imencode(".png", content)[1].tofile(path)
        files[kind] = path.relative_to(out).as_posix()
    return files


def find_images(source, out):
    """Find an image, or the images in a folder and its subfolders, except for hidden and written ones."""
    if source.is_file():
        return {source.name: source}
    written = [(out / folder).resolve() for folder in FOLDERS.values()] if out else []
    written += [out.resolve()] if out and out.resolve() != source.resolve() else []
    names = {path.relative_to(source): path for path in sorted(source.rglob("*")) if path.suffix.lower() in SUFFIXES}
    return {
        name.as_posix(): path
        for name, path in names.items()
        if not any(part.startswith(".") for part in name.parts) and not set(written) & set(path.resolve().parents)
    }


def predict_all(network, source, out):
    """Predict an image or all images of a folder; report and skip those that cannot be predicted."""
    paths = find_images(source, out)
    skipped, written = {}, 0
    with PredictionFile(out and out / "predictions.json") as file:
        for name, (image, outputs) in zip(paths, network.stream(paths.values())):
            if image is None:
                skipped[name] = str(outputs)
                print(f"{name}: skipped, {outputs}", file=sys.stderr)
                continue
            labels = network.classes(image, outputs) if network.settings["task"] == "segmentation" else None
            result, shares = describe(network, outputs, labels)
            words = "  ".join(f"{network.name_of(label)} {share:.1%}" for label, share in shares)
            print(f"{name}: {words or result}")
            file.add(name, result | (write(network, out, name, image, outputs, labels, shares) if out else {}))
            written += 1
        file.finish(skipped)
    if not written:
        sys.exit("error: none of the images could be predicted" if paths else f"error: there are no images in {source}")


class PredictionFile:
    """JSON file with predictions, written one after the other, and complete or not there."""

    def __init__(self, path):
        self.path, self.file = path, None

    def __enter__(self):
        return self

    def add(self, name, result):
        """Add a prediction."""
        if self.path is None:
            return
        if self.file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = self.path.with_suffix(".partial").open("w", encoding="utf-8")
            self.file.write('{\n "predictions": {')
        else:
            self.file.write(",")
        self.file.write(f"\n  {json.dumps(name)}: {json.dumps(result)}")

    def finish(self, skipped):
        """Complete the file, if there is a prediction."""
        if self.file:
            self.file.write(f'\n }},\n "skipped": {json.dumps(skipped)}\n}}\n')
            self.file.close()
            Path(self.file.name).replace(self.path)
            self.file = None

    def __exit__(self, *_):
        if self.file:
            self.file.close()
            Path(self.file.name).unlink()


def benchmark(network, calls=50):
    """Print the time to the first prediction, and the latency of a call with one image, or with the fixed batch size of
    the graph."""
    batch, height, width = (
        network.input[name] or default for name, default in zip(("batch", "height", "width"), (1, 224, 224))
    )
    kind, shape = np.dtype(network.input["type"]), (batch, height, width, network.input["channels"])
    images = np.random.RandomState(0).randint(0, np.iinfo(kind).max + 1, shape, kind)
    name = f"{network.settings['runtime']} {network.settings['precision']}, {batch}x{height}x{width}"
    seconds = []
    for _ in range(calls + 5):
        start = time.perf_counter()
        network.graph(images)
        seconds.append(time.perf_counter() - start)
        if len(seconds) == 1:
            print(f"{name}: first prediction {time.perf_counter() - STARTED:.2f} s after the start")
    milliseconds = 1e3 * statistics.median(seconds[5:])
    print(f"{name}: {milliseconds:.2f} ms, {1e3 * batch / milliseconds:.1f} images/s, median of {calls} calls")


def benchmark_folder(network, source, repeats=5):
    """Print and return the images per second from files to outputs, and of the graph alone, measured in turn."""
    paths = list(find_images(source, None).values())
    found = (network.prepare(image) for image, _ in network.stream(paths) if image is not None)
    prepared = next(found, None)
    if prepared is None:
        sys.exit(f"error: none of the images in {source} could be predicted")
    found.close()
    number = -(-64 // network.group) * network.group
    calls, seconds = network.graph.calls, {"graph": [], "files": []}
    for _ in range(repeats):
        start = time.perf_counter()
        with ThreadPoolExecutor(calls) as callers:
            groups = [[prepared] * network.group] * (number // network.group)
            deque(look_ahead(callers, network.predict_batch, groups, calls), 0)
        seconds["graph"].append(time.perf_counter() - start)
        start = time.perf_counter()
        deque(network.stream(itertools.islice(itertools.cycle(paths), number)), 0)
        seconds["files"].append(time.perf_counter() - start)
    graph, files = (number / statistics.median(seconds[key]) for key in ("graph", "files"))
    print(
        f"{source}: {files:.1f} images/s from files to outputs, {files / graph:.0%} of the graph's {graph:.1f} images/s"
    )
    return files, graph


def main():
    for stream in (sys.stdout, sys.stderr):  # the terminal's encoding may lack characters of names
        stream.reconfigure(errors="backslashreplace")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", type=Path, help="image, or folder with images")
    parser.add_argument(
        "--out", type=Path, help="folder for predictions.json, visualizations, and class or feature maps"
    )
    parser.add_argument(
        "--benchmark", action="store_true", help="measure latency and throughput, with SOURCE also end to end"
    )
    parser.add_argument("--threads", type=int, default=0, help="number of threads (default: the runtime's choice)")
    arguments = parser.parse_args()
    if arguments.source is None and not arguments.benchmark:
        parser.error("pass an image, a folder, or --benchmark")
    if arguments.source and not arguments.source.exists():
        sys.exit(f"error: {arguments.source} does not exist")
    if arguments.benchmark:
        benchmark(Network(threads=arguments.threads))
    if arguments.source:
        network = Network(threads=arguments.threads, many=arguments.source.is_dir())
        if arguments.benchmark:
            benchmark_folder(network, arguments.source)
        if arguments.out or not arguments.benchmark:
            predict_all(network, arguments.source, arguments.out)


if __name__ == "__main__":
    main()
