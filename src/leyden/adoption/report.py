"""What `leyden adopt` has made of a project's configs, line by line."""

from dataclasses import dataclass, field


@dataclass
class Report:
    """Lines for people: what became what, what was left out and why, and what is to be done by hand."""

    became: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    by_hand: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return all lines, each once, under their headings."""
        headings = {
            "became": self.became,
            "left out": self.dropped,
            "by hand": self.by_hand,
        }
        return [line for title, items in headings.items() if items for line in (f"{title}:", *_indented(items))]


def _indented(items: list[str]) -> list[str]:
    return [f"  {item}" for item in dict.fromkeys(items)]
