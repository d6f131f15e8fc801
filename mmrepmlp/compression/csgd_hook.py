# SPDX-License-Identifier: Apache-2.0
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from mmengine.dist import broadcast_object_list
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from mmrepmlp.compression.gradient_hook import GradientHook, groups_of, is_decoupled, refuse_split_weights, shrinkage
from mmrepmlp.compression.groups import ChannelGroup, CompressionError, find_groups
from mmrepmlp.compression.reduce import layers_with_rows
from mmrepmlp.engine.hooks.switch_to_deploy_hook import get_model
from mmrepmlp.registry import HOOKS

ENOUGH = 15.0  # factor by which the filters of a cluster have to approach each other, as a power of e
OF_NORMS = 0.1  # share of the strength for norms and biases


@HOOKS.register_module()
class CSGDHook(GradientHook):
    """Centripetal SGD (CVPR 2019): train the filters of a cluster until they are equal, to merge them into one.

    When training begins, the filters of each layer are clustered by k-means. From then on, the filters of a cluster
    share the mean of their gradients and are pulled towards each other, so that they become equal, and the parameters
    of their norms too. ``mmrepmlp reparameterize`` keeps one filter of each cluster, and adds up the weights of the
    cluster in the next layers. Layers that write the same residual stream share the clusters of the one that begins it,
    and the branches of a re-parameterizable convolution those of its equivalent kernel. Start from a trained checkpoint
    (``load_from``). With AdamW, whose step does not depend on the size of a gradient, the pull is applied separately
    from the gradient, as weight decay is.

    Args:
        keep: Share of the filters that remain in each layer. Default: 0.5.
        strength: Strength of the pull. Default: 0.05, as on ImageNet; 0.003 on CIFAR-10.
        layers: Names of the layers whose filters may be removed, or parts of the names between dots. Default: all
            layers that :func:`find_groups` finds.
        streams: Whether to also merge filters of layers that write the same channels: residual streams, the lateral
            convolutions of an FPN. Default: False.

    Raises:
        ValueError: ``keep`` or ``strength`` is out of range.
        CompressionError: Filters would not become equal over the schedule, filters of a layer cannot be removed, or the
            optimizer is neither SGD nor AdamW.
    """

    def __init__(
        self, keep: float = 0.5, strength: float = 0.05, layers: list[str] | None = None, streams: bool = False
    ) -> None:
        super().__init__()
        if not 0 < keep < 1:
            raise ValueError(f"keep={keep}: expected a share above 0 and below 1.")
        if strength <= 0:
            raise ValueError(f"strength={strength}: expected a positive number.")
        self.keep, self.strength, self.layers, self.streams = keep, strength, layers, streams

    def prepare(self, runner: Runner, state: dict | None) -> None:
        """Cluster the filters, or restore the clusters of a resumed training."""
        model = get_model(runner)
        groups = find_groups(model, self.layers, self.streams)
        refuse_frozen_norms(model, groups.values())
        if state is None:
            clusters = [{name: cluster(filters(model, group), self.keep, group.sets) for name, group in groups.items()}]
            broadcast_object_list(clusters)
            self.clusters = clusters[0]
            share_statistics(model, groups, self.clusters)
        else:
            self.clusters = state["clusters"]
        self.pulled = [
            pulled
            for name, group in groups.items()
            for pulled in pulled_parameters(model, group, torch.tensor(self.clusters[name]), self.strength)
        ]
        refuse_split_weights(runner.optim_wrapper.optimizer, [pulled.parameter for pulled in self.pulled])
        if state is None:
            self.check_schedule(runner)

    def check_schedule(self, runner: Runner) -> None:
        """Reject a schedule over which the filters of a cluster do not become equal."""
        optimizer = runner.optim_wrapper.optimizer
        groups = groups_of(optimizer)
        strengths = {
            pulled.parameter: pulled.strength + pulled.is_weight * groups[pulled.parameter].get("weight_decay", 0.0)
            for pulled in self.pulled
        }
        power = min(shrinkage(runner, strengths).values())
        if power < ENOUGH:
            raise CompressionError(
                f"Over this schedule, the filters of a cluster only approach each other by a factor of e^{power:.2g}, "
                f"and they need e^{ENOUGH:g}. Train longer, or with a larger strength or lr. (Each step adds about lr "
                "* strength / (1 - momentum) to the power, at most -log(sqrt(momentum)); norms and biases have a tenth "
                "of the strength.)"
            )

    def before_step(self, optimizer: Optimizer) -> None:
        """Average the gradients within clusters, and apply the pull."""
        decoupled, groups = is_decoupled(optimizer), groups_of(optimizer)
        for pulled in self.pulled:
            parameter = pulled.parameter
            if parameter.grad is None:
                continue
            deviation = parameter - pulled.mean(parameter)
            gradient = pulled.mean(parameter.grad)
            if decoupled:
                parameter.sub_(deviation, alpha=min(groups[parameter]["lr"] * pulled.strength, 1.0))
            else:
                gradient += pulled.strength * deviation
            parameter.grad.copy_(gradient)

    def state(self) -> dict:
        """Return the clusters: for each layer, the number of the cluster of each filter."""
        return {"clusters": self.clusters}


@dataclass
class PulledParameter:
    """A parameter whose filters belong to clusters.

    Attributes:
        parameter: Shape (D, ...).
        clusters: Number of the cluster of each filter, shape (D,).
        strength: Strength of the pull.
        is_weight: Whether it is a weight, which decays, and not a bias or a parameter of a norm.
    """

    parameter: nn.Parameter
    clusters: Tensor
    strength: float
    is_weight: bool

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of its cluster for each filter; shape (D, ...) as ``values``."""
        number = int(self.clusters.max()) + 1
        clusters = self.clusters.to(values.device)
        counts = torch.bincount(clusters, minlength=number).to(values)
        sums = values.new_zeros(number, *values.shape[1:]).index_add_(0, clusters, values)
        return (sums / counts.view(-1, *[1] * (values.dim() - 1)))[clusters]


def pulled_parameters(
    model: nn.Module, group: ChannelGroup, clusters: Tensor, strength: float
) -> list[PulledParameter]:
    """Return the parameters of layers and norms that have a row for each channel."""
    parameters = [p for layer in layers_with_rows(model, group) for p in layer.parameters(recurse=False)]
    return [PulledParameter(p, clusters, strength * (1 if p.dim() > 1 else OF_NORMS), p.dim() > 1) for p in parameters]


def filters(model: nn.Module, group: ChannelGroup) -> Tensor:
    """Return the filters to cluster: those of the group's first layer or, with branches, of its equivalent kernel."""
    layer = model.get_submodule(group.writer)
    return layer.get_equivalent_kernel_bias().weight if hasattr(layer, "get_equivalent_kernel_bias") else layer.weight


def refuse_frozen_norms(model: nn.Module, groups: Iterable[ChannelGroup]) -> None:
    """Reject channels whose batch norms have frozen parameters, which never become equal."""
    for group in groups:
        for layer in layers_with_rows(model, group):
            if not all(parameter.requires_grad for parameter in layer.parameters(recurse=False)):
                raise CompressionError(
                    f"The filters of {group.writer} cannot become equal: their parameters, or those of their norms, "
                    "are frozen (norm_cfg with requires_grad=False?). Train them, or leave the layer out (layers)."
                )


@torch.no_grad()
def share_statistics(model: nn.Module, groups: Mapping[str, ChannelGroup], clusters: Mapping[str, list[int]]) -> None:
    """Make the running statistics in a cluster equal, in batch norms that stay in eval mode in training
    (``norm_eval``), in place; scale and shift compensate for it."""
    training = model.training
    model.train()
    for name, group in groups.items():
        for norm in layers_with_rows(model, group):
            if isinstance(norm, _BatchNorm) and not norm.training and norm.affine:
                pulled = PulledParameter(norm.weight, torch.tensor(clusters[name]), 0.0, False)
                mean, variance = pulled.mean(norm.running_mean), pulled.mean(norm.running_var)
                scale = norm.weight / (norm.running_var + norm.eps).sqrt()
                norm.bias += scale * (mean - norm.running_mean)
                norm.weight.copy_(scale * (variance + norm.eps).sqrt())
                norm.running_mean.copy_(mean)
                norm.running_var.copy_(variance)
    model.train(training)


def cluster(weight: Tensor, keep: float, sets: int = 1) -> list[int]:
    """Cluster filters by k-means.

    Args:
        weight: Shape (D, ...).
        keep: Number of clusters as a share of D.
        sets: Number S of sets; filter ``d`` belongs to set ``d % S``. Default: 1.

    Returns:
        Number of the cluster of each filter. All sets have equally many clusters, and cluster ``k`` belongs to set
        ``k % S``; those of a set are numbered in the order in which they occur.
    """
    from sklearn.cluster import KMeans

    rows = weight.detach().flatten(1).double().cpu().numpy()
    number, clusters = max(1, round(keep * len(rows) / sets)), [0] * len(rows)
    for index in range(sets):
        labels = KMeans(number, n_init="auto", random_state=0).fit(rows[index::sets]).labels_.tolist()
        for label in set(range(number)) - set(labels):  # where filters are equal already
            labels[next(i for i, other in enumerate(labels) if labels.count(other) > 1)] = label
        order = list(dict.fromkeys(labels))
        clusters[index::sets] = [order.index(label) * sets + index for label in labels]
    return clusters
