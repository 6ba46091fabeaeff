"""All that knows kwcoco: the manifest, the stitching manager, and the predict loop."""
