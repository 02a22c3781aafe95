"""Which of two is better, and whether that can be known: `leyden compare`, from run directories alone."""
