"""What a sample and its answer are, as a person gives and reads them; knows no torch."""
