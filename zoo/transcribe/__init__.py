"""Parts of transcribing speech: rules of timestamp tokens, segments, and words aligned with the sound."""
