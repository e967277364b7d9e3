"""Training of the long-context reference model: corpus, tokenizer, batches, model, optimiser, accuracy."""
