"""Networks on their way out: other sizes and heads, files for others, model cards."""
