"""Use a trained model from Python: load its checkpoint, measure it, predict, generate and export."""
