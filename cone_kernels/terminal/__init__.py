"""What a person sees in the terminal: one module a result, the progress line, the notes."""
