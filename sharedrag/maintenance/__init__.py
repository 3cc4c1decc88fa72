"""Care: merging, retiring, giving memory back, and looking at every byte that decides something."""
