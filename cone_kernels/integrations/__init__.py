"""Where the package meets others; each module needs the library of its name, and is imported by its own name."""
