"""Adapters to other libraries, one module for each: `import cone_kernels.integrations` needs none of them.

Each module says what to install where its library is missing.
"""
