"""A decoder whose weights, gradients and moments are cut into shares, one a process, by PyTorch's ``fully_shard``."""

from __future__ import annotations

import copy

import torch
from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from degaml_kedro.generator.decoders.hyperconv import AxisConvolution


def is_asked_for() -> bool:
    """Whether the launcher is configured for it: ``accelerate launch --use_fsdp``."""
    return bool(parse_flag_from_env("ACCELERATE_USE_FSDP"))


def sharded(decoder: nn.Module, device: torch.device, processes: int) -> nn.Module:
    """A copy of a decoder on the CPU that holds this process's share of every weight, on its device.

    A convolution's weights are whole while it computes, and no longer: with most of the parameters in a few
    convolutions, a process holds little more than its share.
    """
    mesh = init_device_mesh(device.type, (processes,))
    model = copy.deepcopy(decoder)
    for module in list(model.modules()):
        if isinstance(module, AxisConvolution):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def whole(tensor: Tensor) -> Tensor:
    """The tensor that shares are of, gathered: all processes ask for it at once. Others are as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def placed(tensor: Tensor, like: Tensor) -> Tensor:
    """A copy of a whole tensor where another one is: on its device, or in shares as it is."""
    if isinstance(like, DTensor):
        return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
    return tensor.to(like.device, copy=True)


@torch.no_grad()
def settle(model: nn.Module, decoder: nn.Module) -> None:
    """Copy the weights of a sharded model into a whole decoder, one at a time; all processes do it at once."""
    parameters = dict(decoder.named_parameters())
    for name, parameter in model.named_parameters():
        parameters[name].copy_(whole(parameter))
