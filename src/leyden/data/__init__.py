"""Data modules with their loaders and downloads: they make the batches."""

from typing import TYPE_CHECKING

from leyden.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from leyden.data.base import Data
    from leyden.data.images.cifar import CIFAR10, CIFAR100
    from leyden.data.images.digits import Digits
    from leyden.data.images.image_folder import ImageFolder
    from leyden.data.images.images import Images, Split
    from leyden.data.images.mnist import MNIST, FashionMNIST
    from leyden.data.sequences.japanese_vowels import JapaneseVowels
    from leyden.data.sequences.sequences import Sequences, TsFiles
    from leyden.data.series.etth import ETTh1
    from leyden.data.series.series import Series, SeriesFile
    from leyden.data.series.sunspots import Sunspots
    from leyden.data.text.corpora import PTB, Enwik8, Shakespeare, Text8, WikiText2, WikiText103
    from leyden.data.text.multi30k import Multi30k
    from leyden.data.text.pairs import Pairs
    from leyden.data.text.passages import Passages, TextTable
    from leyden.data.text.stdlib_docs import StdlibDocs
    from leyden.data.text.text import Text
    from leyden.data.text.text_files import PyDocs, TextFiles
    from leyden.data.text.translation import Translation

__getattr__ = lazy_imports(__name__)
