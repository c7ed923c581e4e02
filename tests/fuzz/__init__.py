"""Fuzzing of every boundary: harnesses, the inputs they begin with, and what runs them."""
