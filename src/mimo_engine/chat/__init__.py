"""Text in and out: tokenizer, chat template, streaming text. No torch."""
