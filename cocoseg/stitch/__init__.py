"""The state of ONE image while its windows arrive: blend, cover, accumulate, quantize."""
