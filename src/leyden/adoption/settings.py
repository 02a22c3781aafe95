"""Convert the choices and values of train.yaml and of experiments, which depend on the converted groups."""

from dataclasses import dataclass, field
from typing import Any

from leyden.adoption.parts import convert_logger, split_callbacks, split_trainer
from leyden.adoption.report import Report
from leyden.adoption.source import Document, Source, merge
from leyden.config.check import COLLECTIONS, NODES, SETTINGS

# Groups that leyden has no use for, and what takes their place.
LEFT_OUT_GROUPS = {
    "debug": "one override of the trainer does each",
    "extras": "`leyden train --cfg job` prints the config, PYTHONWARNINGS=ignore hides warnings, tags are optional",
    "hydra": "a run's folder is runs/NAME/TIME-ID, with its own log.txt",
    "local": "values for one machine belong in ~/.config/leyden.yaml",
}
LEFT_OUT_KEYS = {
    "task_name": "a run is named after its experiment, or by name=…",
    "ckpt_path": "leyden resume RUN continues a run, leyden evaluate RUN measures one",
    "train": "leyden evaluate RUN measures without training",
    "optimized_metric": "a sweep's objective is chosen in conf/sweep/",
    "hydra": "a run's folder is runs/NAME/TIME-ID, with its own log.txt",
    "extras": LEFT_OUT_GROUPS["extras"],
    **dict.fromkeys(("print_config", "ignore_warnings", "enforce_tags"), LEFT_OUT_GROUPS["extras"]),
}
LEYDEN_KEYS = {"defaults", *SETTINGS, *NODES, *COLLECTIONS}


@dataclass
class Settings:
    """The choices that remain in converted groups, the nodes of callbacks and loggers, and the project's defaults."""

    accelerators: dict[str, str] = field(default_factory=dict)  # by the name of the trainer
    trainers: dict[str, dict[str, Any]] = field(default_factory=dict)  # the trainers' keys that no accelerator holds
    callbacks: set[str] = field(default_factory=set)
    callback_nodes: dict[str, dict[str, Any]] = field(default_factory=dict)  # by the name of their choice
    chosen_callbacks: Any = None  # train.yaml's choice
    loggers: set[str] = field(default_factory=set)
    logger_nodes: dict[str, Any] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    read_keys: set[str] = field(default_factory=set)  # names of groups, and keys that some ${…} reads

    def convert_choice(self, group: str, choice: Any) -> tuple[str, Any] | None:
        """Return leyden's group and choice, or None if leyden has no such choice."""
        if group == "trainer":
            accelerator = self.accelerators.get(choice) if isinstance(choice, str) else None
            return ("accelerator", accelerator) if accelerator else None
        names = {"callbacks": self.callbacks, "logger": self.loggers}.get(group)
        if names is None:
            return group, choice
        if isinstance(choice, list):
            return group, [name for name in choice if name in names] or "none"
        return group, choice if choice in names else "none"

    def read_choice(self, key: str, choice: Any, source: Source, choices: dict[str, Any], report: Report) -> None:
        """Add an entry of train.yaml's defaults list to the choices of the project."""
        words = key.replace("/", " ", 1).split() if key.startswith("/") else key.split()
        group = words[-1].lstrip("/") if words else ""
        if key == "_self_" or group in LEFT_OUT_GROUPS or group == "hparams_search" or group.startswith("hydra"):
            return
        if group == "experiment":
            if choice:
                report.manual_steps.append(
                    f"configs/train.yaml trains experiment={choice} unasked: name it in the command"
                )
            return
        if choice is None and group in ("callbacks", "logger"):
            return
        if len(words) != 1 or "@" in key or not source.group(group):
            report.manual_steps.append(f"configs/train.yaml: `{key}: {choice}` of its defaults list is left out")
        elif pair := self.convert_choice(group, choice):
            self.chosen_callbacks = choice if group == "callbacks" else self.chosen_callbacks
            choices[pair[0]] = pair[1]
            if group == "trainer":
                self.defaults |= {f"trainer.{name}": value for name, value in self.trainers[choice].items()}

    def convert_values(self, content: dict[str, Any], callbacks: Any, place: str, report: Report) -> dict[str, Any]:
        """Return the values of train.yaml or of an experiment for leyden; `callbacks` is its choice of callbacks."""
        values: dict[str, Any] = {}
        for key, value in content.items():
            if key in LEFT_OUT_KEYS:
                is_needed = value is False if key == "train" else value not in (None, "") and key != "task_name"
                lines = report.manual_steps if is_needed and key in ("train", "ckpt_path") else report.omissions
                lines.append(f"{place}: {key}: {LEFT_OUT_KEYS[key]}")
            elif key == "trainer" and isinstance(value, dict):
                hardware, others = split_trainer(value, place, report)
                values |= {"precision": hardware.pop("precision")} if "precision" in hardware else {}
                values |= {"trainer": {**hardware, **others}} if hardware or others else {}
            elif key == "callbacks" and isinstance(value, dict):
                parts = split_callbacks(value, self._full_callbacks(value, callbacks), place, report)
                values |= {name: node for name, node in zip(("callbacks", "checkpoint"), parts, strict=True) if node}
            elif key == "logger" and isinstance(value, dict):
                values |= self._convert_loggers(value, place, report)
            elif key not in LEYDEN_KEYS and key not in self.read_keys:
                report.omissions.append(f"{place}: {key}: no ${{{key}}} of any file in configs/ reads it")
            elif key not in ("defaults", "seed", "test") or (key != "defaults" and value not in (None, True)):
                values[key] = value
        return values

    def _full_callbacks(self, nodes: dict[str, Any], choices: Any) -> dict[str, Any]:
        """Merge callbacks into the callbacks of the chosen files, and return the result."""
        full_nodes: dict[str, Any] = {}
        for choice in choices if isinstance(choices, list) else [choices]:
            merge(full_nodes, self.callback_nodes.get(choice, {}))
        merge(full_nodes, {name: node for name, node in nodes.items() if isinstance(node, dict)})
        return full_nodes

    def _convert_loggers(self, nodes: dict[str, Any], place: str, report: Report) -> dict[str, Any]:
        """Return the settings of loggers; they have an effect only if the logger is chosen."""
        pairs = [
            # a logger that the group's file has was reported there
            convert_logger(name, node, self.logger_nodes[name] | node, place, Report())
            if name in self.logger_nodes
            else convert_logger(name, node, node, place, report)
            for name, node in nodes.items()
            if isinstance(node, dict)
        ]
        loggers = {name: node for name, node in filter(None, pairs) if node}
        return {"logger": loggers} if loggers else {}


def report_omission(name: str, document: Document, source: Source, report: Report) -> None:
    """Report a file that has no counterpart in conf/; do nothing for any other file."""
    group, _, choice = name.partition("/")
    place = f"configs/{document.file}"
    if not choice and name == "eval":
        report.omissions.append(f"{place}: leyden evaluate RUN measures a trained model")
    elif not choice and name != "train":
        report.manual_steps.append(f"{place}: leyden has one primary config: write what this one sets as an experiment")
    elif group == "debug":
        report.omissions.append(f"{place}: leyden train … {_debug_overrides(source.merged('debug', choice))}")
    elif choice and group in LEFT_OUT_GROUPS:
        report.omissions.append(f"{place}: {LEFT_OUT_GROUPS[group]}")


def _debug_overrides(content: dict[str, Any]) -> str:
    """Return the overrides that do what a choice of `debug` does."""
    trainer = content.get("trainer") if isinstance(content.get("trainer"), dict) else {}
    assert isinstance(trainer, dict)
    words = [
        f"trainer.{key}={str(value).lower()}" for key, value in trainer.items() if key not in ("devices", "accelerator")
    ]
    words += ["accelerator=cpu"] if trainer.get("accelerator") == "cpu" else []
    words += [f"{group}=none" for group in ("callbacks", "logger") if group in content and not content[group]]
    return " ".join(words)
