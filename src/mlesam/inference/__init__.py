"""The segmenter a user holds."""
