"""Tokenizers that have a name of their own; flags and their help read the names."""

TOKENIZERS = {
    "llama3": "meta-llama/Meta-Llama-3-8B",
    "llama2": "meta-llama/Llama-2-7b-hf",
    "gpt2": "openai-community/gpt2",
}
"""Hub ids by the names that ``--tokenizer`` knows."""
