"""Docstrings of Python's standard library, with the package of each as its class."""

import ast
import sysconfig
from pathlib import Path

from leyden.data.split import set_aside
from leyden.data.targets import Targets
from leyden.data.text.passages import Passages, Texts

PACKAGES = ("asyncio", "email", "importlib", "logging", "multiprocessing", "tkinter", "unittest", "xml")
MIN_WORDS = 5  # docstrings with fewer words are left out


class StdlibDocs(Passages):
    """Docstrings of eight packages of the running Python's standard library; no download is needed.

    There are about 2,000 different docstrings of five words or more; they differ a little by Python version. A fixed
    fifth is for testing. The other arguments are those of `Passages`.
    """

    @property
    def classes(self) -> list[str]:
        """The names of the packages."""
        return list(PACKAGES)

    def read(self) -> tuple[Texts, Texts]:
        """Read the docstrings of the sources, without importing them."""
        package_of: dict[str, str] = {}
        for package in PACKAGES:
            for path in sorted((Path(sysconfig.get_path("stdlib")) / package).rglob("*.py")):
                for text in _docstrings(path):
                    package_of.setdefault(text, package)
        labels = Targets().read("the standard library", list(package_of.values()), self.classes)
        all_texts = Texts(list(package_of), labels)
        test, train = set_aside("the test part", 0.2, labels, seed=0, stratify=True)
        return all_texts.take(train), all_texts.take(test)


def _docstrings(path: Path) -> list[str]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(ast.parse(path.read_bytes())) if isinstance(node, kinds)]
    texts = [ast.get_docstring(node) or "" for node in nodes]
    return [text for text in texts if len(text.split()) >= MIN_WORDS]
