"""The plan of a sweep: its points and the configs of its jobs, checked before anything is trained."""

import contextlib
import copy
import hashlib
import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException
from optuna.study import Study

from leyden.config import passwords
from leyden.config.compose import (
    JOB,
    SWEEP_KEYS,
    Composition,
    build_composition,
    explain,
    has_several_values,
)
from leyden.config.composition import leaves, to_dict
from leyden.config.hydra_node import hydra_initialized
from leyden.config.overrides import with_absolute_paths
from leyden.console import complain
from leyden.errors import UserError
from leyden.files import write_atomically
from leyden.run.directory import new_run_id, runs_root
from leyden.run.freeze import check_init, freeze_init
from leyden.sweep import grammar, space
from leyden.sweep.directory import Sweep
from leyden.sweep.settings import MIN_PAIRS, Settings

MAX_CHECKED_POINTS = 100  # a grid with at most this many points is checked in full, a larger one value by value
# keys that may be changed when a sweep is resumed
CHANGEABLE_KEYS = ("hydra.sweeper.n_trials", "hydra.sweeper.n_jobs", "hydra.sweeper.retries")


class FrozenRepository(CachingConfigRepository):
    """Reads each config file once, so that edits during a sweep do not reach its later jobs."""

    def __deepcopy__(self, memo: dict) -> "FrozenRepository":
        return self  # Hydra's loader copies its repository for each composition

    def load_config(self, config_path: str) -> Any:
        """Return a copy, because Hydra modifies the config that it gets."""
        return copy.deepcopy(super().load_config(config_path))

    def digests(self, names: Collection[str] = ()) -> dict[str, str]:
        """Return the sha256 of each file of conf/ that was read or is in `names`; "" for a missing file."""
        for name in names:
            self.load_config(name)
        files = {key.removeprefix("config_path="): file for key, file in self.cache.items()}
        conf_files = {name: file for name, file in files.items() if name in names or (file and "file:" in file.path)}
        texts = {name: OmegaConf.to_yaml(file.config) if file else "" for name, file in conf_files.items()}
        return {name: hashlib.sha256(text.encode()).hexdigest() if text else "" for name, text in texts.items()}


class Plan:
    """A sweep's search space and settings; composes the config of each job.

    `jobs` lists, for each job of a point, its extra overrides (seed, fold).
    `master` is the config that Hydra composed for the multirun; `arguments` are overrides that may have several values.

    Raises:
        UserError: for an invalid space or invalid settings.
    """

    def __init__(self, loader: ConfigLoader, master: DictConfig, arguments: Sequence[str]) -> None:
        assert isinstance(loader, ConfigLoaderImpl)
        self._repository = loader.repository = FrozenRepository(loader.repository)
        self.loader, self.master = loader, master
        _check_storage(str(OmegaConf.to_container(master.hydra.sweeper, resolve=False)["storage"]))
        node = OmegaConf.to_container(master.hydra.sweeper, resolve=True)
        assert isinstance(node, dict)
        for key in SWEEP_KEYS:
            value = OmegaConf.select(master, key)
            if value is not None and value != OmegaConf.select(master, f"hydra.sweeper.{key}"):
                raise UserError(f"{key}={value}: the sweep's file has other {key}: write hydra.sweeper.{key}={value}")
        self.settings = Settings.of(node)
        space_arguments = [a for a in arguments if a.partition("=")[0] not in SWEEP_KEYS]
        for item in set(arguments) - set(space_arguments):
            if has_several_values(item):
                key, _, values = item.partition("=")
                raise UserError(f"{item}: write {key}=[{values}], or their number")
        subdir = str(OmegaConf.to_container(master.hydra.sweep, resolve=False)["subdir"])
        if "/" in subdir or not subdir.strip("."):
            raise UserError(f"hydra.sweep.subdir={subdir}: a job's folder lies in the sweep's: leave out / and ..")
        pairs = self.settings.pairs or []
        pairs = [pairs] if isinstance(pairs, dict) else pairs
        self.space = grammar.read(self.settings.params, space_arguments, loader, pairs)
        if not self.settings.is_grid and not self.space.axes:
            raise UserError(
                f"hydra.sweeper.sampler={self.settings.sampler}: nothing is varied: write a key with several values, "
                "'optimizer.lr=tag(log,interval(1e-4,1e-1))', or sweep=NAME"
            )
        if not any(name.partition(".")[0] == "init" for axis in self.space.axes for name in axis.names):
            self._freeze_init()
        self.points = self.space.grid() if self.settings.is_grid else []
        self.jobs = _seeds_and_folds(self.settings, self.space, master)
        if self.settings.race and len(self.jobs) <= MIN_PAIRS:
            raise UserError(
                f"hydra.sweeper.race={self.settings.race} compares points after {MIN_PAIRS} seeds and folds: each "
                f"needs {MIN_PAIRS + 1} or more"
            )
        if not self.settings.uses_project_code:  # showing a sweep must not import the project's code
            self.build()
        for point in self.settings.enqueue:
            self.space.convert(point)
        self._composed_configs: dict[tuple[str, ...], DictConfig] = {}

    def build(self) -> None:
        """Build the sampler and the pruner once, so that errors come before anything is trained."""
        self.settings.build_pruner()
        self.settings.build_sampler(self.points, 0)

    def compose(self, overrides: Sequence[str], number: int = 0) -> DictConfig:
        """Compose a job's config, including Hydra's node; a config that was composed for the check is reused."""
        checked_config = self._composed_configs.pop(tuple(overrides), None)
        config = checked_config or self.loader.load_sweep_config(self.master, list(overrides))
        with read_write(config.hydra), open_dict(config):
            config.hydra.job.id, config.hydra.job.num = str(number), number
            config.hydra.sweep.dir = self.master.hydra.sweep.dir  # the folder is chosen after the check
        return config

    def warn_of_single_job(self) -> None:
        """Warn if the sweep is a grid of one point with one job."""
        if self.settings.is_grid and len(self.points) * len(self.jobs) == 1:
            complain("-m varies nothing, so this is a sweep of one run: write a key with several values, seed=0,1,2")

    def check(self, only_one: bool = False) -> list[Composition]:
        """Compose and check all points of a small grid, else each value once; with `only_one`, one point.

        Raises:
            UserError: with the number and the overrides of the first job that is wrong.
        """
        checks_all = 0 < len(self.points) <= MAX_CHECKED_POINTS
        compositions = []
        points = self.points if checks_all else list(self.space.corners())
        for index, point in enumerate(points[:1] if only_one else points):
            number = (index + 1) * len(self.jobs) - 1 if checks_all else 0
            overrides = [*self.space.overrides(point), *self.jobs[-1]]
            try:
                config = self.compose(overrides, number)
                run_config = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
                compositions.append(build_composition(run_config, config.hydra, overrides))
                check_init(compositions[-1].config)
                self._composed_configs[tuple(overrides)] = config
            except UserError as error:
                raise UserError(f"job {number} ({' '.join(overrides)}): {error}") from error
            except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
                error.add_note(JOB + "\n".join(overrides))  # read by `leyden.config.compose.explain`
                raise
        return compositions

    def choose_folder(self, name: str) -> None:
        """Choose the sweep's folder, runs/<name>/<time>-<id>, unless the user did."""
        if any(o.startswith("hydra.sweep.dir=") for o in unresolved_overrides(self.master, "hydra")):
            return
        folder = str(runs_root() / name / new_run_id())
        with read_write(self.master.hydra), open_dict(self.master):
            self.master.hydra.sweep.dir = folder
            self.master.hydra.overrides.hydra.append(folder_override(folder))

    def _freeze_init(self) -> None:
        """Have all jobs start from the same weights: `init=last` would mean another run in each."""
        node = OmegaConf.select(self.master, "init")
        init = to_dict(node, resolve=True) if isinstance(node, DictConfig) else node
        if not init or (frozen_init := freeze_init(init)) == init:
            return
        facts = {key: quote_value(str(frozen_init[key])) for key in ("weights", "sha256") if key in frozen_init}
        if "step" in frozen_init:
            facts["step"] = str(frozen_init["step"])
        if isinstance(init, str):
            overrides = [f"init={{{','.join(f'{key}:{value}' for key, value in facts.items())}}}"]
        else:
            overrides = [f"++init.{key}={value}" for key, value in {**facts, "checkpoint": "null"}.items()]
        self.space = replace(self.space, items=(*self.space.items, *overrides))
        with read_write(self.master.hydra), open_dict(self.master):
            self.master.init = frozen_init
            self.master.hydra.overrides.task.extend(overrides)

    def save_config(self, sweep: Sweep) -> None:
        """Write multirun.yaml; if it exists, first check that only `CHANGEABLE_KEYS` of the sweep differ.

        Raises:
            UserError: if another value has changed since the sweep began, or the study's format is not supported.
        """
        path = sweep.path / "multirun.yaml"
        if path.exists():
            Sweep(sweep.path).check_format()
            old_values, values = (dict(leaves(to_dict(c))) for c in (sweep.config, self.master))
            for key in {**old_values, **values}:
                is_fixed = not key.startswith("hydra.") or key.startswith(("hydra.sweeper.", "hydra.overrides.task"))
                if is_fixed and key not in CHANGEABLE_KEYS and old_values.get(key) != values.get(key):
                    raise UserError(
                        f"{sweep.name} was begun with {key}={old_values.get(key)}, and now it is {values.get(key)}: "
                        "restore it, or begin another sweep"
                    )
        write_atomically(path, OmegaConf.to_yaml(self.master))

    def record_files(self, study: Study) -> None:
        """Record in the study the digests of the conf/ files that it uses, or check that they are unchanged.

        Raises:
            UserError: if one has changed since the sweep began.
        """
        digests_before = study.user_attrs.get("files", {})
        digests = self._repository.digests(digests_before)
        if changed_names := [name for name, digest in digests_before.items() if digests[name] != digest]:
            raise UserError(
                f"config file {changed_names[0]}.yaml has changed since the sweep began: "
                "restore it, or begin another sweep"
            )
        study.set_user_attr("files", digests)


def _check_storage(address: str) -> None:
    """Refuse a storage address that contains a password, because multirun.yaml would contain it, too."""
    if (masked_address := passwords.mask(address)) != address:
        raise UserError(
            f"hydra.sweeper.storage={masked_address}: {passwords.REASON}: put the address into a variable of the "
            "environment, LEYDEN_STORAGE for instance, and write 'hydra.sweeper.storage=${oc.env:LEYDEN_STORAGE}'"
        )


@contextlib.contextmanager
def open_plan(overrides: Sequence[str], extra_overrides: Sequence[str] = ()) -> Iterator[Plan]:
    """Plan a sweep as `leyden train -m` does with these overrides, and with extra ones that the user did not write.

    Raises:
        UserError: for an invalid override, space or config.
    """
    overrides = with_absolute_paths(overrides)
    try:
        with hydra_initialized() as hydra:
            loader = hydra.config_loader
            arguments = ["hydra.mode=MULTIRUN", *overrides, *extra_overrides]
            master = loader.load_configuration("train", arguments, run_mode=RunMode.MULTIRUN)
            yield Plan(loader, master, unresolved_overrides(master, "task"))
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(explain(error, list(overrides))) from error


def unresolved_overrides(config: DictConfig, kind: str) -> list[str]:
    """Return the overrides of a composed config, of the kind `task` or `hydra`, with unresolved ${…}."""
    overrides = OmegaConf.to_container(config.hydra.overrides, resolve=False)
    assert isinstance(overrides, dict)
    return overrides[kind]


def original_arguments(master: DictConfig) -> list[str]:
    """Return the arguments of `leyden train -m` that started a sweep, except for its folder."""
    added_prefixes = ("hydra.mode=", "hydra.sweep.dir=")
    return [
        *(item for item in unresolved_overrides(master, "hydra") if not item.startswith(added_prefixes)),
        *unresolved_overrides(master, "task"),
    ]


def folder_override(folder: str) -> str:
    """Return the override that sets a sweep's folder, quoted because its path may have special characters."""
    return f"hydra.sweep.dir={quote_value(folder)}"


def quote_value(text: str) -> str:
    """Return text in quotation marks, as a value in an override."""
    return QuotedString(text, Quote.single).with_quotes()


def _seeds_and_folds(settings: Settings, search_space: space.Space, master: DictConfig) -> list[list[str]]:
    axes: list[list[list[str]]] = []
    if settings.folds:
        axes.append([[f"++data.folds={settings.folds}", f"++data.fold={fold}"] for fold in range(settings.folds)])
    if settings.seeds:
        seed = OmegaConf.select(master, "seed", default=0)
        first_seed = seed if isinstance(seed, int) else 0
        seeds = settings.seeds if isinstance(settings.seeds, list) else range(first_seed, first_seed + settings.seeds)
        axes.append([[f"seed={seed}"] for seed in seeds])
    keys_in_use = {
        name
        for item in search_space.items
        for name in ([item.partition("=")[0].lstrip("+")] if isinstance(item, str) else item.names)
    }
    for key in (override.partition("=")[0].lstrip("+") for axis in axes for override in axis[0]):
        if key in keys_in_use:
            raise UserError(f"{key} is set already: leave out {key}=…, or the seeds and folds")
    return [list(itertools.chain(*overrides)) for overrides in itertools.product(*axes)]
