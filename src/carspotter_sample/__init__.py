"""The embedded default: rendered listing photos and a local used-car site."""
