# SPDX-License-Identifier: Apache-2.0
"""The command ``mmrepmlp VERB``: parse options, run the verb, report errors without a traceback.

Nothing here imports torch or a framework before a verb starts, so that ``--help`` answers at once.
"""

import argparse
import io
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from functools import partial

from mmrepmlp.version import __version__


def count(text: str) -> int:
    """Parse a positive integer."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"expected a positive integer, not {text!r}")
    return int(text)


# Arguments that several verbs share, with the same meaning in all of them. A verb may restrict the choices or change
# the help.
ARGUMENTS = {
    "config": dict(help="config file, or package::path"),
    "checkpoint": dict(help="checkpoint file"),
    "--allow-unsafe": dict(
        action="store_true",
        help="run code that the checkpoint holds, with all your permissions; only for files from trusted sources",
    ),
    "--batch": dict(type=count, help="batch size (default: 1)"),
    "--cfg-options": dict(
        nargs="+", action="extend", metavar="KEY=VALUE", help="config settings to override, by dotted name"
    ),
    "--device": dict(help="device to run on: cpu, or a GPU such as cuda:1"),
    "--dtype": dict(help="precision (default: float32)"),
    "--ema": dict(action="store_true", help="use the weights averaged during training (EMA)"),
    "--launcher": dict(choices=["none", "pytorch", "slurm", "mpi"], help="job launcher (default: none)"),
    "--local-rank": dict(help=argparse.SUPPRESS),  # torch's old launcher passes it; the current one sets a variable
    "--overwrite": dict(action="store_true", help="replace existing files"),
    "--progress": dict(
        action="store_true", help="print a progress bar, metrics and warnings; the log goes to its file only"
    ),
    "--size": dict(type=count, nargs=2, metavar=("HEIGHT", "WIDTH"), help="image size in pixels"),
    "--traceback": dict(action="store_true", help="show the full traceback of an error"),
    "--verify-on": dict(choices=["test"], help="also evaluate on the config's test set, before and after"),
    "--work-dir": dict(help="folder for logs and checkpoints (default: work_dirs/<config name>)"),
}
RUN = ("--work-dir", "--launcher", "--local-rank", "--progress")


class Parser(argparse.ArgumentParser):
    """Argument parser that knows :data:`ARGUMENTS`.

    It omits arguments that are not set, so that the defaults of the called function apply.
    """

    def __init__(self, *args: object, **settings: object) -> None:
        super().__init__(*args, **{"argument_default": argparse.SUPPRESS, **settings})

    def add(self, name: str, **settings: object) -> None:
        """Add an argument with its entry in :data:`ARGUMENTS`, if it has one, updated by ``settings``."""
        spellings = (name, "--local_rank") if name == "--local-rank" else (name,)
        self.add_argument(*spellings, **{**ARGUMENTS.get(name, {}), **settings})

    def add_all(self, *names: str) -> None:
        """Add arguments as defined in :data:`ARGUMENTS`."""
        for name in names:
            self.add(name)


def add_train(parser: Parser) -> None:
    """Train a model, or resume training."""
    parser.add("config")
    parser.add(
        "--resume",
        nargs="?",
        const="auto",
        help="checkpoint to resume from; without a value, the latest in the work dir",
    )
    parser.add("--amp", action="store_true", help="train with automatic mixed precision")
    parser.add("--auto-scale-lr", action="store_true", help="scale the learning rate with the batch size")
    parser.add_all(*RUN)


def add_test(parser: Parser) -> None:
    """Evaluate a checkpoint, or a folder that ``deploy`` wrote, on a config's test set."""
    parser.add("config")
    parser.add("checkpoint", nargs="?", help="checkpoint file or deployed folder (default: load_from in the config)")
    parser.add("--out", metavar="FILE", help="pickle file to write the predictions to")
    parser.add("--show-dir", metavar="DIR", help="folder to write an image of each prediction to")
    parser.add("--deploy", action="store_true", help="convert the model to deploy form first")
    parser.add("--tta", action="store_true", help="test-time augmentation as in the config, or with flips")
    parser.add("--dtype", choices=["float32", "bfloat16"])
    parser.add_all(*RUN)


def add_infer(parser: Parser) -> None:
    """Run a model on your own images.

    Predictions are appended to DIR/predictions.jsonl as they are made and drawn into DIR/visualizations/, one image
    each under its name; segmentation models also write the label of each pixel to DIR/maps/. Images that cannot be
    read are reported and skipped.
    """
    parser.add_all("config", "checkpoint")
    parser.add("images", help="an image, or a folder that is searched recursively")
    parser.add("--out", required=True, metavar="DIR", help="folder to write to")
    parser.add("--batch")
    parser.add("--device", help="device to run on: cpu, or a GPU such as cuda:1 (default: a GPU if there is one)")
    parser.add(
        "--no-visualizations",
        dest="visualize",
        action="store_false",
        help="write the predictions, but no pictures of them",
    )
    parser.add("--score", type=float, help="lowest score of a detection to be drawn (default: 0.5)")
    parser.add("--overwrite")


def add_reparameterize(parser: Parser) -> None:
    """Convert a checkpoint to deploy form, verify it, and write it with a config.

    If the model was trained with --cfg-options, pass them here too, or use the config in its work dir, which has them.
    """
    parser.add("config", help="config file, or package::path; the config saved in the work dir works too")
    parser.add("checkpoint")
    parser.add("out", help="base name of the files, .pth or .safetensors: NAME.pth gives NAME-<hash>.pth and NAME.py")
    parser.add("--check", action="store_true", help="convert, verify and report, but write nothing")
    parser.add("--verify-on")
    parser.add(
        "--tolerance",
        type=float,
        help="largest allowed difference of an output, relative to its largest value (default: 1e-5 for a float32 "
        "file, 1e-2 for float16, 5e-2 for bfloat16)",
    )
    parser.add(
        "--dtype",
        choices=["float32", "float16", "bfloat16"],
        help="dtype of the written weights; the conversion runs in float32 (default: the checkpoint's)",
    )
    parser.add(
        "--names",
        choices=["mmrepmlp", "official"],
        help="tensor names; official: a plain state dict that the authors' code loads (default: mmrepmlp)",
    )
    parser.add("--keep-training-state", action="store_true", help="also keep optimizer, schedulers and message hub")
    parser.add_all("--ema", "--allow-unsafe", "--overwrite")


def add_deploy(parser: Parser) -> None:
    """Export a model to a folder with a graph that includes normalization, and a program that runs it without torch.

    The folder is written only if the graph agrees with the PyTorch model.
    """
    parser.add_all("config", "checkpoint")
    parser.add("out_dir", metavar="OUT", help="folder to write; with --raw, the ONNX file")
    parser.add("--runtime", help="openvino or onnxruntime (default: openvino)")
    parser.add("--precision", help="float32, int8, or with OpenVINO bfloat16 (default: float32)")
    parser.add("--size", help="image size in pixels (default: what the test pipeline resizes or crops to)")
    parser.add(
        "--dynamic",
        nargs="*",
        choices=["batch", "height", "width"],
        help="dynamic axes of the graph (default: batch, and height and width if no size is known)",
    )
    parser.add("--batch", help="batch size, unless the batch axis is dynamic (default: 1)")
    parser.add(
        "--part",
        help="export only up to the feature maps of this backbone or neck (default: the neck, or else the backbone, of "
        "models that are neither classifiers nor segmentors)",
    )
    parser.add("--logits", action="store_true", help="make a segmentor return logits instead of classes")
    parser.add("--images", type=count, help="training images to calibrate int8 with (default: 300)")
    parser.add(
        "--max-drop",
        type=float,
        metavar="POINTS",
        help="largest allowed drop of the metric on the test set; int8 leaves layers in float to stay within it "
        "(default: 0.5 with --verify-on test, and for int8 if the test set has labels)",
    )
    parser.add("--verify-on")
    parser.add(
        "--raw",
        action="store_true",
        help="write only an ONNX file of the network, which takes normalized images and returns raw outputs",
    )
    parser.add(
        "--opset", type=int, help="with --raw, ONNX opset, from 13 to the newest of the installed onnx (default: 20)"
    )
    parser.add_all("--ema", "--work-dir", "--allow-unsafe", "--overwrite")


def add_benchmark(parser: Parser) -> None:
    """Measure speed on this machine: medians of interleaved calls in one process.

    Without a target, measure RepMLPNet in training form and deploy form; for a config, its whole model in several
    runtimes; for deployed folders, accuracy, size and latency.
    """
    parser.add(
        "targets",
        nargs="*",
        metavar="TARGET",
        help="a config; or folders that 'deploy' wrote; or both, to evaluate the folders on the config's test set "
        "(default: RepMLPNet)",
    )
    parser.add("--against", choices=["mmpretrain"], help="also measure mmpretrain's RepMLPNet, with the same weights")
    parser.add(
        "--runtimes",
        nargs="+",
        metavar="NAME",
        help="runtimes for the deploy form: eager, 'eager bfloat16', compiled, frozen, aotinductor, onnxruntime, "
        "openvino, 'openvino bfloat16', 'openvino int8' (default with a config: all)",
    )
    parser.add("--arch", choices=["T", "B", "D", "L"], help="architecture of RepMLPNet (default: B)")
    parser.add("--img-size", type=count, help="image size in pixels, which one tile covers (default: 224)")
    parser.add(
        "--size",
        help="image size in pixels, for a config (default: what its test pipeline resizes or crops to) or for "
        "deployed graphs that take any size",
    )
    parser.add("--batches", type=count, nargs="+", help="batch sizes (default: 1 8; with a config or folders: 1)")
    parser.add("--dtype", choices=["float32", "float64", "bfloat16", "float16"])
    parser.add("--autocast", choices=["bfloat16", "float16"], help="run in torch's autocast (default: without)")
    parser.add("--training-step", action="store_true", help="measure whole training steps instead of forward passes")
    parser.add("--device", help="device to run on: cpu, or a GPU such as cuda:1 (default: cpu)")
    parser.add("--threads", type=count, help="number of threads (default: torch's choice)")
    parser.add("--tf32", action="store_true", help="on a GPU, allow TF32 in float32 matrix products")
    parser.add("--channels-last", action="store_true", help="use the channels-last memory format")
    parser.add("--repeats", type=count, help="timed calls per measurement (default: 15)")
    parser.add("--json", metavar="FILE", help="JSON file to write the results to")
    parser.add("--work-dir")


# For each verb, the function that adds its arguments, and the function of mmrepmlp.apis to call with them.
VERBS = {
    "train": (add_train, "train"),
    "test": (add_test, "evaluate"),
    "infer": (add_infer, "infer"),
    "reparameterize": (add_reparameterize, "reparameterize_checkpoint"),
    "deploy": (add_deploy, "deploy_checkpoint"),
    "benchmark": (add_benchmark, "benchmark"),
}


def run_verb(operation: str, json: str | None = None, **arguments: object) -> None:
    """Call a function of :mod:`mmrepmlp.apis`, print its report, and save the report if a JSON file is named."""
    from rich.console import Console

    from mmrepmlp import apis
    from mmrepmlp.checkpoint import check_folder

    if json:
        check_folder(os.path.dirname(json) or ".")  # now, since a benchmark may take hours before it writes
    result = getattr(apis, operation)(**arguments)
    if operation == "infer":
        print(result)
    elif hasattr(result, "table"):
        Console().print(result.table())
    if json:
        result.save_json(json)


def make_parser() -> Parser:
    """Build the parser of the command, with its verbs."""
    parser = Parser("mmrepmlp", description="RepMLPNet for OpenMMLab: mmpretrain, mmsegmentation and mmdetection.")
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for name, (add, operation) in VERBS.items():
        text = (add.__doc__ or "").replace("``", "")
        verb = verbs.add_parser(name, help=text.partition("\n")[0], description=text)
        add(verb)
        verb.add_all("--cfg-options", "--traceback")
        verb.set_defaults(run=partial(run_verb, operation), parser=verb)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    Args:
        argv: Verb and its arguments. Default: those of the process.
    """
    parse_and_run(make_parser(), argv)


def parse_and_run(parser: Parser, argv: Sequence[str] | None = None) -> None:
    """Parse arguments and call the function that is the parser's default of ``run`` with them.

    An expected error ends the process with ``error: ...`` and exit code 1; any other error, or any at all with
    ``--traceback``, shows its traceback. Ctrl-C ends it with ``interrupted`` and exit code 130.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # the locale's encoding may lack characters of paths and classes
            stream.reconfigure(errors="backslashreplace")
    arguments = vars(parser.parse_args(argv))
    run, parser, traceback = arguments.pop("run"), arguments.pop("parser", parser), arguments.pop("traceback", False)
    if "local_rank" in arguments:
        os.environ.setdefault("LOCAL_RANK", arguments.pop("local_rank"))
    for text in arguments.get("cfg_options", ()):
        if "=" not in text:
            parser.error(f"argument --cfg-options: expected KEY=VALUE, not {text!r}")
    # MMEngine's own code raises it several times in every run.
    warnings.filterwarnings("ignore", "pkg_resources is deprecated")
    try:
        try:
            from mmrepmlp import registry  # noqa: F401  # for its side effects, before a framework is used
        except ImportError as error:
            sys.exit(f"error: {error}")
        if "cfg_options" in arguments:
            arguments["cfg_options"] = read_settings(parser, arguments["cfg_options"])
        run(**arguments)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        from mmrepmlp.verbs.explain import explain

        message = None if traceback else explain(error)
        if message is None:
            raise
        sys.exit(f"error: {message}")


def read_settings(parser: Parser, texts: Sequence[str]) -> dict:
    """Parse ``KEY=VALUE`` texts as MMEngine's tools do."""
    from mmengine.config import DictAction

    read = argparse.Namespace()
    try:
        DictAction(["--cfg-options"], "settings")(parser, read, texts)
    except (AssertionError, ValueError, RecursionError):  # from MMEngine's parser of lists and tuples
        expected = "numbers, words, or lists of them such as [1,2] or [(a,b),c]"
        parser.error(f"argument --cfg-options: cannot parse a value; expected {expected}, not {' '.join(texts)!r}")
    return read.settings
