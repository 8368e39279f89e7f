"""Masks beside a model: weights stay plain parameters, and what is masked stays zero while anyone trains them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from secateur.errors import PlanError
from secateur.train.names import bare, bare_name, local, named_weights, own, sharded_as, skipped, whole
from secateur.train.ranks import check_same, from_first, group_of

_INTS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Masks:
    """Which weights of a model are kept, and the hand that keeps the others zero.

    The model is not changed otherwise: no wrappers, the same ``state_dict``. Gradients stay dense. After every step
    of an attached optimizer masked weights are zero again, and so is what the optimizer remembers of them. A mask
    takes a byte a weight and, where it removes anything, once more the memory of its weight.

    Args:
        model: whose parameters are masked; it may be compiled, sharded by `fully_shard`, or wrapped in
            `DistributedDataParallel`, and is known by its names without these.
        masks: parameter name -> bool tensor of its shape, True keeps.
        group: ranks that hold the same masks, those of the first; known by itself where the model is distributed.

    Attributes:
        masks: by bare name; whole on every rank, even where the weights are sharded.

    Raises:
        PlanError: a mask does not fit the model.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> masks = Masks(net, {"weight": torch.eye(2, dtype=torch.bool)})
        >>> masks.apply_()
        >>> masks.sparsity, net.weight[0, 1].item()
        (0.5, 0.0)
    """

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor], group: Any = None) -> None:
        self.model = model
        self.masks: dict[str, Tensor] = {}
        self.group = group_of(model) if group is None else group
        self._followers: list[nn.Module] = []
        self._handles: list[Any] = []
        self._ready: dict[Any, tuple[Tensor, int, Tensor | None]] = {}
        self._counted: dict[str, tuple[Tensor, int, int]] = {}
        self.put(masks)

    def put(self, masks: Mapping[str, Tensor]) -> None:
        """Take other masks in place of all; the weights change with the next `apply_`.

        Raises:
            PlanError: a mask does not fit the model; the old ones stay.
        """
        named = named_weights(self.model)
        fitting: dict[str, Tensor] = {}
        seen: dict[int, str] = {}
        for given, mask in masks.items():
            name = bare_name(given, named)
            if name not in named:
                raise PlanError(
                    f"there is a mask for {given!r}, which {type(bare(self.model)).__name__} does not have; "
                    f"it has {list(named)[:10]}"
                )
            w = named[name]
            if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != w.shape:
                found = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
                raise PlanError(f"the mask of {name} is {found}; expected bool {tuple(w.shape)}")
            if seen.setdefault(id(w), name) != name or name in fitting:
                raise PlanError(f"{seen[id(w)]} and {given} are one parameter with two masks: give one of them")
            fitting[name] = whole(mask).to(w.device)
        self.masks = fitting if self.group is None else from_first(fitting, self.group)
        self._ready.clear()

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """The masked parameters, by name."""
        return self._found(self.model)

    @property
    def sparsities(self) -> dict[str, float]:
        """The fraction of each masked parameter's entries that is removed."""
        return {name: 1 - self._kept(name) / mask.numel() for name, mask in self.masks.items()}

    @property
    def sparsity(self) -> float:
        """The fraction of all masked parameters' entries that is removed; 0 where there are none."""
        total = sum(m.numel() for m in self.masks.values())
        return 1 - sum(map(self._kept, self.masks)) / total if total else 0.0

    def _kept(self, name: str) -> int:
        mask = self.masks[name]
        known = self._counted.get(name)
        if known is None or known[0] is not mask or known[1] != mask._version:
            known = self._counted[name] = (mask, mask._version, int(mask.sum()))
        return known[2]

    def _found(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Looked up anew each time: parameters are replaced by sharding, loading and surgery."""
        root, found = bare(model), {}
        for name in self.masks:
            *path, leaf = name.split(".")
            module: Any = root
            for part in path:
                module = module._modules.get(part)
                module = getattr(module, "_modules", {}).get("_orig_mod", module)
                if module is None:
                    break
            weight = None if module is None else module._parameters.get(leaf)
            if weight is None:
                weight = named_weights(model).get(name)
            if weight is None or weight.shape != self.masks[name].shape:
                raise PlanError(
                    f"{name}, which is masked, is {'gone' if weight is None else tuple(weight.shape)} in "
                    f"{type(root).__name__}; expected {tuple(self.masks[name].shape)}: make masks for it as it is"
                )
            found[name] = weight
        return found

    def apply_(self, only: Iterable[nn.Module] | None = None) -> None:
        """Zero what is masked, in the model and in those that follow it.

        Args:
            only: these models instead, such as an average made elsewhere; their parameters have the same names.
        """
        models = [self.model, *self._followers] if only is None else only
        self._zero_((name, w) for m in models for name, w in self._found(m).items())

    def follow(self, model: nn.Module) -> Callable[[], None]:
        """Mask a copy of the model too, such as an `AveragedModel`, whenever the model is; returns what undoes this.

        Example:
            >>> net = nn.Linear(2, 2)
            >>> average = torch.optim.swa_utils.AveragedModel(net)
            >>> masks = Masks(net, {"weight": torch.eye(2, dtype=torch.bool)})
            >>> undo = masks.follow(average)
            >>> masks.apply_()
            >>> int(average.module.weight.count_nonzero())
            2
        """
        self._found(model)
        self._followers.append(model)

        def undo() -> None:
            self._followers = [m for m in self._followers if m is not model]

        return undo

    def attach(self, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
        """Apply the masks after every step of an optimizer; returns what undoes this.

        Steps that a gradient scaler leaves out leave everything as it is.
        """
        inner = own(optimizer)

        def hook(*_: Any) -> None:
            if not skipped(inner):
                self.after_(inner)

        handle = inner.register_step_post_hook(hook)
        self._handles.append(handle)
        return handle.remove

    def after_(self, optimizer: torch.optim.Optimizer) -> None:
        """`apply_` and `quiet_` at once: what follows each step."""
        pairs = self._remembered(own(optimizer))
        pairs += [(name, w) for m in self._followers for name, w in self._found(m).items()]
        self._zero_([*self.weights.items(), *pairs])

    def quiet_(self, optimizer: torch.optim.Optimizer) -> None:
        """Zero what an optimizer remembers of masked entries: momentum would fill them again once they are let go."""
        self._zero_(self._remembered(own(optimizer)))

    def hold(self) -> Callable[[], None]:
        """Zero the gradients of masked entries as they come, whatever optimizer uses them; returns what undoes this.

        A weight that is zero, whose gradient always was, stays zero in every step of SGD and of Adam and its kin,
        weight decay or not: for loops whose optimizer is made later. Clipping measures the other entries alone.

        Example:
            >>> net = nn.Linear(2, 2)
            >>> masks = Masks(net, {"weight": torch.eye(2, dtype=torch.bool)})
            >>> masks.apply_()
            >>> undo = masks.hold()
            >>> net(torch.ones(1, 2)).sum().backward()
            >>> net.weight.grad[0, 1].item(), undo()
            (0.0, None)
        """

        def zeroed(name: str) -> Callable[[Tensor], None]:
            return lambda w: None if w.grad is None else self._zero_([(name, w.grad)])

        handles = [w.register_post_accumulate_grad_hook(zeroed(n)) for n, w in self.weights.items() if w.requires_grad]

        def undo() -> None:
            for handle in handles:
                handle.remove()

        return undo

    def gradients_(self) -> None:
        """Zero the gradients of masked entries, so that clipping measures the others alone.

        Call it before clipping. They are dense otherwise: methods that let weights grow back need them.
        """
        self._zero_((name, w.grad) for name, w in self.weights.items() if w.grad is not None)

    def _remembered(self, optimizer: torch.optim.Optimizer) -> list[tuple[str, Tensor]]:
        found = []
        for name, w in self.weights.items():
            for value in optimizer.state.get(w, {}).values():
                if isinstance(value, Tensor) and value.shape == w.shape and value.dim():
                    found.append((name, value))
        return found

    @torch.no_grad()
    def _zero_(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Multiply bits by 0 or 1: exact zeros without a sign, even of NaN; all of one type in one call."""
        alike: dict[Any, tuple[list[Tensor], list[Tensor]]] = {}
        for name, t in tensors:
            whole_bits = t.dtype.itemsize in _INTS and not t.dtype.is_complex
            kind = _INTS[t.dtype.itemsize] if whole_bits else t.dtype
            factor = self._factor(name, t, kind)
            if factor is not None:
                mine = local(t)
                values, factors = alike.setdefault((mine.device, kind), ([], []))
                values.append(mine.view(kind) if whole_bits else mine)
                factors.append(factor)
        for values, factors in alike.values():
            torch._foreach_mul_(values, factors)

    def _factor(self, name: str, like: Tensor, kind: torch.dtype) -> Tensor | None:
        """This rank's part of a mask as numbers, remembered while the mask stays; None where it keeps everything."""
        mask = self.masks[name]
        key = (name, kind, like.device, getattr(like, "placements", None))
        known = self._ready.get(key)
        if known is None or known[0] is not mask or known[1] != mask._version:
            factor = None if self._kept(name) == mask.numel() else sharded_as(mask, like).to(kind)
            known = self._ready[key] = (mask, mask._version, factor)
        return known[2]

    def broadcast_(self, group: Any = None) -> None:
        """Take the masks of the first rank, and apply them; every rank must call it."""
        self.masks = from_first(self.masks, self.group if group is None else group)
        self.apply_()

    def check_ranks(self, group: Any = None) -> None:
        """Compare the masks of all ranks; every rank must call it.

        Raises:
            PlanError: they differ; names the weights.
        """
        check_same(self.masks, self.group if group is None else group)

    def state_dict(self) -> dict[str, Tensor]:
        """The masks, by name."""
        return {name: mask.detach().clone() for name, mask in self.masks.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the masks of a `state_dict` in place of all, and apply them.

        Raises:
            PlanError: one does not fit the model; nothing is changed.
        """
        self.put(state)
        self.apply_()

    def strip(self) -> nn.Module:
        """Let go of the optimizers; the zeros stay in the model, which is returned."""
        self.apply_()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._followers.clear()
        return self.model


def from_torch_prune(model: nn.Module) -> Masks:
    """Masks of a model pruned with `torch.nn.utils.prune`, whose reparametrisation is removed.

    ``NAME_orig`` becomes the parameter ``NAME`` again, the same object, with zeros where its mask had them.

    Raises:
        PlanError: nothing of the model is pruned so.

    Example:
        >>> net = nn.Linear(4, 2)
        >>> _ = prune.l1_unstructured(net, "weight", amount=6)
        >>> masks = from_torch_prune(net)
        >>> sorted(net.state_dict()), masks.sparsity
        (['bias', 'weight'], 0.75)
    """
    found = {}
    for path, module in bare(model).named_modules():
        for key in [k for k in module._buffers if k.endswith("_mask") and k[:-5] + "_orig" in module._parameters]:
            leaf, mask = key[:-5], module._buffers[key]
            assert mask is not None
            kept = mask.detach() != 0
            order = [k.removesuffix("_orig") if k == leaf + "_orig" else k for k in module._parameters]
            prune.remove(module, leaf)
            # bias was last before it was pruned, as in every layer of torch
            order.sort(key=lambda k: k.startswith("bias"))
            for k in order:
                module._parameters[k] = module._parameters.pop(k)
            found[f"{path}.{leaf}".lstrip(".")] = kept
    if not found:
        raise PlanError(
            f"{type(bare(model)).__name__} holds nothing that torch.nn.utils.prune pruned (no NAME_orig with NAME_mask)"
        )
    masks = Masks(model, found)
    masks.apply_()
    return masks


def to_torch_prune(masks: Masks) -> nn.Module:
    """Hand masks over to `torch.nn.utils.prune`: ``NAME_orig``, ``NAME_mask`` and a hook on every masked module.

    The optimizers are let go of first: their step no longer masks, the module's forward does.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> net = to_torch_prune(Masks(net, {"weight": torch.eye(2, dtype=torch.bool)}))
        >>> sorted(net.state_dict())
        ['bias', 'weight_mask', 'weight_orig']
    """
    model = masks.strip()
    root = bare(model)
    for name, mask in masks.masks.items():
        path, _, leaf = name.rpartition(".")
        prune.custom_from_mask(root.get_submodule(path), leaf, mask)
    return model
