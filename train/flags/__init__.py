"""What commands have to know of the trainer to parse their flags; nothing here imports torch."""
