"""Exchange rows of a batch and gradients between the processes of a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

Result = TypeVar("Result")
_TELL_EVERY = 20.0  # seconds


def num_processes() -> int:
    """Count the processes of this run; 1 where nothing is distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_index() -> int:
    """Get the number of this process, from 0."""
    return dist.get_rank() if num_processes() > 1 else 0


def on_main_process(work: Callable[[Callable[[], None]], Result]) -> Result:
    """
    Let the main process do some work, and give its result, or its `ValueError`, to all processes of the run.

    Args:
        work: gets a function that it should call often: with it the main process tells the others that it is still
            at work, so that no collective times out however long it takes. The result has to be picklable.
    """
    if num_processes() == 1:
        return work(lambda: None)
    if process_index() > 0:
        while True:
            state, value = _told(None)
            if state == "done":
                return value
            if state != "busy":
                raise ValueError(value)
    last = time.monotonic()

    def tick() -> None:
        nonlocal last
        if time.monotonic() - last > _TELL_EVERY:
            last = time.monotonic()
            _told(("busy", None))

    outcome: tuple[str, Any] = ("failed", "The main process stopped; see what it says.")
    try:
        result = work(tick)
        outcome = ("done", result)
        return result
    except ValueError as error:
        outcome = ("refused", str(error))
        raise
    finally:
        _told(outcome)


def _told(message: tuple[str, Any] | None) -> tuple[str, Any]:
    """Pass a message of the main process on to all."""
    messages: list[Any] = [message]
    dist.broadcast_object_list(messages, src=0)
    return messages[0]


def gather_rows(tensor: Tensor) -> Tensor:
    """
    Gather the rows `(B, ...)` of all processes, one process after another: `(sum of B, ...)`.

    Gradients flow into the own rows only. Every process computes the same loss from the same rows, so the sum of the
    processes' gradients is that of the whole batch. Processes may differ in every size; zeros fill it up.
    """
    if num_processes() == 1:
        return tensor
    shapes = [torch.empty(tensor.ndim, dtype=torch.long, device=tensor.device) for _ in range(num_processes())]
    dist.all_gather(shapes, torch.tensor(tensor.shape, device=tensor.device))
    sizes = torch.stack(shapes)
    if not bool(sizes[:, 0].any()):
        return tensor
    own = pad_to(tensor, sizes.amax(dim=0).tolist())
    sent = own.detach().contiguous()
    sent = sent.byte() if sent.dtype == torch.bool else sent
    parts = [torch.empty_like(sent) for _ in range(num_processes())]
    dist.all_gather(parts, sent)
    parts = [part.to(tensor.dtype) for part in parts]
    parts[dist.get_rank()] = own
    return torch.cat([part[:rows] for part, rows in zip(parts, sizes[:, 0].tolist(), strict=True)])


def pad_to(tensor: Tensor, shape: Iterable[int]) -> Tensor:
    """
    Pad each dimension of a tensor with zeros at its end, up to `shape`.

    >>> pad_to(torch.ones(1, 2), (2, 3)).tolist()
    [[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    """
    missing = [wanted - size for wanted, size in zip(shape, tensor.shape, strict=True)]
    return nn.functional.pad(tensor, [number for extra in reversed(missing) for number in (0, extra)])


def summed(value: Tensor) -> Tensor:
    """Sum a tensor over all processes, without gradient."""
    value = value.detach().clone()
    if num_processes() > 1:
        dist.all_reduce(value)
    return value


def greatest(value: Tensor) -> Tensor:
    """Take the greatest of each number of a tensor over all processes, without gradient."""
    value = value.detach().clone()
    if num_processes() > 1:
        dist.all_reduce(value, dist.ReduceOp.MAX)
    return value


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """
    Make every process's gradients the mean of all.

    A parameter that only some processes used, the vision tower's where one has no pictures, counts as zero in the
    others. `DistributedDataParallel` does not allow that where a step has several forward passes.
    """
    if num_processes() == 1:
        return
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    used = torch.tensor([parameter.grad is not None for parameter in trained], dtype=torch.int32)
    used = summed(used.to(trained[0].device)) > 0
    for parameter, anywhere in zip(trained, used.tolist(), strict=True):
        if not anywhere:
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(parameter.grad)
        parameter.grad /= num_processes()


def unwrapped(model: nn.Module) -> nn.Module:
    """
    Take a model out of the wrapper that averages gradients.

    It does so after a backward pass, but stumbles where only some processes see pictures, or a step has several
    forward passes. The trainers call the model itself, and `average_gradients` once a step.
    """
    return model.module if isinstance(model, DistributedDataParallel | nn.DataParallel) else model


def without_adapters(model: Any) -> Any:
    """Take a model out of peft's wrapper, if it has one; its layers keep their adapters."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def keep_float32(plugin: Any) -> None:
    """
    Let FSDP2 return what the model returns, and sum gradients in float32, whatever it computes in.

    accelerate's policy casts all that the model returns: embeddings in bfloat16, of which similarities at a
    temperature of 0.02 turn the gradient by a tenth and more.

    Args:
        plugin: accelerate's FSDP plugin, before the model is sharded; another version's is left alone.
    """
    if plugin.fsdp_version == 2 and (policy := plugin.mixed_precision_policy) is not None:
        plugin.mixed_precision_policy = replace(policy, output_dtype=None, reduce_dtype=torch.float32)


def reduce_alike(model: nn.Module) -> None:
    """
    Let a model that FSDP2 shards, and averages itself, reduce the same gradients in every pass of every process.

    Those of unused parameters count as zero, as in `average_gradients`: a process without pictures would reduce other
    gradients than those with some. And every pass reduces its own, also where gradients are accumulated: otherwise
    each process would keep whole float32 gradients from one pass to the next, and FSDP2 could not join them with those
    of parameters that only the last pass used, which are in the precision of the computation.

    Call it before each step. Models that are not sharded are left alone; a torch that can't do it is a `ValueError`.
    """
    if num_processes() == 1:
        return
    from torch.distributed.fsdp import FSDPModule

    if not isinstance(model, FSDPModule):
        return
    if not hasattr(model, "set_reduce_scatter_unused_params"):
        raise ValueError(
            f"FSDP2 of torch {torch.__version__} breaks where one process's batch has pictures and another's has none;"
            " update torch (2.13 can do it)."
        )
    model.set_reduce_scatter_unused_params(True)
    model.set_requires_gradient_sync(True)  # the trainer turns it off before all but the last of accumulated batches


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode for the length of a block."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@contextmanager
def whole_weights(model: nn.Module, plugin: Any) -> Iterator[None]:
    """
    Gather the weights of a model that FSDP2 shards for the length of a block, in which parts of it may be called.

    Rollouts take another number of steps in each process, and read parts of the model by themselves; weights that
    were gathered layer by layer would have the processes wait for each other for ever. All processes enter and leave
    together, and inside there is no exchange. Each holds the whole model meanwhile, in the precision of the
    computation. Other models are left alone. Nothing may be trained inside.

    Args:
        plugin: accelerate's FSDP plugin, which says whether weights are given up again after each forward pass.
    """
    from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

    parts = [part for part in model.modules() if isinstance(part, FSDPModule)]
    if not parts:
        yield
        return
    if "set_up_sharding" not in vars(model):  # a call through the model's own hooks, before those of its parts
        model.set_up_sharding = lambda: None  # type: ignore[assignment]
        register_fsdp_forward_method(model, "set_up_sharding")
    model.set_up_sharding()  # type: ignore[operator]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(bool(plugin.reshard_after_forward), recurse=False)
            part.reshard()
