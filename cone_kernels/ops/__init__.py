"""Public functions on tensors: validation, registration with torch.library, choice of backend. One file per op."""
