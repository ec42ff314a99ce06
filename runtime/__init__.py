"""Bundle to answers, without torch."""
