"""From a prompt to text: templates, sampling, grammars, stops, pieces."""
