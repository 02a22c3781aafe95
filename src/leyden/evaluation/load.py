"""Loads a run's model and data from a checkpoint, to evaluate or to predict."""

from pathlib import Path

from lightning import LightningDataModule, LightningModule

from leyden import checkpoints
from leyden.config.locations import in_project_folder
from leyden.config.run_config import RunConfig
from leyden.contracts import HasSchema
from leyden.models.model import Model
from leyden.training.assemble import build_model


@in_project_folder()
def load(config: RunConfig, checkpoint: Path) -> tuple[LightningModule, LightningDataModule | None]:
    """Build the model and data of a config, and load a checkpoint into them.

    The model is in eval mode. The data get the state that was fitted to their files (a vocabulary, a scale), so that
    the files need not exist.

    Raises:
        UserError: if the weights do not fit the model.
    """
    ckpt = checkpoints.load(checkpoint)
    # Lightning keeps a data module's state under the name of its class, which the config may have replaced since.
    data_node = ckpt["leyden"]["config"]["data"] if "leyden" in ckpt else {}
    state = ckpt.get(data_node["_target_"].rpartition(".")[2]) if data_node else None
    model, data = build_model(config, state)
    checkpoints.load_weights(model, checkpoint)
    if isinstance(model, Model) and isinstance(data, HasSchema):
        model.schema = data.schema
    return model.eval(), data
