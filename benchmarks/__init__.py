"""Side by side with PyTorch, transformers, tokenizers and tiktoken: both sides in one run."""
