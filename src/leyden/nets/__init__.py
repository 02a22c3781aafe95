"""Networks: tensors to tensors, plain torch, one file per family."""

from typing import TYPE_CHECKING

from leyden.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from leyden.nets.cnn import ConvNet
    from leyden.nets.dcgan import DCGANDiscriminator, DCGANGenerator
    from leyden.nets.forecast import NLinear, RecurrentForecaster
    from leyden.nets.language import MinRNNLM, RecurrentLM
    from leyden.nets.mlp_gan import MLPDiscriminator, MLPGenerator
    from leyden.nets.r3gan import R3GANDiscriminator, R3GANGenerator
    from leyden.nets.recurrent import SequenceClassifier
    from leyden.nets.resnet import ResNet9, ResNet18, SmallResNet
    from leyden.nets.rnn import RNN
    from leyden.nets.seq2seq import Seq2Seq
    from leyden.nets.sngan import SNGANDiscriminator, SNGANGenerator
    from leyden.nets.text_classifier import TextClassifier, TransformerTextClassifier
    from leyden.nets.timm import Timm
    from leyden.nets.transformer import TransformerLM

__getattr__ = lazy_imports(__name__)
