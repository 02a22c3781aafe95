"""CIFAR-10 and CIFAR-100."""

import io
import tarfile
from typing import ClassVar

import numpy as np

from leyden.data.download import Remote
from leyden.data.images.images import Downloaded, Split
from leyden.errors import UserError

MIRRORS = ("https://www.cs.toronto.edu/~kriz", "https://cave.cs.toronto.edu/kriz")


class CIFAR10(Downloaded):
    """Colour pictures of 32x32 pixels: 50,000 to train on and 10,000 to test (Krizhevsky 2009).

    The binary version of the files is read, which needs no unpickling.
    """

    folder = "cifar"
    remotes = (Remote.on(MIRRORS, "cifar-10-binary.tar.gz", "md5:c32a1d4ab5d03f1284b67883e8d87530"),)
    members: ClassVar[tuple[str, ...]] = (
        *(f"cifar-10-batches-bin/data_batch_{i}.bin" for i in range(1, 6)),
        "cifar-10-batches-bin/test_batch.bin",
    )  # the last one holds the test examples
    label_bytes: ClassVar[int] = 1  # bytes before each picture; the last one is the class
    names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

    def read(self) -> tuple[Split, Split]:
        """Read the members of the archive in memory; nothing is unpacked to the disk."""
        (remote,) = self.remotes
        archive = io.BytesIO(self._downloads.read(remote))
        parts = {}
        with tarfile.open(fileobj=archive, mode="r|gz") as tar:
            for member in tar:
                if member.name in self.members and (file := tar.extractfile(member)):
                    parts[member.name] = self._records(file.read())
        if missing := [name for name in self.members if name not in parts]:
            raise UserError(f"{remote.name} lacks {', '.join(missing)}: delete it and start again")
        *train, test = (parts[name] for name in self.members)
        images, labels = ([part[k] for part in train] for k in (0, 1))
        return Split(np.concatenate(images), np.concatenate(labels)), test

    def _records(self, content: bytes) -> Split:
        records = np.frombuffer(content, np.uint8).reshape(-1, self.label_bytes + 3 * 32 * 32)
        labels, pixels = records[:, self.label_bytes - 1], records[:, self.label_bytes :]
        return Split(pixels.reshape(-1, 3, 32, 32), labels.astype(np.int64))


class CIFAR100(CIFAR10):
    """CIFAR with 100 fine classes: 50,000 pictures to train on and 10,000 to test (Krizhevsky 2009)."""

    remotes = (Remote.on(MIRRORS, "cifar-100-binary.tar.gz", "md5:03b5dce01913d631647c71ecec9e9cb8"),)
    members = ("cifar-100-binary/train.bin", "cifar-100-binary/test.bin")
    label_bytes = 2  # coarse, fine
    names = tuple(
        """
        apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
        camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile
        cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp
        lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
        oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
        possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
        spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
        train trout tulip turtle wardrobe whale willow_tree wolf woman worm
        """.split()  # noqa: SIM905  (a name on each line would fill two pages)
    )
