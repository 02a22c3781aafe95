"""From a project of lightning-hydra-template to the conf/ of leyden: YAML is read and written, no code runs."""
