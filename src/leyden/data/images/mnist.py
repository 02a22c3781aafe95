"""MNIST and Fashion-MNIST, and the IDX files that hold them."""

import gzip
import struct
from pathlib import Path

import numpy as np

from leyden.data.download import Remote
from leyden.data.images.images import Downloaded, Split
from leyden.errors import UserError

FILES = [f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]


def _remotes(digests: tuple[str, ...], mirrors: tuple[str, ...], unpacked: bool) -> tuple[Remote, ...]:
    pairs = zip(FILES, digests, strict=True)
    return tuple(Remote.on(mirrors, name, digest, unpacked=unpacked) for name, digest in pairs)


class MNIST(Downloaded):
    """Handwritten digits of 28x28 pixels: 60,000 to train on and 10,000 to test (LeCun et al. 1998)."""

    folder = "mnist"
    remotes = _remotes(
        (
            "md5:f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "md5:d53e105ee54ea40749a09fcbcd1e9432",
            "md5:9fb629c4189551a2d022fa330f9573f3",
            "md5:ec29112dd5afa0611ce80d1b7f02629c",
        ),
        ("https://ossci-datasets.s3.amazonaws.com/mnist", "https://storage.googleapis.com/cvdf-datasets/mnist"),
        unpacked=False,
    )
    names = tuple("0123456789")

    def read(self) -> tuple[Split, Split]:
        """Read the four IDX files."""
        train_images, train_labels, test_images, test_labels = map(self._idx, self.remotes)
        train = Split(train_images[:, None], train_labels.astype(np.int64))
        return train, Split(test_images[:, None], test_labels.astype(np.int64))

    def _idx(self, remote: Remote) -> np.ndarray:
        """Read an IDX file: 0, 0, type (8: bytes), number of dimensions; their big-endian sizes; values."""
        content = self._downloads.read(remote)
        if not remote.unpacked:
            content = gzip.decompress(content)  # its digest is verified, so it is not a gzip bomb
        try:
            shape = struct.unpack_from(f">{content[3]}I", content, 4)
            values = np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)
        except (IndexError, struct.error, ValueError):
            values = None
        if values is None or content[:3] != b"\0\0\x08":
            raise UserError(f"{remote.name} is not an IDX file of bytes")
        return values


class FashionMNIST(MNIST):
    """Clothes of 28x28 pixels in MNIST's format: 60,000 to train on and 10,000 to test (Xiao et al. 2017)."""

    folder = "fashion-mnist"
    installed = (Path("/usr/share/datasets/fashion-mnist"),)  # Debian's dataset-fashion-mnist
    # Debian compresses the same files differently, so the digests are those of the unpacked content.
    remotes = _remotes(
        (
            "sha256:c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "sha256:bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "sha256:5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "sha256:0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
        (
            "https://fashion-mnist.s3.eu-central-1.amazonaws.com",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
        ),
        unpacked=True,
    )
    names = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
