"""The report of `leyden adopt` on the conversion of a project's configs."""

from dataclasses import dataclass, field


@dataclass
class Report:
    """Lines of text: what became what, what was left out and why, and what the user has to do by hand."""

    translations: list[str] = field(default_factory=list)
    omissions: list[str] = field(default_factory=list)
    manual_steps: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return all lines, each once, under their headings."""
        headings = {"became": self.translations, "left out": self.omissions, "by hand": self.manual_steps}
        return [line for title, items in headings.items() if items for line in (f"{title}:", *_indented(items))]


def _indented(items: list[str]) -> list[str]:
    return [f"  {item}" for item in dict.fromkeys(items)]
