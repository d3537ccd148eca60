"""From logits to tokens. The parameters are in `config/sampling.py`."""
