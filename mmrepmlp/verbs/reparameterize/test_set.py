# SPDX-License-Identifier: Apache-2.0
"""Compare both forms of a model on a config's test set."""

import copy
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner, TestLoop
from mmengine.runner.amp import autocast
from torch import nn

from mmrepmlp.checkpoint import save_checkpoint
from mmrepmlp.errors import MMRepMLPError
from mmrepmlp.reparam import named_tensors
from mmrepmlp.verbs.config import load_config, require
from mmrepmlp.verbs.explain import explained
from mmrepmlp.verbs.reparameterize.verification import Verification
from mmrepmlp.verbs.runner import build_runner
from mmrepmlp.verbs.test.evaluate import run_test
from mmrepmlp.verbs.test.metrics import check_scored, largest_step, main_metric, numbers

UNCOMPARED = (".gt_", ".seg_logits")  # annotations, and scores of every pixel for every class


@dataclass
class Agreement:
    """Agreement of both forms of a model on a test set.

    Attributes:
        metrics: Metrics of training form and deploy form, by name.
        rounding: Step to which the framework rounds metrics; 0 if it does not.
        same: Count of numbers in the predictions that are equal, up to rounding.
        total: Count of all numbers in the predictions.
    """

    metrics: dict[str, tuple[float, float]] = field(default_factory=dict)
    rounding: float = 0.0
    same: int = 0
    total: int = 0

    @property
    def share(self) -> float:
        """Share of equal numbers; 0 if there are none."""
        return self.same / max(self.total, 1)

    def count(self, before: object, after: object) -> None:
        """Count the numbers in a batch of predictions that are equal, up to rounding.

        In lists of different lengths, such as the boxes of an image, numbers at the same position are compared.
        """
        actual = dict(named_tensors(after))
        for name, expected in named_tensors(before):
            if any(part in name for part in UNCOMPARED):
                continue
            other = actual.get(name, expected.new_zeros(0))
            self.total += max(expected.numel(), other.numel())
            if other.shape[1:] == expected.shape[1:] and other.dim() == expected.dim():
                pairs = [x[: min(len(expected), len(other))].double() if x.dim() else x for x in (other, expected)]
                self.same += int(torch.isclose(*pairs, rtol=1e-3, atol=1e-6).sum())


class CompareFormsHook(Hook):
    """Test a deploy form on the batches on which a runner tests the training form.

    Modules that random images did not verify are compared on their inputs there.

    Args:
        model: The deploy form, which is copied.
        verification: Comparison of the converted modules.
    """

    priority = "VERY_LOW"  # after the hooks that swap weights

    def __init__(self, model: nn.Module, verification: Verification) -> None:
        self.model, self.verification = copy.deepcopy(model), verification
        self.result = Agreement()

    def before_test_epoch(self, runner: Runner) -> None:
        """Set up a second evaluator, for the deploy form, and start to compare modules."""
        self.model.to(next(runner.model.parameters()).device)
        self.evaluator = runner.build_evaluator(runner.cfg.test_evaluator)
        self.evaluator.dataset_meta = runner.test_loop.evaluator.dataset_meta
        self.watching = self.verification.watch(runner.model, self.verification.unverified())
        self.watching.__enter__()

    def before_test_iter(self, runner: Runner, batch_idx: int, data_batch: object = None) -> None:
        """Copy the batch, since models write predictions into it."""
        self.batch = copy.deepcopy(data_batch)
        torch.manual_seed(batch_idx)

    @torch.no_grad()
    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: object = None, outputs: object = None
    ) -> None:
        """Test the deploy form on the copy."""
        torch.manual_seed(batch_idx)
        with autocast(enabled=runner.test_loop.fp16):
            predictions = self.model.test_step(self.batch)
        self.result.count(outputs, predictions)
        self.evaluator.process(data_samples=predictions, data_batch=self.batch)

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Evaluate the predictions of the deploy form."""
        self.watching.__exit__(None, None, None)
        after = numbers(self.evaluator.evaluate(len(runner.test_loop.dataloader.dataset)))
        before = numbers(metrics or {})
        self.result.metrics = {name: (value, after.get(name, float("nan"))) for name, value in before.items()}
        self.result.rounding = largest_step(before, self.evaluator.metrics)


def compare_on_test_set(cfg: Config, before: nn.Module, after: nn.Module, verification: Verification) -> Agreement:
    """Test both forms of a model on the same batches of a config's test set, and compare modules not verified yet.

    Args:
        cfg: Config of the training form.
        before: Model in training form.
        after: Model in deploy form.
        verification: Comparison of the converted modules, which is continued.

    Raises:
        MMRepMLPError: The test set yields no metric, or the config has another test loop than MMEngine's.
        ExplainedError: A dataset is missing.
        ValueError: The config has nothing to test.
    """
    with TemporaryDirectory() as folder, torch.random.fork_rng():
        cfg.dump(Path(folder, "training.py"))
        save_checkpoint({"state_dict": before.state_dict()}, Path(folder, "training.pth"))
        cfg = load_config(Path(folder, "training.py"), work_dir=folder)
        require(cfg, "test_dataloader", "test_cfg", "test_evaluator")
        check_scored(cfg)
        cfg.load_from, cfg.resume = str(Path(folder, "training.pth")), False
        with explained(cfg):
            runner = build_runner(cfg, progress=True, name_log=False)
            if not isinstance(runner.test_loop, TestLoop):
                raise MMRepMLPError(
                    f"test_cfg.type={type(runner.test_loop).__name__}: --verify-on test needs MMEngine's TestLoop. "
                    "Convert without it, and test both forms with mmrepmlp test."
                )
            hook = CompareFormsHook(after, verification)
            runner.register_hook(hook)
            run_test(runner)
        main_metric(hook.result.metrics)
        return hook.result
