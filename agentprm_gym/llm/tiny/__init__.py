"""The offline model: tokenizer, corpus, pretraining script and weights."""
