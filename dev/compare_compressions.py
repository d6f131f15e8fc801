# SPDX-License-Identifier: Apache-2.0
"""Compare methods of compression by what is left of a trained network, with several seeds, on all cores."""

import argparse
import multiprocessing
import os
import statistics
import zlib
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from mmengine.config import Config
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from dev.repeated import train_once
from mmrepmlp.checkpoint import load_from_local, save_checkpoint, unwrap
from mmrepmlp.compression import ChannelGroup, Compressed, find_groups
from mmrepmlp.compression.groups import trace
from mmrepmlp.compression.macs import MacsOfWidths
from mmrepmlp.compression.reduce import keep_filters
from mmrepmlp.errors import MMRepMLPError
from mmrepmlp.reparam import convertible_modules
from mmrepmlp.verbs.benchmark.hardware import CPU
from mmrepmlp.verbs.benchmark.measure import interleave
from mmrepmlp.verbs.benchmark.networks import OURS, build_whole
from mmrepmlp.verbs.benchmark.report import BenchmarkReport
from mmrepmlp.verbs.benchmark.runtimes import RUNTIMES, Workload
from mmrepmlp.verbs.config import read_config
from mmrepmlp.verbs.model import build_model, count_macs
from mmrepmlp.verbs.reparameterize.compressed import compressed_config
from mmrepmlp.verbs.reparameterize.reparameterize import reparameterize_checkpoint
from mmrepmlp.verbs.test.evaluate import evaluate_weights
from mmrepmlp.verbs.train.resume import latest_checkpoint

TRAINED_ON = "finetune"  # the network as it is, trained as long as the others
MAGNITUDE = "magnitude"  # torch-pruning's choice of filters, trained as long as the others
# Without processes that load images, which would compete for the cores with those of the pool, and without validation,
# since what is left of a network is tested.
OPTIONS = {f"{loader}_dataloader.num_workers": 0 for loader in ("train", "test")}
OPTIONS |= {"val_cfg": None, "val_dataloader": None, "val_evaluator": None}
# glibc keeps the memory of a tensor for the next one instead of giving it back to the system.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "4294967296"}


@dataclass
class Result:
    """What a method made of a network with one seed.

    Attributes:
        network: Name of the network's config.
        method: Name of the method.
        seed: Seed of both trainings.
        top1: Accuracy in percent.
        macs: Multiply-adds on one image.
        nonzero: Number of weights that are not zero.
        kilobytes: Size of all weights and statistics.
        compressed_kilobytes: The same, compressed by zlib.
    """

    network: str
    method: str
    seed: int
    top1: float
    macs: int
    nonzero: int
    kilobytes: float
    compressed_kilobytes: float


def compare_compressions(
    configs: Sequence[str | Path],
    seeds: Sequence[int] = (0, 1, 2),
    work_dir: str | Path = "work_dirs",
    share: float = 0.5,
    repeats: int = 100,
    out: str | Path | None = None,
) -> BenchmarkReport:
    """Train networks, compress each by all methods, and test and time what is left.

    The methods of ``NETWORK.py`` are the configs ``METHOD_NETWORK.py`` beside it, which start from its weights;
    ``finetune`` is the network trained on as it is, and another is added that prunes it by magnitude, by torch-pruning,
    before the same training. What was trained before in the same folder is not trained again.

    Args:
        configs: Configs of the networks.
        seeds: Seeds of all trainings. Default: 0, 1, 2.
        work_dir: Folder for the runs, with their logs. Default: ``work_dirs``.
        share: Share of the multiply-adds that pruning by magnitude leaves. Default: 0.5.
        repeats: Timed calls of each network in each runtime. Default: 100.
        out: JSON file for the results. Default: None.

    Returns:
        A row for each network and method: the accuracy for each seed; means over the seeds of the multiply-adds, in
        percent of those of the network as it is, the weights that are not zero and their size; milliseconds of one
        image in each runtime, of the first seed.

    Raises:
        MMRepMLPError: There are no seeds, or no methods for a network.
        FileNotFoundError: A config or a dataset does not exist.
    """
    networks = {Path(config): methods_of(Path(config)) for config in configs}
    if not seeds or not all(TRAINED_ON in methods for methods in networks.values()):
        raise MMRepMLPError(f"configs={list(map(str, configs))}: expected {TRAINED_ON}_NAME.py beside each, and seeds.")
    Path(work_dir).mkdir(parents=True, exist_ok=True)
    log = Path(work_dir, "trainings.log")
    os.environ |= KEEP_MEMORY  # of the processes that train; this one has read its environment
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), context, work_quietly, (str(log.absolute()),)) as pool:
        try:
            bases = {
                (config, seed): pool.submit(train_base, config, work_dir, seed) for config in networks for seed in seeds
            }
            jobs = []
            for (config, seed), base in track(bases.items(), f"networks, log in {log}"):
                base.result()
                for method, file in networks[config].items():
                    jobs.append(pool.submit(compress_one, config, method, file, work_dir, seed, share))
            for job in track(as_completed(jobs), "compression", len(jobs)):
                job.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    compressed, rows = [job.result() for job in jobs], []
    for network in networks:
        of_network = [(result, file) for result, file in compressed if result.network == network.stem]
        times = time_networks({result.method: file for result, file in of_network if result.seed == seeds[0]}, repeats)
        results = {method: [result for result, _ in of_network if result.method == method] for method in times}
        macs = results[TRAINED_ON][0].macs
        rows += [{**summary(results[method], macs), **milliseconds} for method, milliseconds in times.items()]
    report = BenchmarkReport({"seeds": list(seeds), "repeats": repeats, **CPU.environment()}, rows)
    if out:
        report.save_json(out)
    return report


def summary(results: Sequence[Result], macs: int) -> dict[str, object]:
    """The row of a method from its results by seed, and the multiply-adds of the network as it is."""

    def mean(name: str) -> float:
        return statistics.fmean(getattr(result, name) for result in results)

    return {
        "network": results[0].network.partition("_")[0],
        "method": "none" if results[0].method == TRAINED_ON else results[0].method,
        "accuracy/top1": [result.top1 for result in results],
        "MACs, %": 100 * mean("macs") / macs,
        "weights not 0": mean("nonzero"),
        "weights, kB": mean("kilobytes"),
        "compressed, kB": mean("compressed_kilobytes"),
    }


def methods_of(config: Path) -> dict[str, Path]:
    """The configs beside one that compress its network, by the names of the methods."""
    found = {file.name.removesuffix(f"_{config.name}"): file for file in config.parent.glob(f"*_{config.name}")}
    first = {TRAINED_ON: found.pop(TRAINED_ON, None)}
    return {**first, MAGNITUDE: first[TRAINED_ON], **dict(sorted(found.items()))} if first[TRAINED_ON] else found


def work_quietly(log: str) -> None:
    """Let a process compute on one core, and write what it prints to a file."""
    torch.set_num_threads(1)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)


def base_folder(config: Path, work_dir: str | Path, seed: int) -> Path:
    """Folder of the training of a network."""
    return Path(work_dir, f"{config.stem}_seed{seed}")


def train_base(config: Path, work_dir: str | Path, seed: int) -> None:
    """Train a network."""
    train_once(config, base_folder(config, work_dir, seed), seed, OPTIONS)


def compress_one(
    config: Path, method: str, file: Path, work_dir: str | Path, seed: int, share: float
) -> tuple[Result, Path]:
    """Compress a trained network, and test what is left; also returns its config."""
    folder = Path(work_dir, f"{method}_{config.stem}_seed{seed}")
    start = latest_checkpoint(base_folder(config, work_dir, seed))
    if method == MAGNITUDE:
        file, start = prune_by_magnitude(file, start, folder, share)
    train_once(file, folder, seed, {**OPTIONS, "load_from": str(start)})
    # Not the checkpoint of the last epoch where the end of the training made another of it.
    checkpoint = next(iter(folder.glob("sparse.pth")), latest_checkpoint(folder))
    content = load_from_local(checkpoint)
    model = build_model(read_config(file), unwrap(content))
    deployed = all(getattr(module, "deploy", False) for module in convertible_modules(model).values())
    if any(content.get("compression", {}).values()) or not deployed:
        report = reparameterize_checkpoint(file, checkpoint, folder / "deploy.pth", overwrite=True)
        file, content = report.config, load_from_local(report.checkpoint)
        model = build_model(read_config(file), unwrap(content))
    state = model.state_dict()
    packed = b"".join(tensor.numpy().tobytes() for tensor in state.values())
    result = Result(
        network=config.stem,
        method=method,
        seed=seed,
        top1=evaluate_weights(file, state, str(folder / "test"), OPTIONS)["accuracy/top1"],
        macs=count_macs(model),
        nonzero=sum(int(parameter.count_nonzero()) for parameter in model.parameters()),
        kilobytes=len(packed) / 1e3,
        compressed_kilobytes=len(zlib.compress(packed)) / 1e3,
    )
    return result, file


def prune_by_magnitude(config: Path, checkpoint: Path, folder: Path, share: float) -> tuple[Path, Path]:
    """Keep as large a share of the filters of each layer as leaves some share of the multiply-adds, by the magnitude of
    all weights of their channels; write config and weights of what is left."""
    cfg = read_config(config)
    model = build_model(cfg, unwrap(load_from_local(checkpoint)))
    groups = find_groups(model)
    scores, macs = score_channels(model, groups), MacsOfWidths(model, groups)
    for percent in reversed(range(1, 100)):
        widths = {name: max(1, round(percent / 100 * group.channels)) for name, group in groups.items()}
        if macs.share(widths) <= share:
            break
    pruned = build_model(cfg, model.state_dict())
    for name, group in groups.items():
        keep_filters(pruned, group, sorted(scores[name].topk(widths[name]).indices.tolist()))
    folder.mkdir(parents=True, exist_ok=True)
    written, weights = folder / "pruned.py", folder / "pruned.pth"
    Config(compressed_config(cfg, Compressed(model, pruned, groups)).to_dict()).dump(written)
    save_checkpoint({"state_dict": pruned.state_dict()}, weights)
    return written, weights


def score_channels(model: nn.Module, groups: dict[str, ChannelGroup]) -> dict[str, Tensor]:
    """How much torch-pruning makes of each channel of each group, shape (channels,)."""
    from torch_pruning.pruner.importance import GroupMagnitudeImportance

    graph, names = trace(model)
    scores, importance = {}, GroupMagnitudeImportance()
    for module, name in names.items():
        if name in groups:
            prune = graph.get_pruner_of_module(module).prune_out_channels
            scores[name] = importance(graph.get_pruning_group(module, prune, list(range(groups[name].channels))))
    return scores


def time_networks(configs: dict[str, Path], repeats: int) -> dict[str, dict[str, float]]:
    """Milliseconds for one image of networks, by name and runtime, in interleaved calls."""
    calls, runtimes = {}, ("eager", "openvino")
    with TemporaryDirectory() as folder:
        for method, config in configs.items():
            models, size = build_whole(config, None, None)
            images = torch.randn(1, 3, *size)
            path = Path(folder, method)
            path.mkdir()
            workload = Workload(models[OURS], models[OURS], images, path, CPU)
            calls |= {(method, runtime): RUNTIMES[runtime](workload) for runtime in runtimes}
        with torch.inference_mode():
            seconds = interleave(calls, repeats, "one image")
    return {
        method: {f"ms, {runtime}": 1e3 * statistics.median(seconds[method, runtime]) for runtime in runtimes}
        for method in configs
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("configs", nargs="+", help="configs of networks, with those of the methods beside them")
    parser.add_argument("--work-dir", default="work_dirs", help="folder for the runs (default: work_dirs)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="seeds (default: 0 1 2)")
    parser.add_argument("--out", metavar="RESULT.json", help="write the results here")
    Console().print(compare_compressions(**vars(parser.parse_args())).table())


if __name__ == "__main__":
    main()
