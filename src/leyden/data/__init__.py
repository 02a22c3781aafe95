"""Where batches come from: data modules, loaders and downloads."""

from typing import TYPE_CHECKING

from leyden.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from leyden.data.cifar import CIFAR10, CIFAR100
    from leyden.data.corpora import PTB, Enwik8, Shakespeare, Text8, WikiText2, WikiText103
    from leyden.data.digits import Digits
    from leyden.data.etth import ETTh1
    from leyden.data.image_folder import ImageFolder
    from leyden.data.images import Images
    from leyden.data.japanese_vowels import JapaneseVowels
    from leyden.data.mnist import MNIST, FashionMNIST
    from leyden.data.multi30k import Multi30k
    from leyden.data.sequences import TsFiles
    from leyden.data.series import SeriesFile
    from leyden.data.split import Split
    from leyden.data.sunspots import Sunspots
    from leyden.data.text_files import PyDocs, TextFiles
    from leyden.data.translation import Pairs

__getattr__ = lazy_imports(__name__)
