"""The estimators of CosyVoice's flow decoders, from their equations."""
