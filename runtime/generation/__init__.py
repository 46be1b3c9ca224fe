"""Generation: prompts and templates, sampling, grammars, stops, pieces of text."""
