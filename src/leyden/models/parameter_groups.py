"""Parameter groups: set optimizer arguments for parameters that are selected by their names, and freeze some."""

import difflib
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Annotated, Any

from lightning import Callback, LightningModule, Trainer
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer
from typing_extensions import override

from leyden.errors import UserError, nearest

KEY = "model.parameter_groups"
CONTAINERS = nn.Sequential | nn.ModuleList | nn.ModuleDict
Nodes = list[dict[str, Any]]  # the groups as they stand in a config


class ParameterGroup(BaseModel):
    """The settings of the parameters whose names, as in a checkpoint, fit `pattern`.

    `pattern` is a shell pattern: `net.stages.*`. `lr_ratio` multiplies the learning rate. `lr_decay` multiplies it once
    for each block of the net that comes after the parameter's own (see `block_depths`). `freeze` is true, or the epoch,
    counted from 0, at which the training of the parameters begins. All other keys are arguments of the optimizer.
    """

    model_config = ConfigDict(extra="allow", strict=True)

    pattern: str
    lr_ratio: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    lr_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    freeze: bool | NonNegativeInt = False

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of the optimizer."""
        return self.model_extra or {}

    def is_frozen(self, epoch: int) -> bool:
        """Return whether the parameters are frozen in an epoch."""
        return self.freeze if isinstance(self.freeze, bool) else epoch < self.freeze


def parse(nodes: Nodes | None) -> list[ParameterGroup]:
    """Check the groups of a config.

    Raises:
        UserError: if a key is missing or has a wrong value.
    """
    groups = []
    for index, node in enumerate(nodes or ()):
        try:
            groups.append(ParameterGroup.model_validate(node))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join([f"{KEY}.{index}", *(str(part) for part in first["loc"][:1])])
            problem = "is missing" if first["type"] == "missing" else f"is {first['input']!r}: {first['msg']}"
            raise UserError(f"{key} {problem}") from error
        if "lr" in groups[-1].arguments:
            raise UserError(
                f"{KEY}.{index}.lr: write lr_ratio, a multiple of the optimizer's rate, which schedules keep"
            )
    return groups


def assign(groups: list[ParameterGroup], names: Iterable[str]) -> dict[str, ParameterGroup]:
    """Return, for each name that a pattern fits, the first group with such a pattern."""
    pairs = ((name, next((g for g in groups if fnmatchcase(name, g.pattern)), None)) for name in names)
    return {name: group for name, group in pairs if group is not None}


def check(groups: list[ParameterGroup], model: nn.Module) -> None:
    """Check that every group gets a parameter of the model.

    Raises:
        UserError: if a group gets no parameter.
    """
    names = [name for name, _ in model.named_parameters()]
    members = list(assign(groups, names).values())
    for index, group in enumerate(groups):
        if any(other is group for other in members):
            continue
        key = f"{KEY}.{index}.pattern={group.pattern}"
        if any(fnmatchcase(name, group.pattern) for name in names):
            raise UserError(f"{key}: groups before it take all parameters that it fits: move it before them")
        raise UserError(f"{key} fits no parameter{similar_names(group.pattern, names)}")


def check_callback(groups: list[ParameterGroup], model: LightningModule) -> None:
    """Check that the trainer has the callback that freezes, if a group is frozen.

    Raises:
        UserError: if a subclass of the model leaves it out.
    """
    is_freezing = any(group.freeze for group in groups)
    if is_freezing and not any(isinstance(callback, Freezing) for callback in vars(model.trainer)["callbacks"]):
        raise UserError(
            f"{KEY} freezes parameters, but {type(model).__name__}.configure_callbacks leaves out the callback that "
            "freezes them: let it return [*super().configure_callbacks(), …]"
        )


def similar_names(pattern: str, names: list[str]) -> str:
    """Return `; similar names: …` for a pattern that fits none of `names`."""
    matches = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4) or names[:3]
    return f"; similar names: {', '.join(matches)}" if matches else ""


def split(
    parameters: list[tuple[str, nn.Parameter]], groups: list[ParameterGroup], model: LightningModule
) -> tuple[list[dict[str, Any]], list[float]]:
    """Return torch's parameter groups for the parameters of an optimizer, and the factor of each group's learning rate.

    Vectors and scalars (biases, the scales of norms) have no weight decay, unless a group sets one.

    Raises:
        UserError: if no parameter is trained in the first epoch.
    """
    assignment = assign(groups, (name for name, _ in parameters))
    depths = block_depths(model) if any(group.lr_decay < 1 for group in groups) else {}
    if groups and all(name in assignment and assignment[name].is_frozen(0) for name, _ in parameters):
        raise UserError(f"{KEY} freezes all parameters of an optimizer: leave some that learn from the first epoch on")
    parts: dict[tuple[int, float, bool], list[nn.Parameter]] = {}
    for name, parameter in parameters:
        group = assignment.get(name)
        index = -1 if group is None else next(i for i, other in enumerate(groups) if other is group)
        ratio = 1.0 if group is None else group.lr_ratio * group.lr_decay ** depths.get(name, 0)
        parts.setdefault((index, ratio, parameter.ndim < 2), []).append(parameter)
    torch_groups = []
    for (index, _, is_vector), members in sorted(parts.items(), key=lambda part: part[0]):
        arguments = {"weight_decay": 0.0} if is_vector else {}
        torch_groups.append({"params": members, **arguments, **(groups[index].arguments if index >= 0 else {})})
    return torch_groups, [ratio for _, ratio, _ in sorted(parts)]


def check_arguments(groups: list[ParameterGroup], optimizer: Optimizer) -> None:
    """Refuse arguments that the optimizer does not have; torch would ignore them.

    Raises:
        UserError: for the first such argument.
    """
    for index, group in enumerate(groups):
        for key in group.arguments:
            if key not in optimizer.defaults:
                options = [*optimizer.defaults, *ParameterGroup.model_fields]
                hint = nearest(key, [option for option in options if option != "lr"])
                raise UserError(f"{KEY}.{index}.{key}: {type(optimizer).__name__} has no such argument{hint}")


def block_depths(model: LightningModule) -> dict[str, int]:
    """Return for each parameter of a model's nets how many blocks of its net come after its own.

    A block is a child of the net, or an element of a container (Sequential, ModuleList, ModuleDict). A module with only
    one child and no parameters of its own stands for its child. Blocks are counted in the order in which the net
    defines them. A block that holds only vectors, such as a norm, belongs to the block before it, and the net's own
    parameters to the first one.
    """
    depths: dict[str, int] = {}
    nets = getattr(model, "net", None)
    members = nets.items() if isinstance(nets, nn.ModuleDict) else [("", nets)] if isinstance(nets, nn.Module) else []
    for name, net in members:
        prefix = f"net.{name}." if name else "net."
        positions = {parameter: 0 for parameter, _ in net.named_parameters()}
        last = -1
        for block, module in _blocks(net):
            last += any(parameter.ndim >= 2 for parameter in module.parameters())
            positions |= {f"{block}.{parameter}": max(last, 0) for parameter, _ in module.named_parameters()}
        depths |= {prefix + parameter: max(last, 0) - position for parameter, position in positions.items()}
    return depths


def _blocks(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield the name and module of each block of a net in order."""
    children = [(name, child) for name, child in module.named_children() if any(True for _ in child.parameters())]
    is_shell = len(children) == 1 and not any(True for _ in module.parameters(recurse=False))
    for name, child in children:
        if isinstance(child, CONTAINERS) or is_shell:
            yield from _blocks(child, f"{prefix}{name}.")
        else:
            yield prefix + name, child


class Freezing(Callback):
    """Freezes groups of parameters, and the norms of the frozen parts. What is frozen depends on the epoch alone.

    A frozen parameter gets no gradient, so an optimizer skips it: it neither moves nor decays. A norm whose part of the
    net is frozen stays in eval mode: its running statistics do not move.
    """

    def __init__(self, groups: list[ParameterGroup]) -> None:
        self._groups = groups

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Freeze what is never trained, before a strategy wraps the model and the optimizers are built.

        Raises:
            UserError: if a group gets no parameter, or would be trained only after the last epoch.
        """
        if stage != "fit":
            return
        check(self._groups, pl_module)
        for index, group in enumerate(self._groups):
            epochs = trainer.max_epochs or -1
            if group.freeze is not True and 0 < epochs <= group.freeze:
                raise UserError(
                    f"{KEY}.{index}.freeze={group.freeze}: epochs are counted from 0, so the last of "
                    f"trainer.max_epochs={epochs} is {epochs - 1}: write true, or train longer"
                )
        for parameter, group in self._members(pl_module).items():
            if group.freeze is True:
                parameter.requires_grad_(False)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Freeze what the current epoch freezes; a run that resumes within an epoch starts here."""
        epoch, members = trainer.current_epoch, self._members(pl_module)
        for parameter in (p for o in trainer.optimizers for group in o.param_groups for p in group["params"]):
            if parameter in members:
                parameter.requires_grad_(not members[parameter].is_frozen(epoch))
        for norm, is_frozen in _norms(pl_module, members, epoch).items():
            norm.train(not is_frozen)

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Freeze what the epoch freezes, and train the rest."""
        self.on_train_start(trainer, pl_module)

    def _members(self, model: LightningModule) -> dict[nn.Parameter, ParameterGroup]:
        """Return the group of each parameter that is frozen in some epoch."""
        parameters = dict(model.named_parameters())
        return {parameters[n]: group for n, group in assign(self._groups, parameters).items() if group.freeze}


def _norms(model: nn.Module, members: dict[nn.Parameter, ParameterGroup], epoch: int) -> dict[nn.Module, bool]:
    """Return the batch and instance norms in parts that are frozen at some time, and whether they are in this epoch."""
    norms: dict[nn.Module, bool] = {}
    for part in model.modules():  # outer parts come first, so the innermost part that has parameters decides
        parameters = list(part.parameters())
        if parameters and all(parameter in members for parameter in parameters):
            is_frozen = all(members[parameter].is_frozen(epoch) for parameter in parameters)
            norms |= {norm: is_frozen for norm in part.modules() if isinstance(norm, _NormBase)}
    return norms
