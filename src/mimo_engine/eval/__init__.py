"""Evaluation of a served model over its HTTP API: questions, answers, scores."""
