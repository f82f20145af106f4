"""What the losses compute with; nothing here is a loss."""
