"""Questions: FAISS over the columns as they lie, filters remembered as masks, and scans without copies."""
