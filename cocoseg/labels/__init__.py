"""Label arithmetic: ids of objects, 0 for none. Arrays in, arrays out; no files."""
