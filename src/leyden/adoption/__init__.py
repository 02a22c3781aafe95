"""Convert the configs of a lightning-hydra-template project to leyden's conf/ without running any code."""
