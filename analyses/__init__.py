"""Scripted studies on top of interp and training: one question a file."""
