"""Convert the files of configs/ to those of leyden's conf/, and report on each."""

import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import yaml

from leyden.adoption import experiments, sweeps
from leyden.adoption.parts import convert_logger, dump, split_callbacks, split_trainer
from leyden.adoption.report import Report
from leyden.adoption.settings import LEFT_OUT_GROUPS, Settings, report_omission
from leyden.adoption.source import Document, Source, bases, defaults_entries
from leyden.config.instantiate import ALLOWED_PACKAGES, is_inside
from leyden.config.locations import CONF

LIBRARIES = {"builtins", "hydra", "leyden", "lightning", "torch", "torchmetrics"}  # never targets as a whole
UNSET = {"accelerator": "auto", "devices": "auto", "num_nodes": 1, "strategy": "auto"}  # Lightning's defaults
RESOLVER = re.compile(r"\$\{(?!oc\.|now:)([\w.]+):")  # in an interpolation that leyden cannot resolve
TRANSLATED_GROUPS = ("callbacks", "experiment", "hparams_search", "logger", "trainer")


def translate(source: Source) -> tuple[dict[str, str], Report]:
    """Return the files of conf/ by their paths in it, and the report."""
    read_keys = {
        key
        for name, document in source.documents.items()
        for key in re.findall(r"\$\{(\w+)", document.text)
        if name.partition("/")[0] not in LEFT_OUT_GROUPS
    }
    report, settings = Report(), Settings(read_keys={*read_keys, *source.groups()})
    files: dict[str, str] = {}
    for name, document in source.documents.items():
        group = name.partition("/")[0]
        if "/" in name and group not in (*TRANSLATED_GROUPS, *LEFT_OUT_GROUPS):
            files[f"{name}.yaml"] = _copy(document, name, report)
    files |= _callbacks(source, settings, report)
    files |= _loggers(source, settings, report)
    files |= _accelerators(source, settings, report)
    _read_train(source, settings, report)
    for name, document in source.group("experiment").items():
        files[f"experiment/{name}.yaml"] = experiments.translate(document, source, settings, report)
    for name, document in source.group("hparams_search").items():
        files[f"sweep/{name}.yaml"] = sweeps.translate(document, name, report)
    for name, document in source.documents.items():
        report_omission(name, document, source, report)
    files["project.yaml"] = _project_file(source, files, settings, report)
    for file, text in files.items():
        for name in dict.fromkeys(RESOLVER.findall(text)):
            report.manual_steps.append(f"conf/{file}: leyden knows no ${{{name}:…}}: write the value")
    return files, report


def _copy(document: Document, name: str, report: Report) -> str:
    report.translations.append(f"{_place(document)} → conf/{name}.yaml")
    if "${paths.output_dir}" in document.text and not name.startswith("paths/"):
        hint = "paths.output_dir is the folder logs/, since a config does not know its run's folder"
        report.manual_steps.append(f"conf/{name}.yaml: {hint}")
    return document.text


def _callbacks(source: Source, settings: Settings, report: Report) -> dict[str, str]:
    """Translate the choices of callbacks, and store which of them remain."""
    group = source.group("callbacks")
    contents = {}
    for name, document in group.items():
        own = {key: value for key, value in document.content.items() if key != "defaults"}
        settings.callback_nodes[name] = source.merged("callbacks", name)
        callbacks, checkpoint = split_callbacks(own, settings.callback_nodes[name], _place(document), report)
        contents[name] = {"checkpoint": checkpoint, "callbacks": callbacks}
    settings.callbacks = {"none"}
    for _ in group:  # a base may have bases
        settings.callbacks |= {
            name
            for name, content in contents.items()
            if any(content.values()) or settings.callbacks & {*bases(group[name])}
        }
    files = {}
    is_global = any(content["checkpoint"] for content in contents.values())  # a base gets its user's package
    for name in sorted(settings.callbacks & group.keys() - {"none"}):
        entries = [entry for entry in bases(group[name]) if entry == "_self_" or entry in settings.callbacks]
        content = contents[name] if is_global else contents[name]["callbacks"]
        # a choice of callbacks must hold `callbacks`, if only an empty node
        content = {key: value for key, value in content.items() if value or not is_global or key == "callbacks"}
        header = ["@package _global_"] if is_global else []
        files[f"callbacks/{name}.yaml"] = dump(_with_defaults(entries, content), header)
        report.translations.append(f"{_place(group[name])} → conf/callbacks/{name}.yaml")
    return files


def _loggers(source: Source, settings: Settings, report: Report) -> dict[str, str]:
    """Translate the choices of loggers, and store which of them remain."""
    group = source.group("logger")
    contents, chosen = {}, {}
    for name, document in group.items():
        merged = source.merged("logger", name)
        own = {key: value for key, value in document.content.items() if key != "defaults"}
        pairs = [convert_logger(key, node, merged.get(key), _place(document), report) for key, node in own.items()]
        contents[name] = dict(filter(None, pairs))
        settings.logger_nodes |= {key: node for key, node in merged.items() if isinstance(node, dict)}
        chosen[name] = [key for key in contents[name] if (CONF / "logger" / f"{key}.yaml").is_file()]
    settings.loggers = {"none", *(name for name, content in contents.items() if content)}
    for _ in group:
        settings.loggers |= {name for name in group if settings.loggers & {*bases(group[name])}}
    files = {}
    for name in sorted(settings.loggers & group.keys()):
        if chosen[name] == [name]:  # leyden's own file, with the project's values
            settings.defaults |= {f"logger.{name}.{key}": value for key, value in contents[name][name].items()}
            report.translations.append(f"{_place(group[name])} → leyden's logger={name}")
            continue
        entries = [entry for entry in bases(group[name]) if entry in settings.loggers]
        content = {key: value for key, value in contents[name].items() if value}
        files[f"logger/{name}.yaml"] = dump(_with_defaults([*chosen[name], *entries, "_self_"], content))
        report.translations.append(f"{_place(group[name])} → conf/logger/{name}.yaml")
    return files


def _accelerators(source: Source, settings: Settings, report: Report) -> dict[str, str]:
    """Translate the choices of trainers into accelerators, and store the keys that no accelerator holds."""
    files = {}
    for name, document in source.group("trainer").items():
        hardware, others = split_trainer(source.merged("trainer", name), _place(document), report)
        settings.trainers[name] = others
        content = {"precision": hardware.pop("precision", "32-true"), "trainer": {**UNSET, **hardware}}
        file = CONF / "accelerator" / f"{name}.yaml"
        same = next(
            (other.stem for other in (file, CONF / "accelerator" / "cpu.yaml") if _is_same(other, content)), None
        )
        settings.accelerators[name] = same or name
        if same is None:
            files[f"accelerator/{name}.yaml"] = dump(content, ["@package _global_"])
        report.translations.append(
            f"{_place(document)} → " + (f"leyden's accelerator={same}" if same else f"conf/accelerator/{name}.yaml")
        )
    return files


def _is_same(file: Path, content: dict[str, Any]) -> bool:
    return file.is_file() and yaml.safe_load(file.read_text()) == content


def _read_train(source: Source, settings: Settings, report: Report) -> None:
    """Turn train.yaml into the project's defaults."""
    document = source.documents["train"]
    choices: dict[str, Any] = {}
    for key, choice in defaults_entries(document):
        settings.read_choice(key, choice, source, choices, report)
    settings.defaults = choices | settings.defaults
    values = settings.convert_values(document.content, settings.chosen_callbacks, _place(document), report)
    settings.defaults |= {key: value for key, value in values.items() if key not in settings.defaults}
    report.translations.append("configs/train.yaml → `defaults` of conf/project.yaml: " + ", ".join(settings.defaults))


def _project_file(source: Source, files: dict[str, str], settings: Settings, report: Report) -> str:
    """Return conf/project.yaml; report classes that leyden does not build unless the user acts."""
    packages, foreign_packages = set(), defaultdict(list)
    for file, text in files.items():
        for target in sorted(_targets(yaml.safe_load(text))):
            package = target.partition(".")[0]
            is_own = (source.root / package).is_dir() or (source.root / f"{package}.py").is_file()
            if is_inside(target, ALLOWED_PACKAGES):
                continue
            if package in (*LIBRARIES, *sys.stdlib_module_names) or not package.isidentifier():
                report.manual_steps.append(
                    f"conf/{file}: {target}: leyden builds no such object; name a class of your own"
                )
            elif is_own:
                packages.add(package)
            elif (source.root / "src" / package).is_dir():
                packages.add(package)
                report.manual_steps.append(
                    f"src/{package}: install the project (pip install -e .), or set PYTHONPATH=src"
                )
            else:
                foreign_packages[package].append(file)
    for package, users in foreign_packages.items():
        report.manual_steps.append(
            f"{package}: its classes, which conf/{', conf/'.join(dict.fromkeys(users))} name, are built once you add "
            f"{package} to targets in conf/project.yaml"
        )
    header = (
        "targets: packages whose classes a config may build, so that their code runs.",
        "defaults: values that replace those in the files of conf/; experiments and the command line take precedence.",
    )
    return dump({"targets": sorted(packages), "defaults": settings.defaults}, header)


def _targets(node: Any) -> set[str]:
    if isinstance(node, list):
        return {target for item in node for target in _targets(item)}
    if not isinstance(node, dict):
        return set()
    own = {node["_target_"]} if isinstance(node.get("_target_"), str) else set()
    return own | {target for value in node.values() for target in _targets(value)}


def _with_defaults(entries: list[str], content: dict[str, Any]) -> dict[str, Any]:
    return {"defaults": entries, **content} if [entry for entry in entries if entry != "_self_"] else content


def _place(document: Document) -> str:
    return f"configs/{document.file}"
