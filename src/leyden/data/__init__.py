"""Where batches come from: data modules, loaders and downloads."""
