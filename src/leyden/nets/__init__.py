"""Networks: tensors to tensors, plain torch, one file per family."""
