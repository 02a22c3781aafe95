"""Convert the template's experiments to leyden's."""

from typing import Any

from leyden.adoption.parts import dump
from leyden.adoption.report import Report
from leyden.adoption.settings import LEFT_OUT_GROUPS, Settings
from leyden.adoption.source import Document, Source, bases, defaults_entries, merge


def translate(document: Document, source: Source, settings: Settings, report: Report) -> str:
    """Return the text of an experiment: the comments at its head, its choices and its values."""
    place = f"configs/{document.file}"
    entries, values = [*bases(document)], {}
    callbacks = settings.chosen_callbacks
    for key, choice in defaults_entries(document):
        *words, group = key.split()
        group = group.lstrip("/")
        if group.partition("/")[0] in (*LEFT_OUT_GROUPS, "hparams_search") or group.startswith("hydra"):
            report.omissions.append(f"{place}: {key}: {choice}")
        elif words != ["override"] or "@" in group:
            entries.append({key: choice})
        elif pair := settings.convert_choice(group, choice):
            callbacks = choice if group == "callbacks" else callbacks
            entries.append({f"override /{pair[0]}": pair[1]})
            if group == "trainer":
                values |= _values_of_trainer(choice, settings)
        else:
            report.manual_steps.append(f"{place}: `{key}: {choice}` is left out: there is no such choice")
    merge(values, settings.convert_values(document.content, callbacks, place, report))
    content: dict[str, Any] = {"defaults": entries} if entries else {}
    report.translations.append(f"{place} → conf/{document.file}")
    return dump({**content, **values}, ["@package _global_", *_head(document.text)])


def _values_of_trainer(choice: str, settings: Settings) -> dict[str, Any]:
    """Return the keys of a trainer that no accelerator holds and that the project's defaults do not set."""
    others = settings.trainers.get(choice, {})
    changed = {key: value for key, value in others.items() if settings.defaults.get(f"trainer.{key}") != value}
    return {"trainer": changed} if changed else {}


def _head(text: str) -> list[str]:
    """Return the comments before the first key, without Hydra's header."""
    lines = []
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            break
        lines.append(line.lstrip("#").strip())
    return [line for line in lines if line and not line.startswith("@package")]
