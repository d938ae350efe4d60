"""Training on Ray Train: the part of the trainer that needs Ray."""
