"""What a trained model is worth: its checkpoint loaded, measured, and asked for predictions."""
