"""The encoders of CosyVoice, from their equations."""
