"""Masked weights stay exactly 0, whatever an optimiser does to them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

from ...graph.preserve import own_copy
from .invariants import checked_masks, require_zero
from .network import Masks, require_module, zero_masked

SUFFIX = "_mask"


def masks_of(state: Mapping[str, Tensor]) -> Masks:
    """The masks in a ``state_dict`` that was taken inside a :class:`Sparsifier`: parameter name -> bool tensor.

    A module that is used under several names is listed under each, as in ``state``; whatever takes masks accepts that.
    """
    return {
        name.removesuffix(SUFFIX): value
        for name, value in state.items()
        if name.endswith(SUFFIX) and name.removesuffix(SUFFIX) in state and value.dtype == torch.bool
    }


class Sparsifier:
    """Keeps masked weights at exactly 0 while a model is trained: a context manager, or :meth:`attach` and ``detach``.

    After every ``step()`` of the optimisers, masked weights are 0, under momentum, weight decay and adaptive methods
    alike; a step that a ``GradScaler`` skips changes nothing. Their gradients are 0 as soon as they are accumulated, so
    that clipping by the norm and the optimiser's statistics see only the network that is left.

    It changes the caller's model: masked weights become 0, and while it is attached each masked parameter ``w`` has its
    mask as a buffer ``w_mask`` beside it, so that ``state_dict``, ``load_state_dict`` and ``to`` take masks along
    (:func:`masks_of` reads them). Loading other masks changes what is enforced. Detached, the model is as dense as
    before, with zeros.

    Args:
        model: trained in place.
        masks: parameter name -> bool tensor, True where a weight stays.
        optimizer: every optimiser that steps these parameters: one, or several. None: whichever does so while this is
            attached, also one that is made later.

    Raises:
        ValueError: masks that do not fit; a masked parameter that no optimiser holds; a buffer of that name.
        TypeError: something that is no optimiser, or no mask.
    """

    def __init__(
        self,
        model: nn.Module,
        masks: Mapping[str, Tensor],
        optimizer: torch.optim.Optimizer | Iterable[torch.optim.Optimizer] | None = None,
    ) -> None:
        require_module(model)
        parameters = dict(model.named_parameters(remove_duplicate=False))
        self.model = model
        self._given = checked_masks(parameters, masks)
        self._optimizers = None if optimizer is None else _optimizers(optimizer)
        self._handles: list[RemovableHandle] = []
        self._places = {name: _place(model, name) for name in self._given}
        held = {id(parameter) for one in self._optimizers or () for parameter in stepped(one)}
        for name in self._given if self._optimizers is not None else ():
            if parameters[name].requires_grad and id(parameters[name]) not in held:
                raise ValueError(f"no optimiser given holds the masked parameter {name!r}")

    @property
    def masks(self) -> Masks:
        """The masks as they are enforced now."""
        if not self._handles:
            return dict(self._given)
        return {name: module.get_buffer(leaf + SUFFIX) for name, (module, leaf) in self._places.items()}

    def attach(self) -> Sparsifier:
        """Put masks beside the weights and begin to enforce them."""
        if self._handles:
            raise ValueError("this Sparsifier is attached already")
        for name, (module, leaf) in self._places.items():
            if hasattr(module, leaf + SUFFIX):
                raise ValueError(
                    f"the layer of {name!r} has {leaf + SUFFIX!r} already: is another Sparsifier attached?"
                )
        try:
            self._install()
        except BaseException:
            self._remove()  # half of it would stand in the way of the next
            raise
        return self

    def _install(self) -> None:
        for name, (module, leaf) in self._places.items():
            parameter = module.get_parameter(leaf)
            module.register_buffer(leaf + SUFFIX, self._given[name].to(parameter.device, copy=True))
            if parameter.requires_grad:
                hook = _GradientMask(module, leaf)
                self._handles.append(parameter.register_post_accumulate_grad_hook(hook))  # type: ignore[no-untyped-call]
        if self._optimizers is None:
            self._handles.append(register_optimizer_step_post_hook(self._after_any_step))
        for one in self._optimizers or ():
            self._handles.append(one.register_step_post_hook(self._after_step))
        self.enforce()

    def detach(self) -> None:
        """Stop enforcing and take the masks out of the model; its weights stay as they are."""
        self._given = {name: mask.clone() for name, mask in self.masks.items()}
        self._remove()

    def _remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for module, leaf in self._places.values():
            module._buffers.pop(leaf + SUFFIX, None)
            module._non_persistent_buffers_set.discard(leaf + SUFFIX)

    def enforce(self) -> None:
        """Set all masked weights to 0, now."""
        for name, mask in self.masks.items():
            module, leaf = self._places[name]
            zero_masked(module.get_parameter(leaf), mask)

    def check(self) -> None:
        """RevivedWeights if a masked weight is not exactly 0."""
        require_zero(self.model, self.masks)

    def dense(self) -> nn.Module:
        """A copy of the model without masks and hooks, whose masked weights are 0; RevivedWeights if they are not."""
        self.check()
        plain = own_copy(self.model)
        for name, (_, leaf) in self._places.items():
            _place(plain, name)[0]._buffers.pop(leaf + SUFFIX, None)
        return plain

    def __enter__(self) -> Sparsifier:
        return self.attach()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.check()
        finally:
            self.detach()

    def _after_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.enforce()

    def _after_any_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        mine = {id(module.get_parameter(leaf)) for module, leaf in self._places.values()}
        if any(id(parameter) in mine for parameter in stepped(optimizer)):
            self.enforce()


class _GradientMask:
    """Zeroes the gradient of masked entries when it has been accumulated."""

    def __init__(self, module: nn.Module, leaf: str) -> None:
        self.module = module
        self.leaf = leaf

    def __call__(self, parameter: Tensor) -> None:
        gradient = parameter.grad
        if gradient is not None and not gradient.is_sparse:
            gradient.masked_fill_(self.module.get_buffer(self.leaf + SUFFIX).logical_not(), 0)


def stepped(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    """All parameters that an optimiser steps."""
    for group in optimizer.param_groups:
        yield from group["params"]


def _place(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return model.get_submodule(path), leaf


def _optimizers(
    given: torch.optim.Optimizer | Iterable[torch.optim.Optimizer],
) -> tuple[torch.optim.Optimizer, ...]:
    listed = (given,) if isinstance(given, torch.optim.Optimizer) or not isinstance(given, Iterable) else tuple(given)
    for one in listed:
        if not isinstance(one, torch.optim.Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer or several, not {type(one).__name__}")
    return listed
