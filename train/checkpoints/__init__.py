"""torchtitan's checkpoints: steps, the description of the model, weights of other layouts."""
